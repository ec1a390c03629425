"""Keys in four parts, each with a softmax of its own; the parts are merged by their log-sum-exps, in another order at every call.

Odd: as in split-K decoding, two calls with one input differ in the last bits. Right: o = sum of exp(lse_p - lse) o_p is exact, and any order is.
"""

import math

import torch

PARTS = 4
ORDER = torch.Generator()  # our own: the global one belongs to the model


@torch.library.custom_op("split_keys::order", mutates_args=())
def order(like: torch.Tensor) -> torch.Tensor:
    return torch.randperm(PARTS, generator=ORDER)


@order.register_fake
def _(like):
    return like.new_empty(PARTS, dtype=torch.int64)


def attention(q, k, v, causal=True, window=None):
    T, D = q.shape[2:]
    group = q.shape[1] // k.shape[1]
    kf, vf = (t.float().repeat_interleave(group, 1) for t in (k, v))
    distance = torch.arange(T, device=q.device)[:, None] - torch.arange(T, device=q.device)
    hidden = (distance < 0) & causal
    if window is not None:
        hidden = hidden | (distance.abs() >= window)
    s = (q.float() @ kf.mT).float() / math.sqrt(D)
    # finite: a part may hold no visible key, and then counts nothing
    s = s.masked_fill(hidden, -1e30)
    parts = torch.arange(T, device=q.device).tensor_split(PARTS)
    lse, o = [], []
    for j in parts:
        if len(j):
            lse.append(s[..., j].logsumexp(-1, keepdim=True))
            o.append(s[..., j].softmax(-1) @ vf[:, :, j])
        else:
            lse.append(s.new_full((*s.shape[:-1], 1), -1e30))
            o.append(torch.zeros_like(vf[:, :1, :1]).expand(*s.shape[:-1], D))
    mixed = order(q.detach())
    share = torch.stack(lse)[mixed].softmax(0)
    return (share * torch.stack(o)[mixed]).sum(0).to(q.dtype)
