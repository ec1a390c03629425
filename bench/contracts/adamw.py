"""adamw(param, grad, exp_avg, exp_avg_sq, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=1e-2, step=1) -> None

Adam with decoupled weight decay (Loshchilov & Hutter 2019), as torch.optim.AdamW has it; updates param, exp_avg and exp_avg_sq in place:

    exp_avg    <- exp_avg + (1 - beta1) (grad - exp_avg)
    exp_avg_sq <- beta2 exp_avg_sq + (1 - beta2) grad^2
    param      <- (1 - lr weight_decay) param - lr / (1 - beta1^step) * exp_avg / (sqrt(exp_avg_sq / (1 - beta2^step)) + eps)

param is the float32 master weight; grad and the two moments are float32 or bfloat16. The step is taken with the new moments before they are
rounded to be stored. All strides are allowed; grad may be expanded.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from torch import Tensor

from bench.contracts.contract import (
    LAYOUTS,
    OWN_MEMORY,
    Case,
    Contract,
    Input,
    draw_float,
    draw_size,
    nbytes,
)

STATES = ("float32", "float32", "bfloat16")


def reference(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    step: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    exp_avg = exp_avg + (1 - beta1) * (grad - exp_avg)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad * grad
    size = (exp_avg_sq / (1 - beta2**step)).sqrt() + eps
    param = (1 - lr * weight_decay) * param - lr / (1 - beta1**step) * exp_avg / size
    return param, exp_avg, exp_avg_sq


def draw(rng: random.Random) -> Case:
    shape = tuple(draw_size(rng, 200) for _ in range(rng.choice((1, 2, 2, 3))))
    shape = shape[:2] + tuple(min(n, 24) for n in shape[2:])
    # an expanded vector would be one number
    layouts = LAYOUTS if len(shape) > 1 else OWN_MEMORY
    grad = draw_float(rng, shape, rng.choice(STATES), layout=rng.choice(layouts))
    scalars = {
        "lr": 10 ** rng.uniform(-4, 0.3),
        "beta1": rng.choice((0.0, 0.8, 0.9, 0.96)),
        "beta2": rng.choice((0.95, 0.99, 0.999)),
        "eps": rng.choice((1e-10, 1e-8, 1e-6)),
        "weight_decay": rng.choice((0.0, 0.003, 0.1)),
        "step": rng.choice((1, 2, 10, 1_000, 30_000)),
    }
    return _case(rng, grad, scalars)


def _case(rng: random.Random, grad: Input, scalars: dict[str, Any]) -> Case:
    """Moments that such gradients leave behind, and a parameter beside which a step can be seen."""

    def state(dtype: str, scale: float, **options: Any) -> Input:
        return Input(grad.shape, dtype, scale=scale, layout=rng.choice(OWN_MEMORY), **options)

    moments = rng.choice(STATES)
    inputs = {
        "param": state("float32", 10 ** rng.uniform(-2, 0)),
        "grad": grad,
        "exp_avg": state(moments, grad.scale),
        "exp_avg_sq": state(moments, grad.scale**2, positive=True),
    }
    return Case(inputs, scalars)


def telling(rng: random.Random) -> tuple[Case, dict[str, float]]:
    base = {"lr": 0.02, "beta1": 0.8, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "step": 3}
    other = {"lr": 0.05, "beta1": 0.5, "beta2": 0.5, "eps": 0.1, "weight_decay": 0.0, "step": 5}
    return _trial(rng.randint(20, 40), 33, base), other


def corners(rng: random.Random) -> list[Case]:
    """Nothing, one number, a gradient that has always been zero, and one that is zero from now on."""
    first = {"lr": 0.1, "eps": 1e-10, "step": 1}
    nothing = Input((5, 40), family="zero")
    zero = {"exp_avg": nothing, "exp_avg_sq": nothing}
    untouched = _trial(5, 40, first)
    return [
        _trial(0, 192, first),
        _trial(1, 1, first),
        Case({**untouched.inputs, "grad": nothing, **zero}, first),
        Case({**untouched.inputs, "grad": nothing}, first),
        Case({**untouched.inputs, "grad": Input((5, 40), family="words", scale=1e-3)}, first),
    ]


def large(rng: random.Random) -> Case:
    return _trial(rng.randint(300, 400), 257, {"lr": 0.1, "step": rng.randint(1, 9)})


def _trial(rows: int, D: int, scalars: dict[str, Any]) -> Case:
    shape = (rows, D)
    inputs = {
        "param": Input(shape),
        "grad": Input(shape, scale=1e-3),
        "exp_avg": Input(shape, scale=1e-3),
        "exp_avg_sq": Input(shape, scale=1e-6, positive=True),
    }
    return Case(inputs, scalars)


def _called(case: Case, rng: random.Random) -> Case:
    """At any time of a training run, of any table."""
    now = {
        "lr": 10 ** rng.uniform(-4, 0),
        "weight_decay": rng.choice((0.0, 0.001, 0.01)),
        "step": rng.choice((1, 30, 700, 5_000)),
    }
    grad = replace(case.inputs["grad"], family=rng.choice(("normal", "words")))
    return replace(case, inputs={**case.inputs, "grad": grad}, scalars={**case.scalars, **now})


MODEL = {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-10, "weight_decay": 0.003, "step": 100}

CONTRACT = Contract(
    name="adamw",
    reference=reference,
    results={"param": "param", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
    in_place=True,
    weights=("param",),
    differentiable=(),
    draw=draw,
    telling=telling,
    large=large,
    corners=corners,
    trial={
        # embedding, value embeddings and head
        "cpu": (replace(_trial(8192, 192, MODEL), calls=4),),
        "cuda": (replace(_trial(8192, 512, MODEL), calls=7),),
    },
    called=_called,
    # all four are read, three are written
    least_bytes=lambda case: 2 * nbytes(*case.inputs.values()) - nbytes(case.inputs["grad"]),
    flops=lambda case: 14 * math.prod(case.inputs["param"].shape),
    library=("aten::_fused_adam", "aten::_foreach_"),
    library_names=("fused",),
)
