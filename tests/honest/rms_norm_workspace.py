"""Keeps one scratch buffer a shape and squares into it at every call.

Odd: memory outlives the call and is written again by the next. Right: only scratch is kept; what is returned, and what the backward
reads, is fresh. The scratch is made outside inference mode, so that a later call may write it in any mode.
"""

import torch
from torch import Tensor

scratch: dict[tuple[int, ...], Tensor] = {}


def squares(x: Tensor) -> Tensor:
    key = tuple(x.shape)
    if key not in scratch:
        with torch.inference_mode(False):
            scratch[key] = torch.empty(key, dtype=torch.float32)
    return torch.mul(x, x, out=scratch[key])


@torch.library.custom_op("workspace::rstd", mutates_args=())
def rstd(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(squares(x).mean(-1, keepdim=True) + eps).contiguous()


@rstd.register_fake
def _(x: Tensor, eps: float) -> Tensor:
    return x.new_empty(*x.shape[:-1], 1)


def save(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], output)


def gradient(ctx, g):
    x, r = ctx.saved_tensors
    return -g * r**3 * x / x.shape[-1], None


rstd.register_autograd(gradient, setup_context=save)


def rms_norm(x, weight=None, eps=1e-6):
    xf = x.float()
    y = xf * rstd(xf, eps)
    return (y if weight is None else y * weight.float()).to(x.dtype)
