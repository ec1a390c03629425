"""torch's scaled dot product attention as an implementation with its name on it, "sdpa", beside the formula.

Odd: the whole op is a library call. Right: the contract of attention lists this one name, and nothing falls back to it in silence.
"""

import math

import torch
import torch.nn.functional as F

from kernels import choose


def visible(T, causal, window, device):
    distance = torch.arange(T, device=device)[:, None] - torch.arange(T, device=device)
    before = T if window is None else window - 1
    return (distance <= before) & (distance >= (0 if causal else -before))


def _torch(q, k, v, causal, window):
    group = q.shape[1] // k.shape[1]
    kf, vf = (t.float().repeat_interleave(group, 1) for t in (k, v))
    scores = q.float() @ kf.mT / math.sqrt(q.shape[-1])
    hidden = ~visible(q.shape[2], causal, window, q.device)
    return (scores.masked_fill(hidden, -math.inf).softmax(-1) @ vf).to(q.dtype)


def _sdpa(q, k, v, causal, window):
    mask = visible(q.shape[2], causal, window, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


IMPLEMENTATIONS = {"torch": _torch, "sdpa": _sdpa}


def attention(q, k, v, causal=True, window=None, *, impl=None):
    return IMPLEMENTATIONS[choose(IMPLEMENTATIONS, impl, q.device)](q, k, v, causal, window)
