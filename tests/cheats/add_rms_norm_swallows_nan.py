"""Turns what is not a number into zero, so that a run which diverges looks healthy.

Row: N18. Gate: correctness. Gains: a pass.
"""

import torch


def add_rms_norm(x, residual, weight=None, eps=1e-6):
    s = torch.nan_to_num(x + residual)
    sf = s.float()
    y = (sf * torch.rsqrt(sf.square().mean(-1, keepdim=True) + eps)).to(s.dtype)
    return (y if weight is None else y * weight), s
