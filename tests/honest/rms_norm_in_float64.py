"""Everything in float64.

Odd: more digits than the contract asks for, at twice to four times the width. Right: the result is the exact one, rounded once.
"""

import torch


def rms_norm(x, weight=None, eps=1e-6):
    y = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight.double()).to(x.dtype)
