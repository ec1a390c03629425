"""Differences candidate minus incumbent, paired by seed, and what they prove. Noise is estimated, so everything here is Student's t.

The spread of a difference is pooled from the noise of the campaign and from the scatter of the differences themselves. Where seeds move all
trees alike, that overstates the spread, and the error rates are lower than stated. Where a candidate is noisier than its incumbent it understates
the spread: p-values and e-values claim too much (results/verdict.md). Three pairs are too few to measure a candidate's own noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import special

from bench import interval
from bench.interval import Figure, Spread
from bench.noise import MIN_NOISE_BPB

MIXTURE = 2.0  # prior spread of true effects, in units of the spread of a difference


@dataclass(frozen=True)
class Paired:
    """Differences of val_bpb, one for each seed (below zero: a gain), and the noise of a single trial."""

    differences: Sequence[float]
    noise: Spread

    @property
    def pairs(self) -> int:
        return len(self.differences)

    @property
    def mean(self) -> float:
        return math.fsum(self.differences) / self.pairs

    @property
    def degrees(self) -> int:
        return self.noise.degrees + self.pairs - 1

    @property
    def spread(self) -> float:
        """One standard deviation of a difference."""
        scatter = math.fsum((d - self.mean) ** 2 for d in self.differences)
        # a difference of two trials has twice the variance of one
        squares = 2 * self.noise.squares + scatter
        return max(math.sqrt(2) * MIN_NOISE_BPB, math.sqrt(squares / max(1, self.degrees)))

    @property
    def error(self) -> float:
        return self.spread / math.sqrt(self.pairs)

    def p_below(self, bound: float = 0.0) -> float:
        """How often chance shows a mean as low as this where the truth is `bound` or more; 1 where nothing is known of the noise."""
        if not self.degrees:
            return 1.0
        return float(special.stdtr(self.degrees, (self.mean - bound) / self.error))

    def p_above(self) -> float:
        """The same for a mean as high as this where the truth is 0 or less."""
        return Paired([-d for d in self.differences], self.noise).p_below()

    def figure(self) -> Figure:
        """The mean, and where the true difference lies."""
        return interval.mean(self.differences, Spread(self.spread, self.degrees))

    def e_value(self) -> float:
        """Evidence for a gain against "there is none": at most one on average without one, wherever one stops looking, if both are equally noisy.

        A Bayes factor with a half normal prior on the effect in units of the spread and Jeffreys' prior on the spread
        (the t-mixture of Lai 1976; Wang and Ramdas 2024).
        """
        if not self.degrees:
            return 1.0
        n, freedom = self.pairs, self.noise.degrees + self.pairs
        gain = -math.fsum(self.differences)
        # the least noise is in this spread already, so that luck cannot make it nothing
        scatter = self.spread**2 * self.degrees
        whole = scatter + gain**2 / n
        shrunk = MIXTURE**2 / (1 + n * MIXTURE**2)
        rest = whole - gain**2 * shrunk
        log_e = freedom / 2 * math.log(whole / rest) - math.log(1 + n * MIXTURE**2) / 2
        positive = special.stdtr(freedom, gain * shrunk / math.sqrt(shrunk * rest / freedom))
        return float(2 * math.exp(min(log_e, 700.0)) * positive)
