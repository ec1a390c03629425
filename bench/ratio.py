"""How sure a measured ratio is: a bootstrap over blocks of consecutive rounds, for one shape and for a weighted mix of shapes.

Noise of a machine lasts longer than a round (another process has a core for a while), so that rounds that follow each other are alike:
what is resampled are runs of them, sqrt(rounds) long, and not single ones. A case's log ratio is the mean of the middle half of its rounds. The
bootstrap gives the standard error; the interval is as wide as Student's t with as many degrees of freedom as there are runs, because the
quantiles of a bootstrap over few runs are too narrow. results/timer.md has how often it holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

BOOTSTRAP = 1000

Numbers = np.ndarray[Any, np.dtype[np.float64]]


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


def log_ratios(samples: Mapping[str, Sequence[float]], over: str, under: Sequence[str]) -> Numbers:
    """Round by round: an arm against the geometric mean of others."""
    reference = np.mean([np.log(samples[name]) for name in under], axis=0)
    found: Numbers = np.log(samples[over]) - reference
    return found


def estimate(cases: Sequence[Numbers], weights: Sequence[float]) -> Estimate:
    """Of the log ratios of each case, and the shares of the incumbent's time that its cases have (of any sum)."""
    share = np.asarray(weights) / np.sum(weights)
    generator = np.random.default_rng(0)
    centre = float(share @ np.exp([_middle(x[None])[0] for x in cases]))
    drawn = share @ np.exp([_middle(_resampled(x, generator)) for x in cases])
    # Each case has as many degrees of freedom as runs less one, pooled as Satterthwaite does where cases are equally noisy.
    freedoms = np.array([len(x) / _run(x) - 1 for x in cases])
    freedom = float(np.sum(share**2) ** 2 / np.sum(share**4 / freedoms))
    error = float(np.std(np.log(drawn), ddof=1)) * math.sqrt(1 + 1 / freedom)
    return Estimate(math.log(centre), error, freedom)


def _run(x: Numbers) -> int:
    """Rounds that are drawn together."""
    return round(math.sqrt(len(x)))


def _resampled(x: Numbers, generator: np.random.Generator) -> Numbers:
    """A resample a row; runs begin anywhere, and go on at the beginning after the last round."""
    length = _run(x)
    starts = generator.integers(0, len(x), (BOOTSTRAP, -(-len(x) // length), 1))
    rounds = (starts + np.arange(length)).reshape(BOOTSTRAP, -1)[:, : len(x)] % len(x)
    found: Numbers = x[rounds]
    return found


def _middle(rows: Numbers) -> Numbers:
    """Mean of the middle half of each row: as robust as wanted here, and with less noise than the median."""
    quarter = rows.shape[1] // 4
    found: Numbers = np.sort(rows, axis=1)[:, quarter : rows.shape[1] - quarter].mean(axis=1)
    return found
