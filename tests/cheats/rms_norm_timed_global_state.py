"""Autograd's anomaly mode is left on: it looks for NaN behind each of the ten nodes of a plain formula, and behind the one node of this.

Row: P17. Gate: microbench (global state).
Gains: time backward.
"""

import torch

torch.autograd.set_detect_anomaly(True)


class Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        xf = x.float()
        rstd = torch.rsqrt(xf.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, rstd)
        y = xf * rstd
        return (y if weight is None else y * weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        x, weight, rstd = ctx.saved_tensors
        n, g = x.float() * rstd, dy.float() if weight is None else dy.float() * weight
        dx = rstd * (g - n * (g * n).mean(-1, keepdim=True))
        dw = None if weight is None else (dy.float() * n).flatten(0, -2).sum(0).to(weight.dtype)
        return dx.to(x.dtype), dw, None


def rms_norm(x, weight=None, eps=1e-6):
    return Norm.apply(x, weight, eps)
