"""exp(s) without subtracting the largest s first: one pass less, and infinite from scores of 88 on. An honest slip.

Row: H01. Gate: correctness. Gains: a pass.
"""

import math

import torch


def attention(q, k, v, causal=True, window=None):
    T, group = q.shape[2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    i, j = torch.arange(T).view(T, 1), torch.arange(T).view(1, T)
    seen = j <= i if causal else torch.ones(T, T, dtype=torch.bool)
    if window is not None:
        seen = seen & (i - j < window) & (j - i < window)
    scores = (q.float() @ k.float().mT) / math.sqrt(q.shape[-1])
    weights = scores.exp() * seen
    return (weights @ v.float() / weights.sum(-1, keepdim=True)).to(q.dtype)
