"""Figures with their 95 % intervals and the number of runs behind them: what may be printed as a gain, and nothing less.

A mean of few paired runs knows its own spread badly: three pairs alone have an interval 4.3 standard errors wide to each side. So the
spread is pooled over groups of runs that differ in seed alone, and the interval is Student's with the degrees of freedom of all of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """One standard deviation of a single run, and the degrees of freedom of that estimate (0: nothing is known)."""

    deviation: float
    degrees: int

    @classmethod
    def pooled(cls, groups: Sequence[Sequence[float]]) -> Spread:
        """Over groups of runs, each around its own mean."""
        told = [group for group in groups if len(group) > 1]
        degrees = sum(len(group) - 1 for group in told)
        squares = math.fsum(statistics.variance(group) * (len(group) - 1) for group in told)
        return cls(math.sqrt(squares / degrees) if degrees else 0.0, degrees)

    @property
    def squares(self) -> float:
        return self.degrees * self.deviation**2

    @property
    def of_difference(self) -> Spread:
        """The spread of the difference of two independent runs."""
        return Spread(math.sqrt(2) * self.deviation, self.degrees)

    def __str__(self) -> str:
        return f"{self.deviation:.4f} (degrees of freedom: {self.degrees})"


@dataclass(frozen=True)
class Figure:
    """An estimate, its bounds, and how many runs it rests on. Bounds are infinite where nothing was repeated."""

    value: float
    low: float
    high: float
    runs: int

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    def exp(self) -> Figure:
        """The ratio whose logarithm this is."""
        return Figure(_exp(self.value), _exp(self.low), _exp(self.high), self.runs)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def mean(values: Sequence[float], spread: Spread) -> Figure:
    """The mean of runs whose spread is known this well."""
    from scipy.special import stdtrit

    centre = statistics.fmean(values)
    if not spread.degrees:
        return Figure(centre, -math.inf, math.inf, len(values))
    quantile = float(stdtrit(spread.degrees, (1 + CONFIDENCE) / 2))
    half = quantile * spread.deviation / math.sqrt(len(values))
    return Figure(centre, centre - half, centre + half, len(values))


def total(figures: Sequence[Figure]) -> Figure:
    """The sum of independent estimates: their distances to each bound add like standard errors, so that a lopsided one stays so."""
    value = math.fsum(f.value for f in figures)
    below = math.hypot(*(f.value - f.low for f in figures))
    above = math.hypot(*(f.high - f.value for f in figures))
    return Figure(value, value - below, value + above, sum(f.runs for f in figures))


def minus(one: Figure, other: Figure) -> Figure:
    """The difference of independent estimates."""
    return total([one, Figure(-other.value, -other.high, -other.low, other.runs)])


def rate(found: int, of: int) -> Figure:
    """A share that was counted, with the exact interval of Clopper and Pearson (1934)."""
    from scipy.special import betaincinv

    if not 0 <= found <= of or not of:
        raise ValueError(
            f"rate(found, of): expected 0 <= found <= of and of > 0, got {found} of {of}"
        )
    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(found, of - found + 1, tail)) if found else 0.0
    high = float(betaincinv(found + 1, of - found, 1 - tail)) if found < of else 1.0
    return Figure(found / of, low, high, of)
