"""add_rms_norm(x, residual, weight=None, eps=1e-6) -> (y, residual')        residual' = x + residual, y = rms_norm(residual')"""

from __future__ import annotations

import math
import random

from torch import Tensor

from bench.contracts import rms_norm
from bench.contracts.contract import Case, Contract, Input, in_rows, nbytes


def reference(
    x: Tensor, residual: Tensor, weight: Tensor | None = None, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    residual = x + residual
    return rms_norm.reference(residual, weight, eps), residual


def draw(rng: random.Random) -> Case:
    case = rms_norm.draw(rng)
    x = case.inputs["x"]
    residual = Input(x.shape, x.dtype, scale=x.scale, layout=rng.choice(("contiguous", "padded")))
    return Case({"x": x, "residual": residual, **case.inputs}, case.scalars)


def telling(rng: random.Random) -> tuple[Case, dict[str, float]]:
    case, scalars = rms_norm.telling(rng)
    return Case({"x": case.inputs["x"], "residual": case.inputs["x"], **case.inputs}, case.scalars), scalars  # fmt: skip


def corners(rng: random.Random) -> list[Case]:
    cases = [case.inputs["x"] for case in rms_norm.corners(rng)]
    return [Case({"x": x, "residual": x}, {"eps": 1e-5}) for x in cases]


def large(rng: random.Random) -> Case:
    case = rms_norm.large(rng)
    return Case({"x": case.inputs["x"], "residual": case.inputs["x"], **case.inputs}, case.scalars)


def _pair(rows: int, D: int, dtype: str, calls: int) -> Case:
    return Case({"x": Input((rows, D), dtype), "residual": Input((rows, D), dtype)}, calls=calls)


CONTRACT = Contract(
    name="add_rms_norm",
    reference=reference,
    results={"y": "x", "residual": "x"},
    differentiable=("x", "residual", "weight"),
    draw=draw,
    telling=telling,
    large=large,
    corners=corners,
    trial={
        "cpu": (_pair(2048, 192, "bfloat16", 4), _pair(2048, 192, "float32", 0)),
        "cuda": (_pair(131072, 512, "bfloat16", 9),),
    },
    called=lambda case, rng: in_rows(case, "x", "residual"),
    least_bytes=lambda case: 4 * nbytes(case.inputs["x"]),
    flops=lambda case: 5 * math.prod(case.inputs["x"].shape),
    library=rms_norm.CONTRACT.library,
    infinite=("x", "residual"),
)
