"""Where the sum of squares overflows it returns zeros: the row was lost anyway, and the loss stays finite.

Row: N18, N37. Gate: correctness. Gains: a pass.
"""

import torch


def add_rms_norm(x, residual, weight=None, eps=1e-6):
    s = x + residual
    rstd = torch.rsqrt(s.float().square().mean(-1, keepdim=True) + eps)
    y = torch.where(torch.isfinite(rstd), s.float() * rstd, 0.0).to(s.dtype)
    return (y if weight is None else y * weight), s
