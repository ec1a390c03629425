"""Normalises x alone; the residual it returns is right. Stopped by: correctness."""

import torch


def add_rms_norm(x, residual, weight=None, eps=1e-6):
    y = (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    return (y if weight is None else y * weight), x + residual
