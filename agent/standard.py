"""What a change has to show, which depends on who proposed it.

A proposal has to be better. The removal of a keep, which `prune` proposes, has to leave things no worse: the rule is reversed:
the keep has to win its place once more, by the same verdict, on seeds that chose nothing. A placebo has to be better too, but is
always measured to the end: what the timer says of it is recorded, and refuses it only after the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agent import gates
from agent.judging import Judging
from agent.records import Candidate, GateResult
from agent.seeds import fresh
from bench.finding import Finding

if TYPE_CHECKING:
    from bench.interval import Spread
    from bench.trial_result import TrialResult
    from bench.verdict import Verdict

PRUNE, PLACEBO = "prune", "placebo"
TIMER_REFUSES = "timer_refuses"  # in the evidence of a placebo's microbench


@dataclass(frozen=True)
class Standard:
    """What is asked of a change. (What is right for one call of an op is another Standard, of bench/comparison.py.)"""

    must_win: bool = True  # in the microbench
    # In the verdict, the incumbent (which has the keep) takes the candidate's place.
    turned_round: bool = False
    may_repeat: bool = False  # may be a change that the run has seen
    to_the_end: bool = False  # whatever the timer says
    fresh_seeds: bool = False

    def steps(self, steps: gates.Steps) -> gates.Steps:
        """The gates as this standard takes them."""
        if not self.to_the_end:
            return steps
        return [(name, _told(gate) if name == "microbench" else gate) for name, gate in steps]

    def decide(
        self,
        judge: Judging,
        kind: str,
        comparison: Mapping[str, Any] | None,
        incumbent: Sequence[TrialResult],
        candidate: Sequence[TrialResult],
        noise: Spread,
        *,
        words: int,
    ) -> Verdict:
        """What the paired trials say; `words` is how much code the change adds."""
        if self.turned_round:
            # what the removal adds, the keep has saved
            return _no_worse(judge.decide("model", None, candidate, incumbent, noise, words=-words))
        return judge.decide(kind, comparison, incumbent, candidate, noise, words=words)

    def seeds(self, first: int, count: int, *purpose: object) -> Sequence[int]:
        """Seeds for the paired trials."""
        if self.fresh_seeds:
            return fresh(count, *purpose)
        return range(first, first + count)


def of(proposer: str) -> Standard:
    """The standard for what this proposer proposes."""
    return {PRUNE: NO_WORSE, PLACEBO: MEASURED}.get(proposer, BETTER)


def _no_worse(found: Verdict) -> Verdict:
    """The verdict on a removal, from the verdict on whether the keep wins bits once more.

    The keep cannot win time here: where the removal makes a kernel slower, the microbench has refused it.
    """
    if found.decision == "again":
        return found
    if found.decision == "drop":
        return replace(found, decision="keep", reason=f"no worse without it; with it: {found.reason}")  # fmt: skip
    return replace(found, decision="drop", reason=f"it still pays; with it: {found.reason}")


def _told(gate: gates.Gate) -> gates.Gate:
    """The gate, but with its finding as evidence and never as a refusal."""

    def measure(candidate: Candidate, context: gates.Context) -> Finding:
        found = gate(candidate, context)
        if found.passed:
            return found
        said = f"a placebo goes on where a proposal would be refused: {found.reason}"
        return Finding(True, said, {**found.evidence, TIMER_REFUSES: found.reason})

    return measure


def timer_refuses(results: Sequence[GateResult]) -> str:
    """What stands before the verdict's reason where a placebo went on and a proposal would not have; empty if the microbench passed it."""
    refused = any(TIMER_REFUSES in result.evidence for result in results)
    return "the microbench would have refused it; after it: " if refused else ""


BETTER = Standard()
NO_WORSE = Standard(must_win=False, turned_round=True, may_repeat=True, fresh_seeds=True)
MEASURED = Standard(to_the_end=True)
