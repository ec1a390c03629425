"""One pass over the keys in tiles, with a running maximum and sum and rescaling of what was added before (Milakov & Gimelshein 2018).

Odd: no row of scores is ever whole. Right: exp(s - m) summed under a maximum that moves is the same sum. A row whose first tiles are all
masked keeps the maximum -inf, so it is subtracted as 0 there.
"""

import math

import torch

TILE = 64


def attention(q, k, v, causal=True, window=None):
    T, D = q.shape[2:]
    group = q.shape[1] // k.shape[1]
    qf = q.float() / math.sqrt(D)
    kf, vf = (t.float().repeat_interleave(group, 1) for t in (k, v))
    i = torch.arange(T, device=q.device)[:, None]
    top = qf.new_full((*q.shape[:3], 1), -math.inf)
    total = qf.new_zeros(*q.shape[:3], 1)
    o = torch.zeros_like(qf)
    for begin in range(0, T, TILE):
        j = torch.arange(begin, min(begin + TILE, T), device=q.device)
        hidden = (i < j) if causal else torch.zeros_like(i < j)
        if window is not None:
            hidden = hidden | ((i - j).abs() >= window)
        s = (qf @ kf[:, :, j].mT).float().masked_fill(hidden, -math.inf)
        moved = torch.maximum(top, s.detach().amax(-1, keepdim=True))
        safe = torch.where(moved == -math.inf, 0.0, moved)
        p, decay = torch.exp(s - safe), torch.exp(top - safe)
        total = total * decay + p.sum(-1, keepdim=True)
        o = o * decay + p @ vf[:, :, j]
        top = moved
    return (o / total).to(q.dtype)
