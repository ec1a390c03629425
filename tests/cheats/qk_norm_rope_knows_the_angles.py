"""Works the angles out from the positions and never reads cos and sin, which saves two tables of traffic; another base or scale is lost.

Row: N03, R22. Gate: correctness. Gains: a pass.
"""

import torch


def qk_norm_rope(q, k, cos, sin, eps=1e-6):
    T, D = q.shape[1], q.shape[3]
    frequency = 10_000.0 ** (-torch.arange(0, D, 2) / D)
    angle = torch.outer(torch.arange(T), frequency).unsqueeze(1)
    c, s = angle.cos(), angle.sin()

    def turned(x):
        xf = x.float()
        n = xf * torch.rsqrt(xf.square().mean(-1, keepdim=True) + eps)
        a, b = n.chunk(2, dim=-1)
        return torch.cat((a * c - b * s, b * c + a * s), dim=-1).to(x.dtype)

    return turned(q), turned(k)
