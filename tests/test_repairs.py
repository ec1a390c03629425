"""What a proposer's troubles leave: refusals that go back, trips, money without a proposal, a limit of time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from lab_tree import CPP, Rules, Transcript
from scripted_nights import SETTINGS, Move, Scripted, idea, night, rows

from agent import campaign, loop, preparing, proposers, report
from agent.git import GitError
from agent.guard import LoopError
from agent.lab import Lab
from agent.proposers import Context, NoProposal, Stopped
from agent.records import CRASH, KEEP, LOST, REFUSE, GateResult, Proposal
from agent.workspace import Workspace
from bench.finding import Finding


def test_where_a_gate_trips_the_screen_says_over_what_and_where_the_log_is(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trips(Rules):
        def build(self, tree: Path, changed: Sequence[str]) -> Finding:
            if "kRows = 4" in (tree / "csrc/scale.cpp").read_text():
                raise ValueError("no such section")
            return super().build(tree, changed)

    screen = night(lab, monkeypatch, Scripted([idea(rows(4))]), Trips())
    (said,) = [line for line in screen.lines if line.startswith("  crash")]
    assert "ValueError: no such section; see " in said


def test_a_refusal_goes_back_to_the_proposer_and_what_it_mends_is_kept(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"csrc/scale.cpp": CPP.replace("kUnroll = 1", "kUnroll = 2")}
    refusals: list[GateResult] = []

    def mend(proposal: Proposal, refusal: GateResult) -> Proposal:
        refusals.append(refusal)
        return replace(proposal, files=rows(4), cost_usd=0.5)

    night(lab, monkeypatch, Scripted([idea(broken)], mend))
    ledger = lab.ledger()
    (experiment,) = ledger.experiments()
    assert [refusal.name for refusal in refusals] == ["build"]
    assert experiment.outcome.status == KEEP
    assert experiment.cost_usd == 0.5
    assert "kRows = 4" in experiment.patch
    assert [gate.passed for gate in experiment.gates].count(False) == 1
    shown = report.status(ledger, ledger.path, lab.root)
    assert f"repaired after build: {refusals[0].reason[:20]}" in shown
    assert shown.count("passed scope") == 1


def test_a_proposal_that_stays_broken_is_refused_after_two_repairs(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def mend(proposal: Proposal, refusal: GateResult) -> Proposal:
        asked.append(refusal.reason)
        text = CPP.replace("kUnroll = 1", "kUnroll = 2").replace(
            "kRows = 1", f"kRows = {len(asked)}"
        )
        return replace(proposal, files={"csrc/scale.cpp": text})

    broken = {"csrc/scale.cpp": CPP.replace("kUnroll = 1", "kUnroll = 2")}
    night(lab, monkeypatch, Scripted([idea(broken)], mend))
    (experiment,) = lab.ledger().experiments()
    assert len(asked) == 2
    assert experiment.outcome.status == REFUSE
    assert experiment.refused_by == "build"


def test_money_without_a_proposal_is_a_row_and_the_night_goes_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "LONGEST_PAUSE_S", 0.0)
    nothing = NoProposal("the answer was cut 3 times", model="m", cost_usd=0.25, tokens_in=10)
    night(lab, monkeypatch, Scripted([nothing, idea(rows(4))]))
    first, second = lab.ledger().experiments()
    assert (first.outcome.status, first.cost_usd, first.model) == (CRASH, 0.25, "m")
    assert first.outcome.reason == "no proposal: the answer was cut 3 times"
    assert second.outcome.status == KEEP


def test_a_proposer_from_which_nothing_came_two_thousand_times_is_asked_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2**2000 of half a second is more than a float holds."""
    made = preparing.Preparing.__init__

    def tired(self: preparing.Preparing, *given: Any, **named: Any) -> None:
        made(self, *given, **named)
        self._empty = 2000

    monkeypatch.setattr(preparing.Preparing, "__init__", tired)
    monkeypatch.setattr(preparing, "LONGEST_PAUSE_S", 0.0)
    night(lab, monkeypatch, Scripted([NoProposal("busy"), idea(rows(4))]))
    assert [e.outcome.status for e in lab.ledger().experiments()] == [CRASH, KEEP]


def test_a_proposer_that_trips_leaves_a_row_and_ends_the_night_only_when_it_repeats(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "LONGEST_PAUSE_S", 0.0)
    trips: list[Move] = [KeyError("usage"), idea(rows(4)), *(KeyError("usage") for _ in range(3))]
    with pytest.raises(LoopError, match="3 times in a row scripted failed: KeyError: 'usage'"):
        night(lab, monkeypatch, Scripted(trips))
    rows_of = lab.ledger().experiments()
    assert [e.outcome.status for e in rows_of] == [CRASH, KEEP, CRASH, CRASH, CRASH]
    assert "see " in rows_of[0].outcome.reason


@dataclass
class Away(Scripted):
    """A model that is away after what it was given, and looks at nothing but whether the run ends."""

    stop: threading.Event = field(default_factory=threading.Event)

    def propose(self, context: Context) -> Proposal | None:
        if self.moves:
            return super().propose(context)
        self.stop.wait()
        raise Stopped("stopped while waiting")


def test_a_limit_of_time_ends_a_night_whose_proposer_is_away(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOOK_S", 0.1)
    made = Away([idea(rows(4))])

    def create(name: str, workshop: proposers.Workshop) -> Away:
        made.stop = workshop.stop
        return made

    monkeypatch.setattr(proposers, "create", create)
    screen, began = Transcript(), time.monotonic()
    campaign.run(lab, replace(SETTINGS, proposer="sweep", hours=3 / 3600), screen, Rules())
    assert time.monotonic() - began < 30
    assert any("hours are over" in line for line in screen.lines if line.startswith("ending"))


def test_a_repair_that_trips_is_no_fault_of_the_judge_and_one_that_git_refuses_is_paid(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"csrc/scale.cpp": CPP.replace("kUnroll = 1", "kUnroll = 2")}

    def mend(proposal: Proposal, refusal: GateResult) -> Proposal | None:
        if proposal.hypothesis == "first":
            raise KeyError("usage")
        return replace(proposal, files={"../outside.cpp": "x"}, cost_usd=0.5)

    moves: list[Move] = [
        idea(broken, "first"),
        idea({**broken, "csrc/other.cpp": "int x;\n"}, "second"),
    ]
    screen = night(lab, monkeypatch, Scripted(moves, mend))
    first, second = lab.ledger().experiments()
    assert [first.outcome.status, second.outcome.status] == [REFUSE, REFUSE]
    assert [first.refused_by, second.refused_by] == ["build", "build"]
    assert second.cost_usd == 0.5
    assert any("not repaired: KeyError: 'usage'; see " in line for line in screen.lines)


@pytest.mark.parametrize("words", preparing.FULL)
def test_a_full_disk_is_no_fault_of_the_proposal(
    words: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Workspace, parent: str, proposal: Proposal) -> str:
        raise GitError(f"git hash-object: error: {words}")

    monkeypatch.setattr(Workspace, "commit", full)
    with pytest.raises(LoopError, match="free space"):
        night(lab, monkeypatch, Scripted([idea(rows(4))]))
    assert [e.outcome.status for e in lab.ledger().experiments()] == [LOST]


def test_a_commit_that_git_does_not_give_back_is_recorded_and_ends_no_night(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate, failing = Workspace.candidate, [GitError("git diff-tree: unable to read tree")]

    def once(self: Workspace, target: str, parent: str, commit: str) -> Any:
        if failing:
            raise failing.pop()
        return candidate(self, target, parent, commit)

    monkeypatch.setattr(Workspace, "candidate", once)
    night(lab, monkeypatch, Scripted([idea(rows(4), "first"), idea(rows(4), "second")]))
    first, second = lab.ledger().experiments()
    assert (first.outcome.status, second.outcome.status) == (REFUSE, KEEP)
    assert "unable to read tree" in first.outcome.reason


def test_each_fault_of_a_proposer_has_a_log_of_its_own(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "LONGEST_PAUSE_S", 0.0)
    broken = {"csrc/scale.cpp": CPP.replace("kUnroll = 1", "kUnroll = 2")}

    def mend(proposal: Proposal, refusal: GateResult) -> Proposal | None:
        raise KeyError("in the repair")

    night(lab, monkeypatch, Scripted([idea(broken), KeyError("in the proposal")], mend))
    logs = [file.read_text() for file in (lab.folder / "runs").glob("*/error-*.log")]
    for words in ("in the repair", "in the proposal"):
        assert sum(words in log for log in logs) == 1
