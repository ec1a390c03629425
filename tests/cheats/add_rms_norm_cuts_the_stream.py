"""Values right; no gradient flows back through the residual stream, so that layers below learn little. Saves a pass in backward.

Row: N22, R23. Gate: correctness. Gains: a pass.
"""

import torch


def add_rms_norm(x, residual, weight=None, eps=1e-6):
    s = x + residual
    sf = s.float()
    y = (sf * torch.rsqrt(sf.square().mean(-1, keepdim=True) + eps)).to(s.dtype)
    return (y if weight is None else y * weight), s.detach() + 0 * x
