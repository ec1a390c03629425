"""What a comparison of speed concludes, and when one kernel is called faster than another.

An interval of CONFIDENCE decides. A comparison that ends without an answer, but with an interval of ASKED_AGAIN that excludes 1, is made once more, by
runners that are started anew: what they differ by (their first process, of which all others are copies, and most of the memory that they
are lent) the first interval hardly saw. Then the mean of the two decides, and its error is no less than what they differ by. Of one start BETWEEN
stands for that: 4 of 132 comparisons of equal kernels had been called different without it, by 0.7 to 1.8 %, on a machine quiet enough to see so little
(results/timer.md has how often all this is wrong).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bench.clocks import Reading
from bench.ratio import Estimate, Statistic, estimate, fast, logs, together, typical
from bench.rounds import Measured, Samples

CONFIDENCE = 0.998
ASKED_AGAIN = 0.95
# By so much the logarithm of a ratio differs from start to start (standard deviation). Ratios of equal kernels scattered by 0.3 to 0.6 % where little
# else did, by 1.1 % in muon_update.
BETWEEN = 0.004
SHAPE_SHARE = 0.05  # so much slower may a shape of the model become for what others win

PLACEBO_CONFIDENCE = 0.99  # with which the incumbent differs from itself: its two processes lie unequally, or the machine is too busy

Figures = dict[str, float]
Starts = Sequence[Sequence[Measured]]  # by start of the runners, and by case


@dataclass(frozen=True)
class Comparison:
    """Candidate time / incumbent time in the trial's mix of calls: below one is faster. `low` and `high` bound it with CONFIDENCE, and are
    further apart by half of what the incumbent differs from itself, where that is more than noise (`placebo`: that ratio, and its bounds).

    Of two starts of the runners all ratios are the mean.

    shapes:         each shape's own ratio, times (of the first start), and how often a step calls it, in the contract's order
    arms:           of the last start's incumbent and candidate the seconds of import and first calls, the largest memory in MB, the processors
                    that were busy with it while it was asked (less than one where other work took them), and 1 where it had precedence, a core for
                    each thread, and its memory where the others have theirs
    typical:        the ratio in the middle of all blocks, where the ratio itself is of the faster half (bench/ratio.py)
    wall, thread:   the same ratio by the clock on the wall and by processor time alone
    stopped:        why no further rounds were run
    clocks:         a GPU's before and after
    parts:          of the time, on a CPU each with processes of its own
    starts:         how often the runners were started
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
    starts: int = 1

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


@dataclass(frozen=True)
class Start:
    """What runners brought that were started once: each case's samples, what is known of the arms, and why it ended."""

    measured: list[Measured]
    arms: dict[str, dict[str, float]]
    stopped: str
    clocks: list[Reading]
    seconds: float

    @property
    def undecided(self) -> bool:
        """Whether it sees a difference, and not so surely that it is an answer."""
        return _excludes(bounds([self.measured], ASKED_AGAIN)) and not _excludes(
            bounds([self.measured], CONFIDENCE)
        )


def concluded(starts: Sequence[Start]) -> Comparison:
    """What all starts say together."""
    measured = [start.measured for start in starts]
    return Comparison(
        mix(measured).ratio,
        *bounds(measured, CONFIDENCE),
        [_row(of_case) for of_case in zip(*measured, strict=True)],
        sum(start.seconds for start in starts),
        starts[-1].arms,
        _figures(_placebo(measured), PLACEBO_CONFIDENCE),
        _figures(mix(measured, statistic=typical), CONFIDENCE),
        _figures(mix(measured, "wall"), CONFIDENCE),
        _figures(mix(measured, "thread"), CONFIDENCE),
        "; started anew: ".join(start.stopped for start in starts),
        [reading for start in starts for reading in start.clocks],
        sum(len(cases[0].parts) for cases in measured),
        len(starts),
    )


def mix(starts: Starts, clock: str = "row", statistic: Statistic = fast) -> Estimate:
    """The candidate's share of the incumbent's time, in the mix of a step."""
    return _of(starts, clock, "candidate", ("incumbent", "placebo"), statistic)


def bounds(starts: Starts, level: float) -> tuple[float, float]:
    """Of the mix: its interval, with what starts differ by, and half of what the incumbent's two runners differ by to either side, where that is
    more than noise."""
    found = mix(starts)
    error = math.hypot(found.error, BETWEEN / math.sqrt(len(starts)))
    low, high = replace(found, error=error).interval(level)
    placebo = _placebo(starts)
    below, above = placebo.interval(PLACEBO_CONFIDENCE)
    apart = 1.0 if below <= 1.0 <= above else math.exp(abs(placebo.log) / 2)
    return low / apart, high * apart


def _excludes(interval: tuple[float, float]) -> bool:
    low, high = interval
    return not low <= 1.0 <= high


def _placebo(starts: Starts) -> Estimate:
    return _of(starts, "row", "placebo", ("incumbent",), fast)


def _of(
    starts: Starts, clock: str, over: str, under: Sequence[str], statistic: Statistic
) -> Estimate:
    found = []
    for cases in starts:
        times = [logs(getattr(case, clock), over, under) for case in cases]
        parts = [np.split(x, case.parts[:-1], axis=1) for x, case in zip(times, cases, strict=True)]
        weights = [case.case.calls * statistics.median(case.row["incumbent"]) for case in cases]
        found.append(estimate(list(zip(*parts, strict=True)), weights, statistic))
    return together(found)


def _figures(found: Estimate, level: float) -> dict[str, float]:
    return _rounded(found.ratio, *found.interval(level))


def _rounded(ratio: float, low: float, high: float) -> dict[str, float]:
    return {"ratio": round(ratio, 4), "low": round(low, 4), "high": round(high, 4)}


def _row(starts: Sequence[Measured]) -> dict[str, Any]:
    """Of one case, what is reported; times of the first start."""
    first = starts[0]

    def ms(samples: Samples, name: str) -> float:
        return round(1e3 * statistics.median(samples[name]), 4)

    alone = [[found] for found in starts]
    row: dict[str, Any] = {
        "case": first.case.label(),
        "calls": first.case.calls,
        **_rounded(mix(alone).ratio, *bounds(alone, CONFIDENCE)),
        "incumbent_ms": ms(first.row, "incumbent"),
        "candidate_ms": ms(first.row, "candidate"),
        "blocks": sum(found.rounds() for found in starts),
    }
    if first.forward["candidate"]:
        row["incumbent_forward_ms"] = ms(first.forward, "incumbent")
        row["candidate_forward_ms"] = ms(first.forward, "candidate")
    return row
