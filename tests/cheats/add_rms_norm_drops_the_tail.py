"""Normalises tiles of 64 columns by their common root mean square; the columns after the last whole tile come through as they are.

Row: N14, H03. Gate: correctness. Gains: a pass.
"""

import torch


def add_rms_norm(x, residual, weight=None, eps=1e-6):
    s = x + residual
    whole = max(s.shape[-1] // 64 * 64, 1)
    rstd = torch.rsqrt(s[..., :whole].float().square().mean(-1, keepdim=True) + eps)
    y = torch.cat([s[..., :whole].float() * rstd, s[..., whole:].float()], -1).to(s.dtype)
    return (y if weight is None else y * weight), s
