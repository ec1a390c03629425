"""linear_cross_entropy(h, W, targets, softcap=None) -> loss per token

h (..., D), W (V, D), targets (...) int64 with -100 = ignored; z = h W^T, with a softcap c: z = c tanh(z / c);
loss (...) float32 = logsumexp(z) - z[target], 0 where ignored.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
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

ROWS = 128  # of logits at a time: 4 MB of them stay in the cache


def reference(h: Tensor, W: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    z = h @ W.T
    if z.dtype != torch.float64:
        z = z.float()  # the loss is float32, so is what it is summed from
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    kept = targets != -100
    wanted = torch.where(kept, targets, 0)
    loss = F.cross_entropy(z.reshape(-1, z.shape[-1]), wanted.flatten(), reduction="none")
    return loss.view(targets.shape) * kept


def draw(rng: random.Random) -> Case:
    dtype = rng.choice(FLOATS)
    lead = (draw_size(rng, 130),) if rng.random() < 0.5 else (rng.randint(1, 4), draw_size(rng, 65))
    D, V = draw_size(rng, 96), max(2, draw_size(rng, 1030))
    softcap = rng.choice((None, 15.0, 10 ** rng.uniform(0.3, 1.7)))
    logits = 10 ** rng.uniform(-1, 1.5)  # typical size of a logit
    return Case(
        {
            "h": draw_float(rng, (*lead, D), dtype, scale=1.0, family=rng.choice(("normal", "spike", "heavy_tail"))),
            # never expanded: equal rows cancel in dh to nothing but rounding
            "W": draw_float(rng, (V, D), dtype, scale=logits / math.sqrt(D), family="normal", layout=rng.choice(OWN_MEMORY)),
            "targets": Input(lead, "int64", rng.choice(("normal", "heavy_tail")), below=V),
        },
        {"softcap": softcap},
    )  # fmt: skip


def telling(rng: random.Random) -> tuple[Case, dict[str, float]]:
    N, D, V = rng.randint(10, 30), rng.randint(16, 40), rng.randint(50, 99)
    inputs = {
        "h": Input((N, D)),
        "W": Input((V, D), scale=5 / math.sqrt(D)),
        "targets": Input((N,), "int64", below=V),
    }
    return Case(inputs, {"softcap": 8.0}), {"softcap": 4.0}


def corners(rng: random.Random) -> list[Case]:
    """Logits whose exponentials overflow float32, the largest in the first or the last column; a cap that does not prevent it."""
    N, D, V = rng.randint(5, 40), rng.choice((16, 33, 64)), rng.randint(20, 300)
    inputs = {
        "h": Input((N, D)),
        "W": Input((V, D), family="edges", scale=100 / math.sqrt(D)),
        "targets": Input((N,), "int64", below=V),
    }
    return [Case(inputs), Case(inputs, {"softcap": rng.uniform(90, 200)})]


def large(rng: random.Random) -> Case:
    N, dtype = rng.randint(1100, 1400), rng.choice(FLOATS)
    inputs = {
        "h": Input((N, 40), dtype),
        "W": Input((rng.randint(500, 700), 40), dtype, scale=0.3),
        "targets": Input((N,), "int64", "heavy_tail", below=500),
    }
    return Case(inputs, {"softcap": 15.0})


def _head(N: int, D: int, V: int, dtype: str, calls: int = 1) -> Case:
    return Case(
        {
            "h": Input((N, D), dtype),
            # logits as training leaves them: of normal ones the softmax is flat, and hardly counts beside the one-hot
            "W": Input((V, D), dtype, scale=4 / math.sqrt(D)),
            "targets": Input((N,), "int64", below=V),
        },
        {"softcap": 15.0},
        calls=calls,
    )


def _called(case: Case, rng: random.Random) -> Case:
    """With a float32 head, and targets cut out of rows that hold the inputs too."""
    head = replace(case.inputs["W"], dtype="float32")
    targets = replace(case.inputs["targets"], layout="sliced")
    case = replace(case, inputs={**case.inputs, "W": head, "targets": targets})
    return in_rows(case, "h", "targets")


def _terms(
    inputs: Mapping[str, Tensor], upstream: Sequence[Tensor], scalars: Mapping[str, Any]
) -> dict[str, float]:
    """loss = logsumexp(z) - z[target] and dh = u (p W - W[target]) are differences of nearly equal terms where p is nearly one.

    And p = exp(z - logsumexp(z)) has the rounding error of its exponent, which is as much larger as logits are.
    """
    h, W = inputs["h"].float().flatten(0, -2), inputs["W"].float()  # sizes alone: float32 will do
    lengths, eps = W.square().sum(-1), torch.finfo(inputs["h"].dtype).eps
    u = upstream[0].float().flatten() if upstream else h.new_zeros(len(h))
    sums = torch.zeros(3, dtype=torch.float64, device=h.device)
    parts = (torch.split(t, ROWS) for t in (h, inputs["targets"].flatten(), u))
    for few, wanted, push in zip(*parts, strict=True):
        largest, squares = _of_logits(few @ W.T, wanted, scalars.get("softcap"), eps)
        dh = lengths.max() + squares @ lengths
        dW = few.square().sum(-1) * (1 + squares.sum(-1))
        sums += torch.stack([each.double().sum() for each in (largest, push**2 * dh, push**2 * dW)])
    found = zip(("loss", "dh", "dW"), sums.sqrt().tolist(), strict=True)
    return dict(found) if upstream else {"loss": float(sums[0].sqrt())}


def _of_logits(z: Tensor, targets: Tensor, cap: float | None, eps: float) -> tuple[Tensor, Tensor]:
    """Squares of a row's terms of the loss (N,), and of the terms of dz (N, V). An error of eight float32 units of these terms is allowed.

    A version that caps in the dtype of h, with t = tanh(z / c), rounds t and then c t: its z is off by `eps` c t at most, and the slope 1 - t^2 by
    `eps` t^2. The plain version rounds logits before the cap, so that z (1 - t^2) of the first error is in its own; far beyond the cap that is
    nothing, and so is the slope.
    """
    rounded = bent = slope = z.new_zeros(())
    unit = eps / torch.finfo(torch.float32).eps / 8
    if cap is not None:
        raw, t = z, torch.tanh(z / cap)
        z, slope = cap * t, 1 - t.square()
        rounded, bent = unit * (z - raw * slope), unit * t.square()
    p = z.softmax(-1)
    # an eighth: this one is off by one unit at most
    squares = (p * (z.logsumexp(-1, keepdim=True) / 8)).square() + (p * slope * rounded).square()
    p.scatter_add_(-1, targets.clamp(min=0).unsqueeze(-1), p.new_full((len(p), 1), -1.0))
    squares += (p * bent).square()
    return z.square().amax(-1) + rounded.square().amax(-1), squares


def _flops(case: Case) -> int:
    *lead, D = case.inputs["h"].shape
    return 2 * math.prod(lead) * D * case.inputs["W"].shape[0]


CONTRACT = Contract(
    name="linear_cross_entropy",
    reference=reference,
    results={"loss": lambda case: Input(case.inputs["targets"].shape, "float32")},
    differentiable=("h", "W"),
    draw=draw,
    telling=telling,
    large=large,
    corners=corners,
    trial={
        "cpu": (_head(2048, 192, 8192, "bfloat16"), _head(2048, 192, 8192, "float32", 0)),
        "cuda": (_head(65536, 512, 8192, "bfloat16"),),
    },
    called=_called,
    least_bytes=lambda case: nbytes(*case.inputs.values()),
    flops=_flops,
    terms=_terms,
    weights=("W",),
    library=("aten::linear_cross_entropy", "aten::_linear_cross_entropy"),
)
