"""nesterov(momentum, grad, beta=0.95) -> None        Muon's momentum; updates momentum and grad in place

    momentum <- momentum + (1 - beta) (grad - momentum)
    grad     <- grad + beta (momentum - grad)               Nesterov's look ahead: what is to be orthogonalised

momentum is float32, grad float32 or bfloat16. grad is made from the new momentum before anything is rounded. All strides are allowed.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

from torch import Tensor

from bench.contracts.contract import (
    OWN_MEMORY,
    Case,
    Contract,
    Input,
    draw_float,
    draw_size,
    nbytes,
)


def reference(momentum: Tensor, grad: Tensor, beta: float = 0.95) -> tuple[Tensor, Tensor]:
    momentum = momentum + (1 - beta) * (grad - momentum)
    return momentum, grad + beta * (momentum - grad)


def draw(rng: random.Random) -> Case:
    shape = (*rng.choice(((), (3,), (2, 2))), draw_size(rng, 150), draw_size(rng, 150))
    dtype = rng.choice(("float32", "float32", "bfloat16"))
    grad = draw_float(rng, shape, dtype, layout=rng.choice(OWN_MEMORY))
    size = grad.scale * 10 ** rng.uniform(-1, 1)
    momentum = Input(shape, scale=size, layout=rng.choice(OWN_MEMORY))
    return Case({"momentum": momentum, "grad": grad}, {"beta": rng.choice((0.0, 0.85, 0.9, 0.97))})


def telling(rng: random.Random) -> tuple[Case, dict[str, float]]:
    return _pair((rng.randint(20, 40), 33), 0.9), {"beta": 0.7}


def corners(rng: random.Random) -> list[Case]:
    """Nothing, one number."""
    return [_pair((0, 4, 8)), _pair((1, 1))]


def large(rng: random.Random) -> Case:
    return _pair((3, rng.randint(200, 300), 129), 0.85)


def _pair(shape: tuple[int, ...], beta: float = 0.95) -> Case:
    return Case(
        {"momentum": Input(shape, scale=1e-3), "grad": Input(shape, scale=1e-3)}, {"beta": beta}
    )


CONTRACT = Contract(
    name="nesterov",
    reference=reference,
    results={"momentum": "momentum", "grad": "grad"},
    in_place=True,
    differentiable=(),
    draw=draw,
    telling=telling,
    large=large,
    corners=corners,
    # the model's banks: up and down; query, key, value and output of every layer
    trial={
        "cpu": (replace(_pair((4, 768, 192)), calls=2), _pair((4, 4, 192, 192))),
        "cuda": (replace(_pair((9, 2048, 512)), calls=2), _pair((9, 4, 512, 512))),
    },
    called=lambda case, rng: replace(case, scalars={"beta": rng.uniform(0.8, 0.98)}),
    least_bytes=lambda case: 2 * nbytes(*case.inputs.values()),
    flops=lambda case: 6 * math.prod(case.inputs["grad"].shape),
)
