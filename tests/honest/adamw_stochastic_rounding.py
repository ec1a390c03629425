"""Moments stored in bfloat16 are rounded up or down at random, by how near they are to either.

Odd: two calls with the same arguments differ in their moments' last bits, by up to a whole unit. Right: rounded to nearest, a mean that moves
by less than half a unit a step stays where it is for ever; at random it moves as it should on average.
"""

import torch
from torch import Tensor

GENERATOR = torch.Generator().manual_seed(0)


def store(state, exact):
    if state.dtype == torch.bfloat16:
        bits = exact.contiguous().view(torch.int32)
        random = torch.randint(0, 1 << 16, bits.shape, generator=GENERATOR, dtype=torch.int32)
        rounded = ((bits + random) & -65536).view(torch.float32)
        exact = torch.where(exact.isfinite(), rounded, exact)
    state.copy_(exact)


@torch.library.custom_op("rounding::adamw", mutates_args=("param", "exp_avg", "exp_avg_sq"))
def update(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int,
) -> None:  # fmt: skip
    g = grad.float()
    m = exp_avg.float().lerp(g, 1 - beta1)
    v = (exp_avg_sq.float() * beta2).addcmul_(g, g, value=1 - beta2)
    size = (v / (1 - beta2**step)).sqrt_().add_(eps)
    param.mul_(1 - lr * weight_decay).addcdiv_(m, size, value=-lr / (1 - beta1**step))
    store(exp_avg, m)
    store(exp_avg_sq, v)


def adamw(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    lr=1e-3,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    weight_decay=1e-2,
    step=1,
):
    update(param, grad, exp_avg, exp_avg_sq, lr, beta1, beta2, eps, weight_decay, step)
