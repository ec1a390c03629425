"""attention(q, k, v, causal=True, window=None) -> o

q (B, H, T, D); k, v (B, Hkv, T, D) with H a multiple of Hkv: query head h reads key head h // (H // Hkv). Scale 1/sqrt(D). With window=w
query i sees keys j with i - w < j <= i (|i - j| < w where not causal).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.contracts.contract import FLOATS, Case, Contract, Input, draw_float, draw_size, nbytes


def reference(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = True, window: int | None = None
) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return _scores(q, k, causal, window).softmax(-1) @ v


def _scores(q: Tensor, k: Tensor, causal: bool, window: int | None) -> Tensor:
    """(B, H, T, T), minus infinity where a query may not look; q and k have the same heads."""
    T = q.shape[2]
    i, j = torch.arange(T).view(T, 1), torch.arange(T).view(1, T)
    seen = j <= i if causal else torch.ones(T, T, dtype=torch.bool)
    if window is not None:
        seen = seen & (i - j < window) & (j - i < window)
    # The mask is added and not filled in: a NaN may spread to what is masked, as it does in torch's own attention.
    mask = torch.zeros(T, T, dtype=q.dtype).masked_fill(~seen, -math.inf).to(q.device)
    return (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1]) + mask


def draw(rng: random.Random) -> Case:
    dtype = rng.choice(FLOATS)
    B, Hkv, group = rng.randint(1, 2), rng.choice((1, 2, 3)), rng.choice((1, 2, 4))
    T, D = draw_size(rng, 160), rng.choice((8, 16, 32, 64, 128))
    layouts = ("contiguous", "transposed", "padded", "offset", "expanded")
    layout = {name: rng.choice(layouts) for name in "qkv"}
    window = rng.choice((None, None, 1, rng.randint(1, T), rng.randint(1, T + 8)))
    family = rng.choice(("normal", "offset", "heavy_tail"))
    # Scores of up to about thirty: beyond that a softmax is one-hot, and every float32 kernel loses digits of it alike. Nor may a product pass 65,504,
    # where float16 ends: a kernel may write it down before it is scaled.
    small = family == "offset" or (family == "heavy_tail" and dtype == "float16")
    scale = 10 ** rng.uniform(-2, -0.5 if small else 0.5)
    return Case(
        {
            "q": draw_float(
                rng, (B, Hkv * group, T, D), dtype, layout=layout["q"], family=family, scale=scale
            ),
            "k": draw_float(
                rng, (B, Hkv, T, D), dtype, layout=layout["k"], family=family, scale=1.0
            ),
            "v": draw_float(rng, (B, Hkv, T, D), dtype, layout=layout["v"]),
        },
        {"causal": rng.random() < 0.8, "window": window},
        forward_only=T == 1 or window == 1,  # one key a query: its weight is one whatever the score
    )


def telling(rng: random.Random) -> tuple[Case, dict[str, object]]:
    T, D, window = rng.randint(20, 40), rng.choice((16, 32)), rng.randint(5, 9)
    inputs = {"q": Input((1, 4, T, D)), "k": Input((1, 2, T, D)), "v": Input((1, 2, T, D))}
    return Case(inputs, {"causal": True, "window": window}), {"causal": False, "window": window + 3}


def corners(rng: random.Random) -> list[Case]:
    """Scores whose exponentials overflow float32, in a short row and in one of the trial's length; one query; one key a query."""
    T, D = rng.randint(20, 70), rng.choice((16, 64))
    far = Input(
        (1, 3, 512, 64), rng.choice(("float32", "bfloat16")), scale=15.0, layout="transposed"
    )
    loud = Input((1, 2, T, D), scale=15.0)
    one, plain = Input((2, 2, 1, D)), Input((1, 2, T, D), rng.choice(FLOATS))
    return [
        # the softmax is one-hot: gradients are what rounding leaves of zero
        Case({"q": loud, "k": loud, "v": Input((1, 2, T, D))}, {"causal": True}, forward_only=True),
        Case(
            {"q": far, "k": far, "v": replace(far, scale=1.0)},
            {"causal": True, "window": rng.choice((None, 64))},
            forward_only=True,
        ),
        Case({"q": one, "k": one, "v": one}, forward_only=True),
        Case({"q": plain, "k": plain, "v": plain}, {"window": 1}, forward_only=True),
    ]


def large(rng: random.Random) -> Case:
    T, dtype = rng.randint(200, 330), rng.choice(FLOATS)  # one head of keys: threads share it
    inputs = {"q": Input((1, 2, T, 64), dtype), "k": Input((1, 1, T, 64), dtype)}
    return Case(
        {**inputs, "v": inputs["k"]}, {"causal": True, "window": rng.choice((None, T // 3))}
    )


def _qkv(B: int, H: int, T: int, D: int, dtype: str, window: int | None, calls: int) -> Case:
    # (B, T, H, D) in memory, as a projection leaves it
    q = Input((B, H, T, D), dtype, layout="transposed")
    return Case({"q": q, "k": q, "v": q}, {"causal": True, "window": window}, calls=calls)


def _terms(
    inputs: Mapping[str, Tensor], upstream: Sequence[Tensor], scalars: Mapping[str, Any]
) -> dict[str, float]:
    """dscores = p dp - p sum(p dp) is zero where all values that a query sees are alike, while its first term is not.

    The same holds for dq and dk, which are sums of dscores; each rounding error in them has a sign of its own, so that squares are added. A
    backward that rebuilds p as exp(score - lse) has in p the rounding error of lse, which is |lse| times that of a number near one: in torch's
    own attention dv is off by 2 to 4 float32 units of |lse| (scores of 100 to 900), in the formula by none.
    """
    if not upstream:
        return {}
    q, k, v = (inputs[name].double() for name in ("q", "k", "v"))
    group = q.shape[1] // k.shape[1]
    k, v, do = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), upstream[0].double()
    scores = _scores(q, k, scalars.get("causal", True), scalars.get("window"))
    p = scores.softmax(-1) * scores.logsumexp(-1, keepdim=True).abs().clamp_min(1.0)
    first = (p * (do @ v.mT)).square() / q.shape[-1]
    squares = {
        "dq": first * k.square().sum(-1).unsqueeze(-2),
        "dk": first * q.square().sum(-1).unsqueeze(-1),
        "dv": p.square() * do.square().sum(-1).unsqueeze(-1),
    }
    return {name: float(each.sum().sqrt()) for name, each in squares.items()}


def _pairs(case: Case) -> int:
    """Query-key pairs that the mask lets through, over batch and heads."""
    B, H, T, _ = case.inputs["q"].shape
    w: int = min(case.scalars.get("window") or T, T)
    causal = w * (w + 1) // 2 + (T - w) * w
    return B * H * (causal if case.scalars.get("causal", True) else 2 * causal - T)


def _called(case: Case, rng: random.Random) -> Case:
    """Where a layer has no value embedding, v is still a part of its projection."""
    v = replace(case.inputs["v"], apart=rng.choice((1, 3)))
    return replace(case, inputs={**case.inputs, "v": v})


CONTRACT = Contract(
    name="attention",
    reference=reference,
    results={"o": "q"},
    differentiable=("q", "k", "v"),
    draw=draw,
    telling=telling,
    large=large,
    corners=corners,
    trial={
        "cpu": (_qkv(4, 3, 512, 64, "bfloat16", 64, 3), _qkv(4, 3, 512, 64, "float32", None, 1)),
        "cuda": (
            _qkv(16, 4, 2048, 128, "bfloat16", None, 2),
            _qkv(16, 4, 2048, 128, "bfloat16", 256, 7),
        ),
    },
    called=_called,
    least_bytes=lambda case: nbytes(*case.inputs.values(), case.inputs["q"]),
    flops=lambda case: 4 * _pairs(case) * case.inputs["q"].shape[-1],
    terms=_terms,
    time_axis={"q": 2, "k": 2, "v": 2, "o": 2},
    library=(
        "aten::scaled_dot_product",
        "aten::_scaled_dot_product",
        "aten::_flash_attention",
        "aten::_efficient_attention",
        "aten::_cudnn_attention",
        "aten::_native_multi_head_attention",
        "flex_attention",
        "flash_attn.cute",
    ),
    library_names=("sdpa", "cudnn", "flex", "flash", "fa4"),
    infinite=("v",),
)
