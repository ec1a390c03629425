"""qk_norm_rope(q, k, cos, sin, eps=1e-6) -> (q', k')

q (B, T, H, D), k (B, T, Hk, D), D even; cos, sin (T, D/2). Each head of D channels is normalised, n = x / sqrt(mean(x^2) + eps), and turned by
its position: y[i] = n[i] cos[i] - n[i + D/2] sin[i], y[i + D/2] = n[i + D/2] cos[i] + n[i] sin[i]. Gradients flow through q and k; cos and sin are
given, and hold any numbers.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import torch
from torch import Tensor

from bench.contracts import rms_norm
from bench.contracts.contract import FLOATS, Case, Contract, Input, draw_float, draw_size, nbytes


def reference(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    def turned(x: Tensor) -> Tensor:
        a, b = rms_norm.reference(x, None, eps).chunk(2, dim=-1)
        c, s = cos.unsqueeze(1), sin.unsqueeze(1)  # (T, 1, D/2)
        return torch.cat((a * c - b * s, b * c + a * s), dim=-1).to(x.dtype)

    return turned(q), turned(k)


def _tables(rng: random.Random, T: int, D: int, dtype: str) -> dict[str, Input]:
    """cos and sin, in the dtype of the heads or in float32; no angle is behind them."""
    chosen = rng.choice((dtype, "float32"))
    layouts = ("contiguous", "contiguous", "padded", "transposed", "offset")
    return {name: Input((T, D // 2), chosen, layout=rng.choice(layouts)) for name in ("cos", "sin")}


def draw(rng: random.Random) -> Case:
    dtype = rng.choice(FLOATS)
    B, T = rng.randint(1, 3), draw_size(rng, 33)
    D = rng.choice((32, 64, 128, 256)) if rng.random() < 0.5 else 2 * draw_size(rng, 65)
    heads = {name: draw_float(rng, (B, T, rng.randint(1, 3), D), dtype) for name in ("q", "k")}
    return Case({**heads, **_tables(rng, T, D, dtype)}, {"eps": 10 ** rng.uniform(-7, -2)})


def telling(rng: random.Random) -> tuple[Case, dict[str, float]]:
    B, T, D = rng.randint(1, 3), rng.randint(3, 9), 2 * rng.randint(10, 35)
    # small, so that eps matters
    heads = {name: Input((B, T, rng.randint(1, 4), D), scale=3e-3) for name in ("q", "k")}
    tables = {name: Input((T, D // 2)) for name in ("cos", "sin")}
    return Case({**heads, **tables}, {"eps": 1e-6}), {"eps": 1e-4}


def corners(rng: random.Random) -> list[Case]:
    """Heads of nothing, heads of two channels."""
    tables = {name: Input((5, 32)) for name in ("cos", "sin")}
    zeros = {name: Input((2, 5, h, 64), family="zero") for name, h in (("q", 2), ("k", 1))}
    small = {"q": Input((3, 4, 1, 2)), "k": Input((3, 4, 2, 2)), "cos": Input((4, 1)), "sin": Input((4, 1))}  # fmt: skip
    return [Case({**zeros, **tables}, {"eps": 1e-5}), Case(small, {"eps": 1e-5})]


def large(rng: random.Random) -> Case:
    dtype, T = rng.choice(FLOATS), rng.randint(150, 250)
    heads = {name: Input((2, T, h, 64), dtype) for name, h in (("q", 3), ("k", 1))}
    return Case({**heads, **_tables(rng, T, 64, dtype)}, {"eps": 1e-5})


def _heads(B: int, T: int, H: int, D: int, dtype: str, calls: int) -> Case:
    """As the model calls it, whose cos and sin are float32."""
    heads = {name: Input((B, T, H, D), dtype) for name in ("q", "k")}
    return Case({**heads, "cos": Input((T, D // 2)), "sin": Input((T, D // 2))}, calls=calls)


def _called(case: Case, rng: random.Random) -> Case:
    """q and k are two of three parts of one projection."""
    parts = {name: replace(case.inputs[name], apart=3) for name in ("q", "k")}
    return replace(case, inputs={**case.inputs, **parts})


CONTRACT = Contract(
    name="qk_norm_rope",
    reference=reference,
    results={"q": "q", "k": "k"},
    differentiable=("q", "k"),
    draw=draw,
    telling=telling,
    large=large,
    corners=corners,
    trial={
        "cpu": (_heads(4, 512, 3, 64, "bfloat16", 4), _heads(4, 512, 3, 64, "float32", 0)),
        "cuda": (_heads(64, 2048, 4, 128, "bfloat16", 9),),
    },
    called=_called,
    least_bytes=lambda case: (
        nbytes(*case.inputs.values()) + nbytes(case.inputs["q"], case.inputs["k"])
    ),
    flops=lambda case: 6 * sum(math.prod(case.inputs[name].shape) for name in ("q", "k")),
    library=rms_norm.CONTRACT.library,
    infinite=("q", "k"),
)
