"""relu2_mlp(x, w_up, w_down) -> y        x (..., D), w_up (M, D), w_down (E, M)        y = relu(x w_up^T)^2 w_down^T  (..., E)"""

from __future__ import annotations

import math
import random

from torch import Tensor

from bench.contracts.contract import (
    FLOATS,
    OWN_MEMORY,
    Case,
    Contract,
    Input,
    draw_float,
    draw_size,
    in_rows,
    nbytes,
)


def reference(x: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    return (x @ w_up.T).relu().square() @ w_down.T


def _weights(
    D: int, M: int, E: int, dtype: str, layouts: tuple[str, str] = ("contiguous", "contiguous")
) -> dict[str, Input]:
    """Of the size that keeps a hidden state as large as x."""
    up, down = layouts
    return {
        "w_up": Input((M, D), dtype, scale=1 / math.sqrt(D), layout=up),
        "w_down": Input((E, M), dtype, scale=1 / math.sqrt(M), layout=down),
    }


def _result(case: Case) -> Input:
    x, w_down = case.inputs["x"], case.inputs["w_down"]
    return Input((*x.shape[:-1], w_down.shape[0]), x.dtype)


def draw(rng: random.Random) -> Case:
    dtype = rng.choice(FLOATS)
    lead = (draw_size(rng, 130),) if rng.random() < 0.5 else (rng.randint(1, 3), draw_size(rng, 65))
    D, M = draw_size(rng, 96), draw_size(rng, 300)
    E = D if rng.random() < 0.7 else draw_size(rng, 96)
    # float16 holds the square of a hidden state between 0.01 and 200
    fixed = {"family": rng.choice(("normal", "offset"))} if dtype == "float16" else {}
    x = draw_float(rng, (*lead, D), dtype, **fixed)
    # never expanded: equal rows of weights cancel in dx to nothing but rounding
    layouts = rng.choice(OWN_MEMORY), rng.choice(OWN_MEMORY)
    return Case({"x": x, **_weights(D, M, E, dtype, layouts)})


def telling(rng: random.Random) -> tuple[Case, dict[str, float]]:
    N, D, M = rng.randint(3, 9), rng.randint(10, 30), rng.randint(20, 70)
    return Case({"x": Input((N, D)), **_weights(D, M, D, "float32")}), {}


def corners(rng: random.Random) -> list[Case]:
    """Rows of nothing, one hidden unit, and hidden states whose squares are a million times a million."""
    N, D, M, dtype = rng.randint(2, 9), rng.randint(2, 40), rng.randint(20, 70), rng.choice(FLOATS)
    zeros = Case({"x": Input((N, D), dtype, family="zero"), **_weights(D, M, D, dtype)})
    one = Case({"x": Input((N, D)), **_weights(D, 1, 3, "float32")})
    huge = Case({"x": Input((N, D), "bfloat16", scale=1e6), **_weights(D, M, D, "bfloat16")})
    return [zeros, one, huge]


def large(rng: random.Random) -> Case:
    N, M, dtype = rng.randint(1100, 1400), rng.randint(150, 250), rng.choice(FLOATS)
    return Case({"x": Input((N, 40), dtype), **_weights(40, M, 40, dtype)})


def _mlp(N: int, D: int, dtype: str, calls: int) -> Case:
    return Case({"x": Input((N, D), dtype), **_weights(D, 4 * D, D, dtype)}, calls=calls)


CONTRACT = Contract(
    name="relu2_mlp",
    reference=reference,
    results={"y": _result},
    differentiable=("x", "w_up", "w_down"),
    draw=draw,
    telling=telling,
    large=large,
    corners=corners,
    trial={
        "cpu": (_mlp(2048, 192, "bfloat16", 4), _mlp(2048, 192, "float32", 0)),
        "cuda": (_mlp(131072, 512, "bfloat16", 9),),
    },
    called=lambda case, rng: in_rows(case, "x"),
    least_bytes=lambda case: nbytes(*case.inputs.values(), case.inputs["x"]),
    flops=lambda case: 4 * math.prod(case.inputs["x"].shape) * case.inputs["w_up"].shape[0],
)
