"""What a comparison of speed concludes, and when one kernel is called faster than another.

An interval of CONFIDENCE decides. It comes from how much the parts of a measurement differ, so it misses what all parts share: the processes that
the others are forked from, and most of the memory these are lent (on a GPU, where none is forked, all processes). APART stands for that. With it,
599 comparisons of equal kernels lie 0.72 % from 1 (root mean square), and their intervals reach 2.6 % to either side (median).

Several looks at one interval err more often than one look, and a ratio that ended early is likely to be too far from 1. results/timer.md says
how often all this is wrong.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bench.clocks import Reading
from bench.ratio import Estimate, Statistic, both, estimate, logs, typical
from bench.rounds import Measured, Samples

CONFIDENCE = 0.997  # at each of up to four looks
APART = 0.003  # standard deviation of a ratio's logarithm
SHAPE_SHARE = 0.05  # by so much may one of the model's shapes become slower for what others win
# With this confidence the incumbent differs from itself: its two processes lie unequally in memory, or the machine is too busy.
PLACEBO_CONFIDENCE = 0.99

Figures = dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """Candidate time / incumbent time in the trial's mix of calls: below one is faster. `low` and `high` bound it with CONFIDENCE. Where the
    incumbent differs from itself by more than noise (`placebo`: that ratio and its bounds), each moves out by half of that difference.

    shapes:         each shape's own ratio, times, and how often a step calls it, in the contract's order
    arms:           of incumbent and candidate: "cold_s", seconds of import and first calls; "peak_mb", the largest memory; "processors", how many
                    were busy with it while it was asked (fewer than one where other work took them); and 1 or 0 for "first_in_line" (it had
                    precedence), "spread" (a core for each thread) and "alike" (its memory lies where that of the others does)
    typical:        the ratio in the middle half of all rounds alone, of which the ratio itself is but one part (bench/ratio.py)
    wall, thread:   the same ratio by the clock on the wall and by processor time alone
    stopped:        why no further rounds were run
    clocks:         a GPU's before and after
    parts:          of the time, on a CPU each with processes of its own
    """

    ratio: float
    low: float
    high: float
    shapes: list[dict[str, Any]]
    seconds: float
    arms: dict[str, Figures] = field(default_factory=dict)
    placebo: Figures = field(default_factory=dict)
    typical: Figures = field(default_factory=dict)
    wall: Figures = field(default_factory=dict)
    thread: Figures = field(default_factory=dict)
    stopped: str = ""
    clocks: list[Reading] = field(default_factory=list)
    parts: int = 1

    @property
    def blocks(self) -> int:
        """Blocks of calls behind the ratio, over all shapes."""
        return sum(int(shape["blocks"]) for shape in self.shapes)

    @property
    def faster(self) -> bool:
        """Beyond the interval, and denied neither by the clock on the wall nor by what is typical.

        Each denies what lies beyond its own interval: time that only seems to have been waited for a core, blocks that are fast now and then.
        """
        denied = any(other.get("low", 0.0) > self.high for other in (self.wall, self.typical))
        return self.high < 1.0 and not denied

    @property
    def slower(self) -> bool:
        return self.low > 1.0

    @property
    def unsteady(self) -> bool:
        """Whether the incumbent was not as fast as itself."""
        return bool(self.placebo) and not self.placebo["low"] <= 1.0 <= self.placebo["high"]

    @property
    def lagging(self) -> list[dict[str, Any]]:
        """Shapes of the model that became slower by more than SHAPE_SHARE, beyond their interval."""
        return [s for s in self.shapes if s["ratio"] > 1 + SHAPE_SHARE and s["low"] > 1.0]


def concluded(
    measured: Sequence[Measured],
    *,
    seconds: float,
    arms: dict[str, Figures],
    stopped: str,
    clocks: list[Reading],
) -> Comparison:
    """What the cases say together."""
    low, high = bounds(measured, CONFIDENCE)
    return Comparison(
        ratio=mix(measured).ratio,
        low=low,
        high=high,
        shapes=[_row(found) for found in measured],
        seconds=seconds,
        arms=arms,
        placebo=_figures(_placebo(measured), PLACEBO_CONFIDENCE),
        typical=_figures(mix(measured, statistic=typical), CONFIDENCE),
        wall=_figures(mix(measured, "wall"), CONFIDENCE),
        thread=_figures(mix(measured, "thread"), CONFIDENCE),
        stopped=stopped,
        clocks=clocks,
        parts=len(measured[0].parts),
    )


def mix(measured: Sequence[Measured], clock: str = "row", statistic: Statistic = both) -> Estimate:
    """The candidate's share of the incumbent's time, in the mix of a step."""
    return _of(measured, clock, "candidate", ("incumbent", "placebo"), statistic)


def bounds(measured: Sequence[Measured], level: float) -> tuple[float, float]:
    """Of the mix: its interval, with APART, and half of what the incumbent's two runners differ by to either side, where that is more than noise."""
    found = mix(measured)
    low, high = replace(found, error=math.hypot(found.error, APART)).interval(level)
    placebo = _placebo(measured)
    below, above = placebo.interval(PLACEBO_CONFIDENCE)
    differ = 1.0 if below <= 1.0 <= above else math.exp(abs(placebo.log) / 2)
    return low / differ, high * differ


def excludes_one(interval: tuple[float, float]) -> bool:
    low, high = interval
    return not low <= 1.0 <= high


def _placebo(measured: Sequence[Measured]) -> Estimate:
    return _of(measured, "row", "placebo", ("incumbent",), both)


def _of(
    measured: Sequence[Measured], clock: str, over: str, under: Sequence[str], statistic: Statistic
) -> Estimate:
    times = [logs(getattr(case, clock), over, under) for case in measured]
    parts = [np.split(x, case.parts[:-1], axis=1) for x, case in zip(times, measured, strict=True)]
    weights = [case.case.calls * statistics.median(case.row["incumbent"]) for case in measured]
    return estimate(list(zip(*parts, strict=True)), weights, statistic)


def _figures(found: Estimate, level: float) -> dict[str, float]:
    return _rounded(found.ratio, *found.interval(level))


def _rounded(ratio: float, low: float, high: float) -> dict[str, float]:
    return {"ratio": round(ratio, 4), "low": round(low, 4), "high": round(high, 4)}


def _row(found: Measured) -> dict[str, Any]:
    """Of one case, what is reported."""

    def ms(samples: Samples, name: str) -> float:
        return round(1e3 * statistics.median(samples[name]), 4)

    row: dict[str, Any] = {
        "case": found.case.label(),
        "calls": found.case.calls,
        **_rounded(mix([found]).ratio, *bounds([found], CONFIDENCE)),
        "incumbent_ms": ms(found.row, "incumbent"),
        "candidate_ms": ms(found.row, "candidate"),
        "blocks": found.rounds(),
    }
    if found.forward["candidate"]:
        row["incumbent_forward_ms"] = ms(found.forward, "incumbent")
        row["candidate_forward_ms"] = ms(found.forward, "candidate")
    return row
