"""`python -m agent trial`: one trial of the working tree as it is, ending with a block of `key: value` lines; or a profile of one step of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import integrity, surface
from agent.judging import Judging, Unfit
from agent.lab import Lab, Unusable
from agent.screen import Screen
from bench.sandbox import processes

if TYPE_CHECKING:
    from bench.trial_result import TrialResult

# Named as autoresearch prints them, so that whatever reads its output reads ours.
_BLOCK = (
    ("val_bpb", "{:.6f}"),
    ("training_seconds", "{:.1f}"),
    ("total_seconds", "{:.1f}"),
    ("peak_memory_mb", "{:.1f}"),
    ("mfu_percent", "{:.2f}"),
    ("total_tokens_M", "{:.3f}"),
    ("num_steps", "{}"),
    ("num_params_M", "{:.2f}"),
    ("depth", "{}"),
    ("tokens_per_second", "{:.0f}"),
)


def run(lab: Lab, judge: Judging, seconds: float, seed: int, screen: Screen) -> TrialResult:
    """Train and score a copy of the working tree."""
    with _built(lab, judge, screen) as tree:
        screen.stage("trial", seconds)
        return judge.trial(tree, seed, screen.progress)


def profile(lab: Lab, judge: Judging, screen: Screen) -> Mapping[str, Any]:
    """Where one training step of a copy of the working tree spends its time."""
    with _built(lab, judge, screen) as tree:
        screen.stage("profiling a step", 30)
        try:
            return judge.profile(None, tree)
        except Unfit as unfit:
            log = str(unfit).strip()
            why = log.splitlines()[-1] if log else "it did not say why"
            raise Unusable(f"{log}\nthe model does not train, so there is no profile: {why}") from None  # fmt: skip


@contextmanager
def _built(lab: Lab, judge: Judging, screen: Screen) -> Iterator[Path]:
    """A copy of the working tree with its kernels built. Raises Tampered in the end if the judge has changed meanwhile."""
    with processes.scratch() as scratch:
        tree, seal = lab.copy_tree(Path(scratch)), integrity.of_judge(lab.root)
        # Into the shared cache, which the trial's own sandbox can only read.
        screen.stage("building the kernels")
        built = judge.build(tree, surface.sources(tree))
        if not built.passed:
            raise Unusable(f"the kernels do not build: {built.reason}")
        yield tree
        integrity.verify(seal)


def block(result: TrialResult) -> str:
    """The figures, one per line; those that a failed trial does not have are left out."""
    lines = [*_head(result)]
    for name, form in _BLOCK:
        value = getattr(result, name)
        unknown = isinstance(value, float) and math.isnan(value)
        if not unknown and (result.ok or value):
            lines.append(f"{name + ':':<19}{form.format(value)}")
    return "\n".join(lines)


def as_json(result: TrialResult) -> str:
    """The whole result; a figure that is not known, or not finite, is null."""
    return json.dumps(_finite(result.as_json()), indent=2)


def _finite(value: Any) -> Any:
    """The value with null for every figure that JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def _head(result: TrialResult) -> Iterator[str]:
    yield "---"
    if result.implementations:
        chosen = ", ".join(f"{op}={name}" for op, name in result.implementations.items())
        yield f"{'implementations:':<19}{chosen}"
    if result.isolation:
        yield f"{'isolation:':<19}{result.isolation}"
    if calls := sum(result.witnessed.values()):
        ops = sum(count > 0 for count in result.witnessed.values())
        yield f"{'held to float64:':<19}{calls} calls that training made, of {ops} op{'s' * (ops > 1)}"
    if not result.ok:
        lines = [line.rstrip() for line in result.detail.splitlines() if line.strip()] or [""]
        said = lines[-1].strip().removeprefix(f"{result.failure}: ")
        yield f"{'failure:':<19}{result.failure}: {said}"
        if lines[:-1]:
            yield "log:"
            yield from (f"  {line}" for line in lines[:-1])
