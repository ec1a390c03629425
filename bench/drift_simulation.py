"""`python -m bench.drift_simulation`: how old may the incumbent's trial be when a candidate meets it? Writes results/drift.md.

A machine changes now and then: a neighbour comes or goes, the clock is throttled. What was measured before does not hold after. Before a keep
the incumbent is always run again, so that no change of the machine is kept for a gain; its age matters for the gains that a slower machine
hides. Nights are played with the functions that the loop calls, on a simulated wall clock, and the real gains that are found are counted: too
few are found where the incumbent is old, and too few where the night is spent on running it again.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

from bench import ROOT, paragraphs
from bench.drift import drifted
from bench.plan import BASELINES, RECHECK_S
from bench.trial_result import TrialResult
from bench.verdict_simulation import Campaign, Tree, Tried, sigma

NIGHT_S = 8 * 3600.0
GATES_S = 40.0  # a proposal on its way to the trial
OVERHEAD_S = 8.0  # of a trial: set-up, scoring
REAL = 10  # one proposal in so many gains 3 sigma
# What e times as many tokens win: a tenth more of them wins 0.01 BPB, twice the noise of a difference.
BPB_PER_EFOLD = 0.1
JUMP = 0.1  # one standard deviation of log speed, from one state of the machine to the next
NIGHTS = 24
LENGTHS_S = (15.0, 300.0)
AGES_S = (0.0, 180.0, 900.0, 1800.0, 3600.0, NIGHT_S)
REPORT = ROOT / "results" / "drift.md"


@dataclass(frozen=True)
class Counted:
    """What a night came to."""

    found: int
    real: int
    false: int
    nulls: int
    again_s: float


class Aging(Campaign):
    """A night on a machine that changes every `stay_s` or so."""

    def __init__(self, rng: random.Random, trial_s: float, age_s: float, stay_s: float) -> None:
        self.clock = self.again_s = 0.0
        self._cost, self._age, self._stay = trial_s + OVERHEAD_S, age_s, stay_s
        self._log_speed, self._until = 0.0, rng.expovariate(1 / stay_s)
        self._at: dict[str, float] = {}  # of the trial on the first seed, by tree
        super().__init__(rng)

    def night(self) -> Counted:
        found = real = false = nulls = number = 0
        while self.clock < NIGHT_S:
            number += 1
            worth = number % REAL == 0
            kept = self.propose(3 * sigma() if worth else 0.0).kept
            found, real = found + (kept and worth), real + worth
            false, nulls = false + (kept and not worth), nulls + (not worth)
        return Counted(found, real, false, nulls, self.again_s)

    def propose(self, effect: float, target: str = "model") -> Tried:
        self.clock += GATES_S
        self._recheck(self._age)
        candidate, began = self.candidate(effect), self.clock
        tried = self.pairs(candidate, target)
        if tried.kept and self._recheck(self.clock - began):
            tried = self.pairs(candidate, target)
        if tried.kept:
            self.incumbent = candidate
        return tried

    def _recheck(self, older_s: float) -> bool:
        """Whether the machine has changed since the incumbent's first trial; then all figures are void."""
        before = self.incumbent.trials.get(0)
        if before is None or self.clock - self._at[self.incumbent.name] <= older_s:
            return False
        started = self.clock
        self.incumbent.trials.pop(0)
        now = self._trial(self.incumbent, 0)
        self.again_s += self.clock - started
        if not drifted(before, now, self.noise()):
            return False
        for tree in self._trees:
            tree.trials.clear()
        self.incumbent.trials[0] = now
        return True

    def _trial(self, tree: Tree, seed: int) -> TrialResult:
        if seed in tree.trials:
            return tree.trials[seed]
        self.clock += self._cost
        while self.clock > self._until:
            self._log_speed = self._rng.gauss(0.0, JUMP)
            self._until += self._rng.expovariate(1 / self._stay)
        made = super()._trial(tree, seed)
        tree.trials[seed] = replace(
            made,
            val_bpb=made.val_bpb - BPB_PER_EFOLD * self._log_speed,
            tokens_per_second=1000 * math.exp(self._log_speed),
        )
        if seed == 0:
            self._at[tree.name] = self.clock
        return tree.trials[seed]


def nights(trial_s: float, age_s: float, stay_s: float) -> list[Counted]:
    rng = random.Random(5)
    return [Aging(rng, trial_s, age_s, stay_s).night() for _ in range(NIGHTS)]


def report() -> Iterator[str]:
    """The parts of results/drift.md."""
    yield "# The age of an incumbent, simulated"
    yield (
        f"Written by `python -m bench.drift_simulation`: {NIGHTS} nights of {NIGHT_S / 3600:g} hours for each row, {BASELINES} baselines "
        f"first. One proposal in {REAL} gains 3 sigma of a paired difference.\n"
        f"The machine takes another speed ({JUMP:.0%}, one standard deviation) after 30 minutes, or 4 hours, on average. Gains found are per "
        "night, with one standard error."
    )
    for stay_s in (1800.0, 14400.0):
        yield f"## The machine changes every {stay_s / 3600:g} hours"
        yield "| trial | age at which the incumbent is run again | gains found | of the real ones | false keeps | time spent on it |"
        yield "|--:|--:|--:|--:|--:|--:|"
        for trial_s in LENGTHS_S:
            for age_s in AGES_S:
                yield _row(trial_s, age_s, nights(trial_s, age_s, stay_s))


def _row(trial_s: float, age_s: float, found: list[Counted]) -> str:
    each = [night.found for night in found]
    error = statistics.stdev(each) / math.sqrt(len(each))
    share = sum(each) / sum(n.real for n in found)
    false = sum(n.false for n in found) / sum(n.nulls for n in found)
    spent = statistics.fmean(n.again_s for n in found) / NIGHT_S
    name = "never" if age_s == NIGHT_S else f"{age_s / 60:g} min"
    here = " (the rule)" if age_s == RECHECK_S else ""
    return f"| {trial_s:g} s | {name}{here} | {statistics.fmean(each):.1f} ± {error:.1f} | {share:.0%} | {false:.2%} | {spent:.1%} |"


if __name__ == "__main__":
    paragraphs.command("bench.drift_simulation", __doc__, report(), REPORT)
