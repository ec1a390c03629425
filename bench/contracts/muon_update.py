"""muon_update(weight, update, size, lr=0.02, decay=0.0, beta=0.95) -> None

What Muon does with an orthogonalised update; overwrites weight and size. weight and update are matrices (..., M, N), size has one number for
each neuron: its shape says which vectors are the neurons, (..., M, 1) the rows, (..., 1, N) the columns. For each matrix, with EPS = 1e-10:

    square <- mean of update^2 over each neuron
    size   <- size + (1 - beta) (square - size)                                     NorMuon (arXiv 2510.05491): a running mean square
    factor <- lr sqrt(sum square / max(sum square / max(size, EPS), EPS)) / sqrt(max(size, EPS))
    step   <- factor update                                   neurons equally long, the whole update as long as it was, times lr
    weight <- weight - step - decay weight where step weight >= 0                   cautious weight decay (arXiv 2510.12402)

weight and size are float32, update float32 or bfloat16. All strides are allowed; update may be expanded.
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

EPS = 1e-10


def reference(
    weight: Tensor,
    update: Tensor,
    size: Tensor,
    lr: float = 0.02,
    decay: float = 0.0,
    beta: float = 0.95,
) -> tuple[Tensor, Tensor]:
    by_rows = size.shape[-2:] == (update.shape[-2], 1)
    neuron, matrix = (-1 if by_rows else -2), (-2, -1)
    square = update.square().mean(neuron, keepdim=True)
    size = size + (1 - beta) * (square - size)
    floor = size.clamp_min(EPS)
    after = (square / floor).sum(matrix, keepdim=True).clamp_min(EPS)
    step = lr * (square.sum(matrix, keepdim=True) / after / floor).sqrt() * update
    return weight - step - decay * weight * (step * weight >= 0), size


def draw(rng: random.Random) -> Case:
    lead = rng.choice(((), (3,), (2, 2)))
    M, N = draw_size(rng, 150), draw_size(rng, 150)
    update = draw_float(rng, (*lead, M, N), rng.choice(("float32", "bfloat16")))
    return _case(
        rng.choice(((*lead, M, 1), (*lead, 1, N))),
        update,
        {
            "lr": 10 ** rng.uniform(-3, 0),
            "decay": rng.choice((0.0, 0.001, 0.1)),
            "beta": rng.choice((0.5, 0.9, 0.95)),
        },
        weight=10 ** rng.uniform(-2, 0),
        layouts=(rng.choice(OWN_MEMORY), rng.choice(OWN_MEMORY)),
    )


def telling(rng: random.Random) -> tuple[Case, dict[str, float]]:
    base, other = {"lr": 0.1, "decay": 0.05, "beta": 0.9}, {"lr": 0.2, "decay": 0.0, "beta": 0.5}
    return _bank((2, rng.randint(20, 40), 33), -1, scalars=base), other


def corners(rng: random.Random) -> list[Case]:
    """No matrix, one number, an update of zero, and one so small that its size is nothing beside EPS."""
    zero = _case((3, 5, 1), Input((3, 5, 9), family="zero"), {"decay": 0.1})
    tiny = _case((1, 9), Input((5, 9), scale=1e-7), {"decay": 0.1})
    return [_bank((0, 4, 8), -1), _bank((1, 1), -1), zero, tiny]


def large(rng: random.Random) -> Case:
    return _bank((3, rng.randint(200, 300), 129), rng.choice((-1, -2)))


def _case(
    size: tuple[int, ...],
    update: Input,
    scalars: dict[str, float],
    *,
    weight: float = 0.1,
    layouts: tuple[str, str] = ("contiguous", "contiguous"),
) -> Case:
    """A case with the size that such updates leave behind."""
    inputs = {
        "weight": Input(update.shape, scale=weight, layout=layouts[0]),
        "update": update,
        "size": Input(size, scale=update.scale**2, layout=layouts[1], positive=True),
    }
    return Case(inputs, scalars)


def _bank(
    shape: tuple[int, ...],
    axis: int,
    dtype: str = "float32",
    scalars: dict[str, float] | None = None,
) -> Case:
    """A bank of the model's: entries of an orthogonal matrix are near 1 / sqrt of its longer side. `axis`: along which a neuron lies."""
    size = (*shape[:-1], 1) if axis == -1 else (*shape[:-2], 1, shape[-1])
    update = Input(shape, dtype, scale=max(shape[-2:]) ** -0.5)
    return _case(size, update, {"lr": 0.04, "decay": 0.003} if scalars is None else scalars)


def _called(case: Case, rng: random.Random) -> Case:
    """At any time of a training run."""
    now = {"lr": 10 ** rng.uniform(-4, -1), "decay": rng.choice((0.0, 1e-4, 0.01))}
    return replace(case, scalars={**case.scalars, **now})


CONTRACT = Contract(
    name="muon_update",
    reference=reference,
    results={"weight": "weight", "size": "size"},
    in_place=True,
    weights=("weight",),
    differentiable=(),
    draw=draw,
    telling=telling,
    large=large,
    corners=corners,
    # the model's banks: up; down; query, key, value and output of every layer
    trial={
        "cpu": (
            _bank((4, 768, 192), -1),
            _bank((4, 192, 768), -2, "bfloat16"),
            _bank((4, 4, 192, 192), -1, "bfloat16"),
        ),
        "cuda": (
            _bank((9, 2048, 512), -1, "bfloat16"),
            _bank((9, 512, 2048), -2, "bfloat16"),
            _bank((9, 4, 512, 512), -1, "bfloat16"),
        ),
    },
    called=_called,
    # weight and size are read and written, update is read
    least_bytes=lambda case: 2 * nbytes(*case.inputs.values()) - nbytes(case.inputs["update"]),
    flops=lambda case: 8 * math.prod(case.inputs["update"].shape),
)
