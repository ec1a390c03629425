"""`python -m agent prune`: the keeps of a run are taken out again, one at a time, and what no longer pays stays out.

A later keep can make an earlier one needless, and some keeps were luck. Each removal is an experiment of the run: its patch is that of the
keep, reversed and merged into the current incumbent. It goes through gates and trial like a proposal, but has only to be no worse
(standard.py); then it becomes a commit of its own on the run's branch. All that is remembered is in the ledger: a stopped prune goes on.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent import merging, standard
from agent.proposers import Context, NoProposal, Workshop
from agent.records import KEEP, LOST, GateResult, Past, Proposal


class Prune:
    """Proposes to take out the keeps of a run, the newest first: what was built on an older one may be gone by its turn."""

    name = standard.PRUNE
    ahead = False  # the next removal starts from how this one ended

    def __init__(self, workshop: Workshop) -> None:
        self._repository = workshop.repository

    def propose(self, context: Context) -> Proposal | None:
        for kept in due([past for past in context.history if past.run == context.run]):
            hypothesis = f"without experiment {kept.number}: {kept.hypothesis}"
            notes = {"without": kept.number}
            # The reverse of what it did: from its commit back to its parent.
            files = merging.onto(self._repository, kept.commit, kept.parent, context.commit)
            if files:
                return Proposal(hypothesis, files, self.name, notes=notes)
            why = (
                "later changes have rewritten its lines, so it cannot be taken out alone"
                if files is None
                else "nothing of it is left"
            )
            raise NoProposal(why, hypothesis=hypothesis, notes=notes)
        return None

    def repair(self, proposal: Proposal, refusal: GateResult) -> Proposal | None:
        """What cannot be taken out stays in."""
        return None


def due(ours: list[Past]) -> Iterator[Past]:
    """The keeps of a run, newest first, that are still in and whose removal was not tried since the latest keep."""
    keeps = [p for p in ours if p.outcome.status == KEEP and p.proposer != standard.PRUNE]
    latest = max((kept.number for kept in keeps), default=0)
    removals = [p for p in ours if p.proposer == standard.PRUNE and p.outcome.status != LOST]
    # A removal that failed before its proposal was made has no note.
    tried = {
        p.notes.get("without") for p in removals if p.number > latest or p.outcome.status == KEEP
    }
    return (kept for kept in reversed(keeps) if kept.number not in tried)
