"""rms_norm(x, weight=None, eps=1e-6) -> y        x (..., D), weight (D,)        y = x / sqrt(mean(x^2, -1) + eps) * weight"""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from bench.contracts.contract import (
    FLOATS,
    Case,
    Contract,
    Input,
    draw_float,
    draw_size,
    in_rows,
    nbytes,
)


def reference(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight


def draw(rng: random.Random) -> Case:
    dtype = rng.choice(FLOATS)
    D = draw_size(rng, 2048)
    lead = (draw_size(rng, 65),) if rng.random() < 0.5 else (rng.randint(1, 4), draw_size(rng, 33))
    inputs = {"x": draw_float(rng, (*lead, D), dtype)}
    if rng.random() < 0.5:
        inputs["weight"] = Input((D,), dtype, family="offset")
    return Case(inputs, {"eps": 10 ** rng.uniform(-7, -2)})


def telling(rng: random.Random) -> tuple[Case, dict[str, float]]:
    x = Input((rng.randint(3, 9), rng.randint(20, 70)), scale=3e-3)  # small, so that eps matters
    weight = Input((x.shape[-1],), family="offset")
    return Case({"x": x, "weight": weight}, {"eps": 1e-6}), {"eps": 1e-4}


def corners(rng: random.Random) -> list[Case]:
    """Rows of nothing, and rows of one element."""
    zeros = Input((5, rng.randint(2, 90)), rng.choice(FLOATS), family="zero")
    return [Case({"x": zeros}, {"eps": 1e-5}), Case({"x": Input((7, 1))}, {"eps": 1e-5})]


def large(rng: random.Random) -> Case:
    rows, dtype = rng.randint(500, 700), rng.choice(FLOATS)
    inputs = {"x": Input((rows, 192), dtype), "weight": Input((192,), dtype, family="offset")}
    return Case(inputs, {"eps": 1e-5})


CONTRACT = Contract(
    name="rms_norm",
    reference=reference,
    results={"y": "x"},
    differentiable=("x", "weight"),
    draw=draw,
    telling=telling,
    large=large,
    corners=corners,
    trial={
        # (B T, D)
        "cpu": (
            Case({"x": Input((2048, 192), "bfloat16")}, calls=6),
            Case({"x": Input((2048, 192))}, calls=0),
        ),
        "cuda": (Case({"x": Input((131072, 512), "bfloat16")}, calls=11),),
    },
    called=lambda case, rng: in_rows(case, "x"),
    least_bytes=lambda case: 2 * nbytes(case.inputs["x"]),
    flops=lambda case: 4 * math.prod(case.inputs["x"].shape),
    library=("aten::rms_norm", "aten::_fused_rms_norm"),
    infinite=("x",),
)
