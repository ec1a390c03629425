"""What a change has to show, which follows from who proposed it.

A proposal has to be better. A kept change that `prune` takes out again has to leave things no worse: its own rule is turned round, so
that the keep has to win its place once more, by the verdict that gave it, on seeds that chose nothing. A placebo has to be better too,
but is always measured to the end: what the timer says of it is written down and refuses it only after the verdict.
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
    from bench.trial import TrialResult
    from bench.verdict import Verdict

PRUNE, PLACEBO = "prune", "placebo"
TIMER_REFUSES = "timer_refuses"  # in the evidence of a placebo's microbench


@dataclass(frozen=True)
class Standard:
    must_win: bool = True  # in the microbench
    # The incumbent, which has the change, takes the candidate's place in the verdict
    turned_round: bool = False
    may_repeat: bool = False  # a change that the run has seen
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
        lines: int,
    ) -> Verdict:
        """What the paired trials say; `lines` is how many the change adds."""
        if self.turned_round:
            return _no_worse(judge.decide("model", None, candidate, incumbent, noise))
        return judge.decide(kind, comparison, incumbent, candidate, noise, lines=lines)

    def seeds(self, first: int, count: int, *purpose: object) -> Sequence[int]:
        """Seeds for the paired trials."""
        if self.fresh_seeds:
            return fresh(count, *purpose)
        return range(first, first + count)


def of(proposer: str) -> Standard:
    """The standard of what this proposer proposes."""
    return {PRUNE: NO_WORSE, PLACEBO: MEASURED}.get(proposer, BETTER)


def _no_worse(found: Verdict) -> Verdict:
    """What is to be done without a change, of a verdict that says whether the change wins bits once more.

    Time it cannot win here: a kernel that is slower without the change has been refused by the microbench.
    """
    if found.decision == "again":
        return found
    if found.decision == "drop":
        return replace(found, decision="keep", reason=f"no worse without it; with it: {found.reason}")  # fmt: skip
    return replace(found, decision="drop", reason=f"it still pays; with it: {found.reason}")


def _told(gate: gates.Gate) -> gates.Gate:
    """The gate's finding as evidence, never as a refusal."""

    def measure(candidate: Candidate, context: gates.Context) -> Finding:
        found = gate(candidate, context)
        if found.passed:
            return found
        said = f"a placebo goes on where a proposal would be refused: {found.reason}"
        return Finding(True, said, {**found.evidence, TIMER_REFUSES: found.reason})

    return measure


def timer_refuses(results: Sequence[GateResult]) -> str:
    """Why a proposal would not have come this far, of a placebo that went on; empty where the microbench let it pass."""
    refused = any(TIMER_REFUSES in result.evidence for result in results)
    return "the microbench would have refused it; after it: " if refused else ""


BETTER = Standard()
NO_WORSE = Standard(must_win=False, turned_round=True, may_repeat=True, fresh_seeds=True)
MEASURED = Standard(to_the_end=True)
