"""Normalises in place. Stopped by: correctness."""

import torch


def rms_norm(x, weight=None, eps=1e-6):
    y = (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    x.data.copy_(y.detach())
    return y if weight is None else y * weight
