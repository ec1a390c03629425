"""The gradient of x and that of residual are one tensor, and where only the sum is used it is the upstream gradient itself.

Odd: gradients that share memory with each other and with what came in. Right: x and residual enter only as their sum, so their gradients are equal, and
autograd adds gradients out of place when it must keep them apart. An unused output sends None.
"""

import torch
from torch.autograd.function import once_differentiable


class AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, eps):
        total = x + residual
        rstd = torch.rsqrt(total.float().square().mean(-1, keepdim=True) + eps)
        y = total.float() * rstd
        ctx.save_for_backward(total, weight, rstd)
        ctx.set_materialize_grads(False)
        return (y if weight is None else y * weight.float()).to(total.dtype), total

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dtotal):
        total, weight, rstd = ctx.saved_tensors
        if dy is None:
            return dtotal, dtotal, None, None
        n, g, dweight = total.float() * rstd, dy.float(), None
        if weight is not None:
            dweight = (g * n).flatten(0, -2).sum(0).to(weight.dtype)
            g = g * weight.float()
        dx = rstd * (g - n * (g * n).mean(-1, keepdim=True))
        dx = (dx if dtotal is None else dx + dtotal.float()).to(total.dtype)
        return dx, dx, dweight, None


def add_rms_norm(x, residual, weight=None, eps=1e-6):
    return AddNorm.apply(x, residual, weight, eps)
