"""Is a mutant another program? Its results and gradients beside the original's, bit by bit, on cases that owe nothing to the gate's choices.

    verdict, detail = compare(ops, original_tree, mutant_tree)

Both trees run in a process of their own on the same cases: many drawn by the contract from a fixed seed, the trial's, larger ones, calls
that leave every option to its default, inputs with NaN and infinities; with gradients from all results, from one alone, and without; on one to
three threads. The yardstick for "rounding" is the original itself: how far it
is from float64 on that tensor.
"""

from __future__ import annotations

import functools
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from bench.contracts import Case, Input, contract  # noqa: E402
from bench.judge import CACHE  # noqa: E402

# case by case; the name of an exception where there was one
Results = list[dict[str, Tensor] | str]

SEED = 41
DRAWN = 40
NON_FINITE = 8
ROUNDING = 2.0  # times the original's own error
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
    "qk_norm_rope": (
        Case({"q": Input((2, 700, 5, 96)), "k": Input((2, 700, 2, 96)), "cos": Input((700, 48)), "sin": Input((700, 48))}),
        Case({"q": Input((1, 900, 3, 40), "bfloat16"), "k": Input((1, 900, 3, 40), "bfloat16"), "cos": Input((900, 20), "bfloat16"), "sin": Input((900, 20), "bfloat16")}),
        Case({"q": Input((0, 8, 2, 16)), "k": Input((0, 8, 1, 16)), "cos": Input((8, 8)), "sin": Input((8, 8))}),
    ),
    "relu2_mlp": (
        Case({"x": Input((3000, 40)), "w_up": Input((500, 40), scale=0.2), "w_down": Input((40, 500), scale=0.05)}),
        Case({"x": Input((3, 900, 24), "bfloat16"), "w_up": Input((70, 24), "bfloat16", scale=0.2), "w_down": Input((130, 70), "bfloat16", scale=0.1)}),
    ),
    "adamw": tuple(
        Case(
            {"param": Input((700, 130)), "grad": Input((700, 130), dtype), "exp_avg": Input((700, 130), dtype), "exp_avg_sq": Input((700, 130), dtype, positive=True)},
            {"step": step},
        )
        for dtype, step in (("float32", 7), ("bfloat16", 1))
    ),
    "nesterov": tuple(
        Case({"momentum": Input((3, 300, 170)), "grad": Input((3, 300, 170), dtype)}, {"beta": 0.8})
        for dtype in ("float32", "bfloat16")
    ),
    "muon_update": tuple(
        Case({"weight": Input((2, 400, 170)), "update": Input((2, 400, 170), dtype, scale=0.05), "size": Input(size, scale=0.003, positive=True)}, {"decay": 0.05})
        for dtype, size in (("float32", (2, 400, 1)), ("bfloat16", (2, 1, 170)))
    ),
}  # fmt: skip


class Call(NamedTuple):
    """One case as both trees are to run it."""

    case: Case
    seed: int
    non_finite: bool  # NaN and infinities in the inputs
    wrt: tuple[str, ...]  # which gradients; none: under no_grad
    used: tuple[str, ...]  # the results that gradients come from
    threads: int


def calls(op: str) -> list[Call]:
    """The same ones each time; gradients, results that are used and threads take turns."""
    rng = random.Random(SEED)
    asked = contract(op)
    drawn = [asked.draw(rng) for _ in range(DRAWN)]
    bare = [replace(case, scalars={}) for case in drawn[:4]]
    large = [*LARGE[op], *asked.trial["cpu"]]
    finite = [*drawn, *bare, *large, *large]
    odd = [asked.draw(rng) for _ in range(NON_FINITE)]
    found = []
    for seed, case in enumerate([*finite, *odd]):
        differentiable = tuple(name for name in asked.differentiable if name in case.inputs)
        without = (
            case.forward_only or seed % 4 == 3 or len(drawn + bare + large) <= seed < len(finite)
        )
        uses = (tuple(asked.results), *((name,) for name in asked.results))
        found.append(
            Call(
                case, seed, seed >= len(finite), () if without else differentiable, uses[seed % len(uses)],
                threads=1 + seed // 2 % 3,
            )
        )  # fmt: skip
    return found


def inputs_of(call: Call) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(call.seed)
    made = {}
    for name, wanted in call.case.inputs.items():
        buffer = torch.zeros(wanted.span() + 1, dtype=getattr(torch, wanted.dtype))
        tensor = buffer.as_strided(wanted.shape, wanted.strides(), int(wanted.layout == "offset"))
        # of an expanded tensor all slices are the first
        own = slice(0, 1 if wanted.layout == "expanded" else None)
        tensor[own].copy_(wanted.values(generator)[own])
        if call.non_finite and tensor.is_floating_point():
            for value in (math.nan, math.inf, -math.inf)[: 1 + call.seed % 3]:
                at = tuple(int(torch.randint(n, (), generator=generator)) for n in tensor.shape)
                tensor[at] = value
        made[name] = tensor
    return made


def results_of(op: str, function: Any, double: bool = False) -> Iterator[dict[str, Tensor] | str]:
    """Results and gradients call by call; the name of the exception where there was one."""
    for call in calls(op):
        torch.set_num_threads(call.threads)
        inputs = inputs_of(call)
        if double:
            inputs = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
        try:
            yield _result_of(op, call, function, inputs)
        except Exception as error:
            # whatever a mutant raises is its result
            yield type(error).__name__


def _result_of(op: str, call: Call, function: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    arguments = {n: t.detach().requires_grad_(n in call.wrt) for n, t in inputs.items()}
    with torch.set_grad_enabled(bool(call.wrt)):
        made = function(**arguments, **call.case.scalars)
        if made is None:  # the arguments are the results
            made = tuple(arguments[name] for name in contract(op).updates)
        made = made if isinstance(made, tuple) else (made,)
        found = dict(zip(contract(op).results, made, strict=True))
        used = [found[name] for name in call.used]
        generator = torch.Generator().manual_seed(call.seed)
        # rounded to 8 bits, so that it is the same number in every dtype
        upstream = [torch.randn(r.shape, generator=generator).bfloat16().to(r.dtype) for r in used]
        if call.wrt:
            wanted = [arguments[name] for name in call.wrt]
            gradients = torch.autograd.grad(used, wanted, upstream, allow_unused=True)
            for name, gradient in zip(call.wrt, gradients, strict=True):
                found[f"d{name}"] = torch.zeros(0) if gradient is None else gradient
    return {name: t.detach().clone() for name, t in found.items()}


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
    worst, detail, far = "equal", f"{len(before)} calls", 0.0
    truths = results_of(op, contract(op).reference, double=True)
    for call, a, b, truth in zip(calls(op), before, after, truths, strict=True):
        if _same(a, b):
            continue
        found, distance = _of_call(op, call, a, b, truth)
        far = max(far, distance)
        if ORDER.index(found) > ORDER.index(worst):
            ways = "no_grad" if not call.wrt else f"gradients of {'+'.join(call.used)}"
            worst = found
            detail = f"{op} {call.case.label()}, {ways}, {call.threads} threads"
    return worst, f"{far:.2g} x the original's error; {detail}" if far else detail


def _of_call(op: str, call: Call, a: Any, b: Any, truth: Any) -> tuple[str, float]:
    """(verdict, distance in units of the original's error) of one call whose results have not the same bits."""
    other = "non-finite" if call.non_finite else "different"
    if isinstance(a, str) or isinstance(b, str) or isinstance(truth, str):
        return other, 0.0
    criterion = contract(op).criterion
    if criterion is not None and not call.non_finite:
        inputs = {name: t.double() for name, t in inputs_of(call).items()}
        wrong = criterion(call.case, inputs, truth["O"])(b["O"].double())
        return other if wrong else "property", 0.0
    distance = max(_distance(a[name], b[name], truth[name]) for name in a)
    if call.non_finite:
        return "rounding" if distance <= ROUNDING else other, 0.0
    return "rounding" if distance <= ROUNDING else other, distance


def _same(a: dict[str, Tensor] | str, b: dict[str, Tensor] | str) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return all(
        a[n].shape == b[n].shape
        and a[n].dtype == b[n].dtype
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
