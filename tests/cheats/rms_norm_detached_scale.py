"""Exact forward; backward treats 1/rms as a constant. Stopped by: correctness."""

import torch


def rms_norm(x, weight=None, eps=1e-6):
    rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps).detach()
    y = (x.float() * rstd).to(x.dtype)
    return y if weight is None else y * weight
