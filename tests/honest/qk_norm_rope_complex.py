"""Takes the two channels of a pair for one complex number, and turns it by a product with cos + i sin.

Odd: complex arithmetic, whose product torch may form with other roundings, and whose gradient is a conjugate. Right: it is the same rotation.
"""

import torch


def qk_norm_rope(q, k, cos, sin, eps=1e-6):
    turn = torch.complex(cos.float(), sin.float()).unsqueeze(1)

    def turned(x):
        xf = x.float()
        n = xf * torch.rsqrt(xf.square().mean(-1, keepdim=True) + eps)
        y = torch.complex(*n.chunk(2, dim=-1)) * turn
        return torch.cat((y.real, y.imag), dim=-1).to(x.dtype)

    return turned(q), turned(k)
