"""What an experiment's measurements say of a change: each figure with its bounds (95 %, for times the timer's own) and its number of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agent.records import GateResult
from bench.interval import Figure, Spread, mean, total

if TYPE_CHECKING:
    from bench.trial_result import TrialResult


def comparisons(results: Sequence[GateResult]) -> dict[str, dict[str, Any]]:
    """The comparisons that the microbench left as evidence, by op."""
    return {
        op: found
        for result in results
        if result.name == "microbench"
        for op, found in result.evidence.items()
        if isinstance(found, dict)
    }


def log_ratio(comparison: Mapping[str, Any]) -> Figure:
    """The logarithm of the ratio of times that a comparison found; its runs are blocks of calls, over all shapes."""
    ratio, low, high = (math.log(comparison[name]) for name in ("ratio", "low", "high"))
    return Figure(ratio, low, high, sum(int(shape["blocks"]) for shape in comparison["shapes"]))


def faster(comparison: Mapping[str, Any]) -> bool:
    """Whether the timer called the candidate faster, by its one rule."""
    from bench.speed import Comparison

    known = Comparison.__dataclass_fields__  # an older version's row may hold more
    return Comparison(**{name: value for name, value in comparison.items() if name in known}).faster


def claim(results: Sequence[GateResult]) -> dict[str, Any] | None:
    """The comparison of the op that gained most, of those that the timer called faster if there are any: one is enough for a change to pay."""
    measured = comparisons(results).values()
    return min(measured, key=lambda c: (not faster(c), float(c["ratio"])), default=None)


def timed(results: Sequence[GateResult]) -> dict[str, Any]:
    """The fields of an Outcome that come from timing: the geometric mean over the ops; empty if no op was timed."""
    found = comparisons(results).values()
    if not found:
        return {}
    summed, count = total([log_ratio(each) for each in found]), len(found)
    ratio = Figure(summed.value / count, summed.low / count, summed.high / count, summed.runs).exp()
    return {
        "speed": ratio.value, "speed_low": ratio.low, "speed_high": ratio.high, "blocks": ratio.runs,
    }  # fmt: skip


def trained(
    incumbents: Sequence[TrialResult],
    candidates: Sequence[TrialResult],
    noise: Spread,
    log_rate: Spread,
) -> dict[str, Any]:
    """The fields of an Outcome that come from trials, paired by position.

    BPB has the bounds that the verdict uses, tokens/s those from `log_rate`, the spread of a single trial.
    """
    from bench.paired import Paired

    together = list(zip(incumbents, candidates, strict=True))
    change = Paired([c.val_bpb - i.val_bpb for i, c in together], noise).figure()
    logs = [math.log(c.tokens_per_second / i.tokens_per_second) for i, c in together]
    rate = mean(logs, log_rate.of_difference).exp()
    return {
        "bpb_change": change.value, **_bounds("bpb", change), "rate": rate.value, **_bounds("rate", rate), "pairs": change.runs,
    }  # fmt: skip


def _bounds(name: str, figure: Figure) -> dict[str, float | None]:
    """Bounds as the ledger keeps them: None where nothing was repeated."""
    known = math.isfinite(figure.half)
    return {f"{name}_low": figure.low if known else None, f"{name}_high": figure.high if known else None}  # fmt: skip
