"""How sure a measured ratio is: a bootstrap over blocks of consecutive rounds, for one shape and for a weighted mix of shapes.

What else a machine does only ever adds to a block's time: half of the blocks of equal kernels lie within 10 % above the fastest and the rest up to
45 %. So an arm's time is the mean of the fastest third of its blocks, which scatters from comparison to comparison by 0.9 % where the middle
of the paired ratios does by 1.5 % (results/LOG.md). That says nothing of a kernel which is fast in one block of three, so that
bench/speed.py holds it against what is `typical`, the middle half of the paired ratios. results/timer.md has how often all this is wrong.

Noise of a machine lasts longer than a round (another process has a core for a while), so that rounds that follow each other are alike:
what is resampled are runs of them, sqrt(rounds) long, and not single ones. The bootstrap gives the standard error; the interval is as
wide as Student's t with as many degrees of freedom as there are runs, because the quantiles of a bootstrap over few runs are too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

BOOTSTRAP = 1000

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
        """Chance that the interval will exclude 1 on either side, if a measurement of which this is a `share` goes on as it began."""
        last = self.error * math.sqrt(share)
        bound = float(stats.t.ppf((1 + level) / 2, self.freedom / share)) * last
        spread = max(last * math.sqrt(1 - share), 1e-12)
        below, above = ((-bound - self.log) / spread, (self.log - bound) / spread)
        return float(stats.norm.cdf(below) + stats.norm.cdf(above))


def logs(samples: Mapping[str, Sequence[float]], over: str, under: Sequence[str]) -> Numbers:
    """(arms, rounds): the logarithms of an arm's times, and below them those of the arms that it is held against."""
    found: Numbers = np.log([samples[name] for name in (over, *under)])
    return found


def fast(times: Numbers) -> Numbers:
    """(arms, ..., rounds) to the log ratio of the fastest third of an arm's blocks to those of the others, (...)."""
    third = max(1, times.shape[-1] // 3)
    means = np.partition(times, third - 1, axis=-1)[..., :third].mean(axis=-1)
    found: Numbers = means[0] - means[1:].mean(axis=0)
    return found


def typical(times: Numbers) -> Numbers:
    """The same of the middle half of the ratios round by round."""
    ratios = np.sort(times[0] - times[1:].mean(axis=0), axis=-1)
    quarter = ratios.shape[-1] // 4
    found: Numbers = ratios[..., quarter : ratios.shape[-1] - quarter].mean(axis=-1)
    return found


def estimate(cases: Sequence[Numbers], weights: Sequence[float], statistic: Statistic) -> Estimate:
    """Of the `logs` of each case, and the shares of the incumbent's time that its cases have (of any sum)."""
    share = np.asarray(weights) / np.sum(weights)
    generator = np.random.default_rng(0)
    centre = float(share @ np.exp([float(statistic(x)) for x in cases]))
    drawn = share @ np.exp([statistic(_resampled(x, generator)) for x in cases])
    # Each case has as many degrees of freedom as runs less one, pooled as Satterthwaite does where cases are equally noisy.
    freedoms = np.array([x.shape[-1] / _run(x) - 1 for x in cases])
    freedom = float(np.sum(share**2) ** 2 / np.sum(share**4 / freedoms))
    error = float(np.std(np.log(drawn), ddof=1)) * math.sqrt(1 + 1 / freedom)
    return Estimate(math.log(centre), error, freedom)


def _run(times: Numbers) -> int:
    """Rounds that are drawn together."""
    return round(math.sqrt(times.shape[-1]))


def _resampled(times: Numbers, generator: np.random.Generator) -> Numbers:
    """(arms, resamples, rounds); runs begin anywhere, and go on at the beginning after the last round."""
    rounds, length = times.shape[-1], _run(times)
    starts = generator.integers(0, rounds, (BOOTSTRAP, -(-rounds // length), 1))
    drawn = (starts + np.arange(length)).reshape(BOOTSTRAP, -1)[:, :rounds] % rounds
    found: Numbers = times[:, drawn]
    return found
