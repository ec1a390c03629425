"""Works in place, on a copy of its own.

Odd: mul_ and add_ everywhere, where a careless reader sees a changed input. Right: every one of them writes memory that this call made.
"""

import torch
from torch.autograd.function import once_differentiable


class Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        y = x.to(torch.float32, copy=True)
        rstd = y.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        y.mul_(rstd)
        if weight is not None:
            y.mul_(weight)
        ctx.save_for_backward(x, weight, rstd)
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, rstd = ctx.saved_tensors
        n = x.to(torch.float32, copy=True).mul_(rstd)
        g = dy.to(torch.float32, copy=True)
        dweight = None
        if weight is not None:
            dweight = (g * n).flatten(0, -2).sum(0).to(weight.dtype)
            g.mul_(weight)
        g.sub_(n.mul_((g * n).mean(-1, keepdim=True))).mul_(rstd)
        return g.to(x.dtype), dweight, None


def rms_norm(x, weight=None, eps=1e-6):
    return Norm.apply(x, weight, eps)
