"""log(sum(exp z)) without subtracting the largest z: infinite from logits of 88 on. An honest slip.

Row: H01. Gate: correctness. Gains: a pass.
"""

import torch


def linear_cross_entropy(h, W, targets, softcap=None):
    z = h @ W.to(h.dtype).T
    y = (z if softcap is None else softcap * torch.tanh(z / softcap)).float()
    lse = y.exp().sum(-1).log()
    known = y.gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return torch.where(targets >= 0, lse - known, 0.0)
