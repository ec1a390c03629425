"""How sure a measured ratio is: from how much its parts differ, for one shape and for a weighted mix of shapes.

Other work on a machine only ever adds to a block's time: half of the blocks of equal kernels lie within 10 % above the fastest, the rest up to
45 %, a few at twice its time. So one statistic is `fast`: arm by arm, the mean of the faster half of the blocks. Another is `typical`: the mean
of the middle half of the ratios round by round, which what disturbs all arms of a round does not change. The ratio is the mean of the two: in 22
comparisons on a busy Zen 4 its errors are 0.37 % (root of the mean square), with `fast` alone 0.43. A kernel that is fast in one block of two is
not so in the middle half: bench/speed.py compares the ratio with that. results/timer.md says how often all this is wrong.

Processes of one kernel differ, by 0.3 to 2.7 % (standard deviation, three processors, results/HISTORY.md), since code and memory lie elsewhere in
each. And noise of a machine lasts longer than a round. The scatter of blocks within one process shows neither. So a measurement has parts that
share neither (on a GPU, where no process is forked, they share the process), and its error comes from leaving out one part after the other (the
jackknife; Efron and Stein, 1981), with Student's t. In simulation that error is up to 13 % too small (results/HISTORY.md). A ratio for each part
alone would need more rounds: a part of a slow op has three, and one of them at twice the time is no rarity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

STRETCHES = 12

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Statistic = Callable[[Numbers], Numbers]


@dataclass(frozen=True)
class Estimate:
    """The logarithm of a ratio, its standard error and the degrees of freedom behind that."""

    log: float
    error: float
    freedom: float

    @property
    def ratio(self) -> float:
        return math.exp(self.log)

    def interval(self, level: float) -> tuple[float, float]:
        """Bounds of the ratio; `level` as 0.99."""
        reach = float(stats.t.ppf((1 + level) / 2, self.freedom)) * self.error
        return math.exp(self.log - reach), math.exp(self.log + reach)

    def chance(self, level: float, share: float) -> float:
        """Chance that the interval will exclude 1 on either side, if a measurement goes on as it began; this is the `share` of it so far."""
        last = self.error * math.sqrt(share)
        bound = float(stats.t.ppf((1 + level) / 2, self.freedom / share)) * last
        spread = max(last * math.sqrt(1 - share), 1e-12)
        below, above = ((-bound - self.log) / spread, (self.log - bound) / spread)
        return float(stats.norm.cdf(below) + stats.norm.cdf(above))


def logs(samples: Mapping[str, Sequence[float]], over: str, under: Sequence[str]) -> Numbers:
    """(arms, rounds): the logarithms of the times of the arm `over`, and below them those of the arms `under` that it is compared with."""
    found: Numbers = np.log([samples[name] for name in (over, *under)])
    return found


def fast(times: Numbers) -> Numbers:
    """(arms, rounds) -> the log ratio of the faster half of an arm's blocks to that of the others."""
    half = -(-times.shape[-1] // 2)
    means = np.partition(times, half - 1, axis=-1)[..., :half].mean(axis=-1)
    found: Numbers = means[0] - means[1:].mean(axis=0)
    return found


def typical(times: Numbers) -> Numbers:
    """As `fast`, from the middle half of the ratios round by round, to each other arm by itself: the mean of two arms has another skew than one."""
    ratios = np.sort(times[0] - times[1:], axis=-1)
    quarter = ratios.shape[-1] // 4
    found: Numbers = ratios[..., quarter : ratios.shape[-1] - quarter].mean()
    return found


def both(times: Numbers) -> Numbers:
    """The mean of the two."""
    return (fast(times) + typical(times)) / 2


def estimate(
    parts: Sequence[Sequence[Numbers]], weights: Sequence[float], statistic: Statistic
) -> Estimate:
    """From parts (two at least), each with the `logs` of every case; `weights`: the cases' shares of the incumbent's time, of any sum."""
    share = np.asarray(weights) / np.sum(weights)

    def mix(some: Iterable[Sequence[Numbers]]) -> float:
        cases = [np.concatenate(each, axis=1) for each in zip(*some, strict=True)]
        return math.log(share @ np.exp([float(statistic(case)) for case in cases]))

    n = len(parts)
    without = [mix([*parts[:i], *parts[i + 1 :]]) for i in range(n)]
    return Estimate(mix(parts), math.sqrt((n - 1) * float(np.var(without))), n - 1)


def stretches(times: Numbers) -> list[list[Numbers]]:
    """Rounds of one case and one process (four at least), cut into parts that follow each other."""
    return [[part] for part in np.array_split(times, min(STRETCHES, times.shape[-1] // 2), axis=1)]
