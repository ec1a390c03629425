"""What a comparison of speed concludes, and when one kernel is called faster than another.

An interval knows how much new processes of the same runners differ. What runners themselves differ by (their first process, of which all others are
copies, and most of the memory that they are lent) it hardly sees. So what differs from 1 by less than NEAR is compared once more, by
runners that are started anew, as soon as an interval of ASKED_AGAIN says that it differs; what decides is the mean of the two, and its error is no
less than what they differ by (results/LOG.md has how often all this is wrong).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.clocks import Reading

CONFIDENCE = 0.995  # of the interval that decides
ASKED_AGAIN = 0.95  # of the interval of the first start: where it excludes 1 by less than NEAR, there is a second
NEAR = 0.10  # no runner has differed from another of the same kernel by as much
SHAPE_SHARE = 0.05  # so much slower may a shape of the model become for what others win

Figures = dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """Candidate time / incumbent time in the trial's mix of calls: below one is faster. `low` and `high` bound it with CONFIDENCE, and are
    further apart by half of what the incumbent differs from itself, where that is more than noise (`placebo`: that ratio, and its bounds).

    Of two starts of the runners all ratios are the mean.

    shapes:         each shape's own ratio, times (of the first start), and how often a step calls it, in the contract's order
    arms:           of the last start's incumbent and candidate the seconds of import and first calls, the largest memory in MB, the processors
                    that were busy with it while it was asked (less than one where other work took them), and 1 where it had precedence and a core for
                    each thread
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
