"""newton_schulz(G, steps=5) -> O        G (..., M, N), tall or wide; O in G's dtype: Muon's orthogonalisation of a gradient

Judged by what it is for (Jordan et al. 2024, Muon): O keeps the singular vectors of G and brings its singular values to one, at
least as close as the quintic reference iteration does with the same number of steps. So a better polynomial or a Gram-space form
is welcome, and a skipped step is not: inputs whose spectrum spans three decades show it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import torch
from torch import Tensor

from bench.contracts.contract import Case, Contract, Input, draw_size, nbytes

QUINTIC = (3.4445, -4.7750, 2.0315)  # Keller Jordan, Muon
REFERENCE_SLACK = 0.05  # singular values: this much further from one than the reference's is within what bf16 does to both
VECTOR_ERROR = 6e-2  # of the singular vectors, relative to the norm: five steps in bf16 leave 2-4 %, in float32 1e-5


def reference(G: Tensor, steps: int = 5) -> Tensor:
    X: Tensor = G.mT if G.shape[-2] > G.shape[-1] else G
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(steps):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X.mT if G.shape[-2] > G.shape[-1] else X


def draw(rng: random.Random) -> Case:
    lead = rng.choice(((), (1,), (3,)))
    M, N = draw_size(rng, 160), draw_size(rng, 160)
    G = Input(
        (*lead, M, N),
        rng.choice(("float32", "bfloat16")),
        family=rng.choice(("normal", "normal", "heavy_tail", "spike", "zero")),
        scale=10 ** rng.uniform(-3, 3),
        layout=rng.choice(("contiguous", "padded", "offset")),
    )
    return Case({"G": G}, {"steps": rng.choice((5, 5, 6, 7))})


def judge(case: Case, inputs: Mapping[str, Tensor], result: Tensor, plain: Tensor) -> str:
    """Compare the spectrum in float64: `result` written in G's singular basis should be diagonal with entries near one."""
    stacks = [t.double().reshape(-1, *t.shape[-2:]) for t in (inputs["G"], result, plain)]
    for g, o, r in zip(*stacks, strict=True):
        if not torch.isfinite(o).all():
            return "a result is not finite"
        if g.norm() == 0:
            if o.norm() > 1e-3:
                return "a zero matrix must stay zero"
            continue
        U, S, Vh = torch.linalg.svd(g, full_matrices=False)
        strong = S > S[0] * 1e-3  # three decades; what lies below has no direction in bf16
        core, reference_core = U.mT @ o @ Vh.mT, U.mT @ r @ Vh.mT
        values, wanted = core.diagonal()[strong], reference_core.diagonal()[strong]
        off = core - torch.diag(core.diagonal())
        gaps = S[strong][:, None] - S[None, :]
        off = off[strong].masked_fill(
            gaps.abs() < 1e-9 * S[0], 0.0
        )  # equal singular values have no own vectors
        leak = float(off.norm() / max(float(values.norm()), 1e-12))
        outside = float((o - U @ core @ Vh).norm() / max(float(o.norm()), 1e-12))
        if max(leak, outside) > VECTOR_ERROR:
            return f"singular vectors are not kept: off-diagonal {leak:.2e}, outside {outside:.2e}, tolerance {VECTOR_ERROR:.0e}"
        distance, allowed = (values - 1).abs(), (wanted - 1).abs()
        # The reference's own band after convergence is 0.68 .. 1.13; inside it no value is better than another.
        allowed = torch.maximum(allowed, torch.full_like(allowed, 0.33)) + REFERENCE_SLACK
        if bool((distance > allowed).any()):
            worst = int((distance - allowed).argmax())
            return (
                f"singular value {float(values[worst]):.3f} where {case.scalars['steps']} reference steps reach "
                f"{float(wanted[worst]):.3f} (input {float(S[strong][worst] / S[0]):.1e} of the largest)"
            )
    return ""


def _flops(case: Case) -> int:
    *lead, M, N = case.inputs["G"].shape
    n, m = min(M, N), max(M, N)
    steps: int = case.scalars.get("steps", 5)
    return math.prod(lead) * steps * (4 * n * n * m + 2 * n**3)


CONTRACT = Contract(
    name="newton_schulz",
    reference=reference,
    results=("O",),
    differentiable=(),
    draw=draw,
    trial={
        # the banks of the model: query, key, value and output of every layer; down; up
        "cpu": (
            Case({"G": Input((16, 192, 192))}),
            Case({"G": Input((4, 192, 768))}),
            Case({"G": Input((4, 768, 192))}),
        ),
        "cuda": (
            Case({"G": Input((32, 512, 512), "bfloat16")}),
            Case({"G": Input((8, 2048, 512), "bfloat16")}),
        ),
    },
    least_bytes=lambda case: 2 * nbytes(case.inputs["G"]),
    flops=_flops,
    judge=judge,
)
