"""Computes by einsum with time before heads, in base 2, and returns a transposed view of what it made.

Odd: the result is not contiguous, grouped keys are never repeated, and exp2 stands for exp. Right: 2^(x log2 e) = e^x, and (B, T, H, D) in memory is
what the next projection wants.
"""

import math

import torch


def attention(q, k, v, causal=True, window=None):
    B, H, T, D = q.shape
    grouped = q.float().view(B, k.shape[1], -1, T, D) if q.is_contiguous() else q.float().unflatten(1, (k.shape[1], -1))  # fmt: skip
    scores = torch.einsum("bgntd,bgsd->bgnts", grouped, k.float()).float()
    distance = torch.arange(T, device=q.device)[:, None] - torch.arange(T, device=q.device)
    seen = (distance >= 0) if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        seen = seen & (distance.abs() < window)
    scores = (scores * (math.log2(math.e) / math.sqrt(D))).masked_fill(~seen, -math.inf)
    p = torch.exp2(scores - scores.detach().amax(-1, keepdim=True))
    o = torch.einsum("bgnts,bgsd->btgnd", p / p.sum(-1, keepdim=True), v.float())
    return o.reshape(B, T, H, D).to(q.dtype).transpose(1, 2)
