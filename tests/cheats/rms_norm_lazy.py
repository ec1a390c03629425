"""A tensor subclass that computes when it is looked at. Stopped by: correctness."""

import torch


class Lazy(torch.Tensor):
    pass


def rms_norm(x, weight=None, eps=1e-6):
    y = (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    return (y if weight is None else y * weight).as_subclass(Lazy)
