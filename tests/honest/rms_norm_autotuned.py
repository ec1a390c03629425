"""Times two variants on the first call of a shape and keeps the faster one.

Odd: it reads a clock, it is slow once a shape, and later calls may differ from the first in their last bits. Right: both variants are the
norm; the clock decides only between them, and no time is reported to anybody.
"""

import time

import torch
from torch import Tensor


def by_mean(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def by_norm(x: Tensor, eps: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.rsqrt(norm * norm / x.shape[-1] + eps)


chosen = {}


def seconds(variant, x: Tensor, eps: float) -> float:
    variant(x, eps)
    started = time.perf_counter()
    for _ in range(3):
        variant(x, eps)
    return time.perf_counter() - started


@torch.library.custom_op("autotuned::rstd", mutates_args=())
def rstd(x: Tensor, eps: float) -> Tensor:
    key = tuple(x.shape)
    if key not in chosen:
        chosen[key] = min((by_mean, by_norm), key=lambda variant: seconds(variant, x, eps))
    return chosen[key](x, eps).contiguous()


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
