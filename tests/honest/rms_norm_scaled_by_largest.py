"""Divides a row by its largest element first, so that no square overflows or vanishes (as LAPACK's nrm2 does).

Odd: another formula, and an infinity makes its whole row NaN where the plain one leaves zeros beside it. Right: with m = max |x| it is
x / m / sqrt(mean((x / m)^2) + eps / m^2), the same real number whatever m is, so that m needs no gradient.
"""

import torch


def rms_norm(x, weight=None, eps=1e-6):
    xf = x.float()
    largest = xf.detach().abs().amax(-1, keepdim=True).clamp_min(1e-12)
    scaled = xf / largest
    y = scaled * torch.rsqrt(scaled.square().mean(-1, keepdim=True) + eps / largest / largest)
    return (y if weight is None else y * weight.float()).to(x.dtype)
