"""One output buffer per shape, returned again and again. Stopped by: correctness."""

import torch

_BUFFERS = {}


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, rstd)
        y = _BUFFERS.setdefault(
            (x.shape, x.dtype), torch.empty_like(x, memory_format=torch.contiguous_format)
        )
        y.copy_(x.float() * rstd if weight is None else x.float() * rstd * weight.float())
        return y.view_as(y)

    @staticmethod
    def backward(ctx, dy):
        x, weight, rstd = ctx.saved_tensors
        n, g = x.float() * rstd, dy.float()
        dweight = None if weight is None else (g * n).flatten(0, -2).sum(0).to(weight.dtype)
        g = g if weight is None else g * weight.float()
        return (rstd * (g - n * (g * n).mean(-1, keepdim=True))).to(x.dtype), dweight, None


def rms_norm(x, weight=None, eps=1e-6):
    return _Norm.apply(x, weight, eps)
