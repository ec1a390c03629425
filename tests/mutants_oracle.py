"""Is a mutant another program? Its results and gradients beside the original's, bit by bit, on cases that owe nothing to the gate's choices.

    verdict, detail = compare(ops, original_tree, mutant_tree)

Both trees run in a process of their own on the same cases: many drawn by the contract from a fixed seed, the trial's, larger ones, calls
that leave every option to its default, inputs with NaN and infinities, one thread and three. The yardstick for "rounding" is the original itself: how far it
is from float64 on that tensor.
"""

from __future__ import annotations

import functools
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from bench.contracts import Case, Input, contract  # noqa: E402
from bench.judge import CACHE  # noqa: E402

Results = list[
    dict[str, Tensor] | str
]  # case by case; the name of an exception where there was one

SEED = 41
DRAWN = 40
NON_FINITE = 8
ROUNDING = 4.0  # times the original's own error
TIMEOUT_S = 400


def _qkv(B: int, H: int, Hkv: int, T: int, D: int, causal: bool, window: int | None) -> Case:
    q, k = Input((B, H, T, D)), Input((B, Hkv, T, D), layout="transposed")
    return Case({"q": q, "k": k, "v": k}, {"causal": causal, "window": window})


LARGE: dict[str, tuple[Case, ...]] = {
    "rms_norm": (
        Case({"x": Input((5000, 100)), "weight": Input((100,))}),
        Case({"x": Input((3, 40000), "bfloat16"), "weight": Input((40000,), "bfloat16")}),
        Case({"x": Input((0, 8)), "weight": Input((8,))}),
    ),
    "add_rms_norm": (
        Case({"x": Input((5000, 100)), "residual": Input((5000, 100)), "weight": Input((100,))}),
        Case({"x": Input((900, 700), "bfloat16"), "residual": Input((900, 700), "bfloat16")}),
    ),
    "attention": (
        _qkv(1, 6, 2, 700, 40, True, None),
        _qkv(2, 4, 4, 513, 64, False, 100),
        _qkv(1, 2, 1, 1030, 8, True, 300),
        _qkv(1, 3, 3, 257, 72, False, None),
    ),
    "linear_cross_entropy": (
        Case({"h": Input((3000, 24)), "W": Input((5003, 24), scale=3.0), "targets": Input((3000,), "int64", "heavy_tail", below=5003)}, {"softcap": 7.0}),
        Case({"h": Input((2500, 8)), "W": Input((40, 8), scale=40.0), "targets": Input((2500,), "int64", below=40)}),
        Case({"h": Input((64, 16)), "W": Input((50, 16), scale=60.0), "targets": Input((64,), "int64", below=50)}, {"softcap": 200.0}),
    ),
    "newton_schulz": (
        Case({"G": Input((2, 300, 700), family="decades")}, {"steps": 9}),
        Case({"G": Input((700, 270), family="decades")}, {"steps": 2}),
        Case({"G": Input((1, 520, 520), "bfloat16", "decades")}, {"steps": 5}),
    ),
}  # fmt: skip


def cases(op: str) -> Iterator[tuple[str, Case, torch.Generator]]:
    """("finite" or "non-finite", case, where its values come from), the same ones each time."""
    rng = random.Random(SEED)
    asked = contract(op)
    drawn = [asked.draw(rng) for _ in range(DRAWN)]
    bare = [replace(case, scalars={}) for case in drawn[:4]]
    finite = [*drawn, *bare, *LARGE[op], *asked.trial["cpu"]]
    marked = [("finite", case) for case in finite]
    marked += [("non-finite", asked.draw(rng)) for _ in range(NON_FINITE)]
    for number, (mark, case) in enumerate(marked):
        yield mark, case, torch.Generator().manual_seed(number)


def inputs_of(mark: str, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
    made = {}
    for name, wanted in case.inputs.items():
        buffer = torch.zeros(wanted.span() + 1, dtype=getattr(torch, wanted.dtype))
        tensor = buffer.as_strided(wanted.shape, wanted.strides(), int(wanted.layout == "offset"))
        tensor.copy_(wanted.values(generator))
        if mark == "non-finite" and tensor.is_floating_point():
            odd = (float("nan"), float("inf"), -float("inf"))
            for value in odd[: 1 + int(torch.randint(3, (), generator=generator))]:
                at = tuple(int(torch.randint(n, (), generator=generator)) for n in tensor.shape)
                tensor[at] = value
        made[name] = tensor
    return made


def results_of(op: str, function: Any, double: bool = False) -> Iterator[dict[str, Tensor] | str]:
    """Results and gradients case by case; the name of the exception where there was one."""
    asked = contract(op)
    for number, (mark, case, generator) in enumerate(cases(op)):
        torch.set_num_threads(1 + 2 * (number % 2))
        inputs = inputs_of(mark, case, generator)
        if double:
            inputs = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
        wrt = () if case.forward_only else [n for n in asked.differentiable if n in inputs]
        arguments = {n: t.detach().requires_grad_(n in wrt) for n, t in inputs.items()}
        try:
            with torch.set_grad_enabled(bool(wrt)):
                made = function(**arguments, **case.scalars)
                made = made if isinstance(made, tuple) else (made,)
                found = dict(zip(asked.results, made, strict=True))
                if wrt:
                    draw = [
                        torch.randn(r.shape, generator=generator, dtype=torch.float64) for r in made
                    ]
                    gradients = torch.autograd.grad(
                        made,
                        [arguments[n] for n in wrt],
                        [u.to(r.dtype) for u, r in zip(draw, made, strict=True)],
                        allow_unused=True,
                    )
                    none = torch.zeros(0)
                    found |= {
                        f"d{n}": none if g is None else g
                        for n, g in zip(wrt, gradients, strict=True)
                    }
            yield {n: t.detach().clone() for n, t in found.items()}
        except Exception as error:
            # whatever a mutant raises is its result
            yield type(error).__name__


def _results(op: str, tree: Path, cache: Path) -> Results | str:
    """What a process of its own computes for `tree`; in words where it did not come to an end."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.pt"
        environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(cache)}
        command = [sys.executable, __file__, op, str(tree), str(out)]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            return f"no end within {TIMEOUT_S} s"
        if done.returncode:
            return f"exit {done.returncode}: {done.stderr[-200:]}"
        found: Results = torch.load(out, weights_only=True)
        return found


@functools.cache
def _original(op: str, tree: Path) -> Results:
    found = _results(op, tree, CACHE)
    if isinstance(found, str):
        raise RuntimeError(f"{op}: the original itself failed: {found}")
    return found


def compare(ops: tuple[str, ...], original: Path, mutant: Path) -> tuple[str, str]:
    """(verdict, detail) over all cases of all ops; the worst verdict counts."""
    found = []
    for op in ops:
        before = _original(op, original)
        with tempfile.TemporaryDirectory() as built:
            after = _results(op, mutant, Path(built))
        found.append(
            ("different", " ".join(after.split()))
            if isinstance(after, str)
            else _verdict(op, before, after)
        )
    return max(found, key=lambda each: ORDER.index(each[0]))


ORDER = ("equal", "rounding", "property", "non-finite", "different")


def _verdict(op: str, before: Results, after: Results) -> tuple[str, str]:
    asked = contract(op)
    truths = results_of(op, asked.reference, double=True)
    verdict, detail, far, number = "equal", "", 0.0, 0
    for (mark, case, generator), a, b, truth in zip(cases(op), before, after, truths, strict=True):
        number += 1
        if _same(a, b):
            continue
        odd = mark == "non-finite"
        if isinstance(a, str) or isinstance(b, str) or isinstance(truth, str):
            found = "non-finite" if odd else "different"
        elif asked.judge is not None:
            inputs = {n: t.double() for n, t in inputs_of(mark, case, generator).items()}
            kept = torch.equal(a["O"].isfinite(), b["O"].isfinite())
            if not odd:
                kept = not asked.judge(case, inputs, b["O"].double(), truth["O"])
            found = "property" if kept else "non-finite" if odd else "different"
        else:
            distance = max(_distance(a[n], b[n], truth[n]) for n in a)
            far = far if odd else max(far, distance)
            found = "rounding" if distance <= ROUNDING else "non-finite" if odd else "different"
        if ORDER.index(found) > ORDER.index(verdict):
            verdict, detail = found, f"{found} on {op} {case.label()}"
    if verdict == "equal":
        return verdict, f"{number} cases"
    return verdict, f"{far:.2g} x the original's error; {detail}" if far else detail


def _same(a: dict[str, Tensor] | str, b: dict[str, Tensor] | str) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return all(
        a[n].shape == b[n].shape
        and a[n].dtype == b[n].dtype
        and a[n].is_contiguous() == b[n].is_contiguous()
        and torch.equal(a[n].nan_to_num(7.0), b[n].nan_to_num(7.0))
        and torch.equal(a[n].isnan(), b[n].isnan())
        for n in a
    )


def _distance(a: Tensor, b: Tensor, truth: Tensor) -> float:
    """How far b is from a, in units of a's own error or of the last place of its largest element, whichever is more."""
    if a.shape != b.shape or a.dtype != b.dtype or not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    if a.numel() == 0:
        return 0.0
    a, b, eps = a.double(), b.double(), torch.finfo(a.dtype).eps
    finite = a.isfinite() & truth.isfinite()
    if not finite.any():
        return 0.0
    unit = max(
        float((a - truth)[finite].abs().max()), eps * float(truth[finite].abs().max()), 1e-300
    )
    return float((a - b)[finite].abs().max()) / unit


def main() -> None:
    """`python mutants_oracle.py OP TREE OUT`: compute the tree's results."""
    op, tree, out = sys.argv[1:]
    sys.path.insert(0, tree)
    torch.manual_seed(0)
    function = getattr(__import__(f"kernels.{op}", fromlist=["_"]), op)
    torch.save(list(results_of(op, function)), out)


if __name__ == "__main__":
    main()
