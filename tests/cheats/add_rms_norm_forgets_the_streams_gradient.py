"""Backward takes the gradient of y alone; what comes down the residual stream itself is not added.

Row: N21. Gate: correctness. Gains: a pass.
"""

import torch


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, eps):
        s = x + residual
        rstd = torch.rsqrt(s.float().square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(s, rstd, weight)
        y = s.float() * rstd
        return (y if weight is None else y * weight.float()).to(s.dtype), s

    @staticmethod
    def backward(ctx, dy, _):
        s, rstd, weight = ctx.saved_tensors
        n, g = s.float() * rstd, dy.float()
        dweight = None if weight is None else (g * n).flatten(0, -2).sum(0).to(weight.dtype)
        g = g if weight is None else g * weight.float()
        dx = (rstd * (g - n * (g * n).mean(-1, keepdim=True))).to(s.dtype)
        return dx, dx, dweight, None


def add_rms_norm(x, residual, weight=None, eps=1e-6):
    return _Norm.apply(x, residual, weight, eps)
