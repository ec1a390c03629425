"""What was ready: what Ctrl-C, a fault of the machine and the end of a run leave for the next life."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lab_tree import Rules, Transcript, git
from scripted_nights import SETTINGS, Move, Scripted, SlowTrials, idea, night, rate, rows

from agent import campaign, proposers
from agent.lab import Lab
from agent.proposers import Context, Stopped
from agent.records import KEEP, LOST, READY, REFUSE, Proposal
from bench.finding import Finding
from bench.trial_result import TrialResult
from bench.verdict import Verdict


class Pressed(SlowTrials):
    """Ctrl-C in the trial of the first candidate."""

    def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
        found = super().trained(found, tree, seed, split)
        if "kRows = 1" not in (tree / "csrc/scale.cpp").read_text():
            raise KeyboardInterrupt
        return found


class PressedLate(Rules):
    """Ctrl-C while the first verdict is made, when the machine is free and the next proposal has passed its gates."""

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.lab = lab

    def decide(self, *arguments: Any, **more: Any) -> Verdict:
        ledger, deadline = self.lab.ledger(), time.monotonic() + 60
        while READY not in ledger.counts(ledger.run().id) and time.monotonic() < deadline:
            time.sleep(0.02)
        ledger.close()
        raise KeyboardInterrupt


def test_what_was_ready_when_the_loop_was_stopped_is_tried_when_it_goes_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[Move] = [idea(rows(2), "first"), idea(rate(0.02), "second")]
    night(lab, monkeypatch, Scripted(moves), PressedLate(lab))
    ledger = lab.ledger()
    assert [e.outcome.status for e in ledger.experiments()] == [READY, READY]
    git(lab.root, "gc", "--prune=now", "-q")
    monkeypatch.setattr(proposers, "create", lambda name, workshop: Scripted([]))
    campaign.resume(lab, None, {}, Transcript(), Rules())
    assert [e.outcome.status for e in ledger.experiments()] == [KEEP, KEEP]


class Stricter(Rules):
    """The judge after a person has closed a hole in it."""

    def build(self, tree: Path, changed: Sequence[str]) -> Finding:
        sly = "kRows = 4" in (tree / "csrc/scale.cpp").read_text()
        return Finding(not sly, "four rows are a cheat" if sly else "built")


def test_what_was_ready_meets_the_gates_of_now(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    night(lab, monkeypatch, Scripted([idea(rows(2)), idea(rows(4))]), PressedLate(lab))
    monkeypatch.setattr(proposers, "create", lambda name, workshop: Scripted([]))
    judge = Stricter()
    campaign.resume(lab, None, {}, Transcript(), judge)
    kept, refused = lab.ledger().experiments()
    assert (kept.outcome.status, refused.outcome.status) == (KEEP, REFUSE)
    assert "build: four rows are a cheat" in refused.outcome.reason
    assert lab.ledger().run().incumbent == kept.commit


class SlowGates(Rules):
    """Ctrl-C while the first verdict is made and the next proposal is at a gate, which ends when the run has."""

    def __init__(self) -> None:
        super().__init__()
        self.deciding, self.begun, self.stop = (threading.Event() for _ in range(3))

    def build(self, tree: Path, changed: object) -> Finding:  # type: ignore[override]
        if "kRows = 8" in (tree / "csrc/scale.cpp").read_text():
            self.begun.set()
            assert self.stop.wait(20)
        return Finding(True, "built")

    def decide(self, *arguments: Any, **more: Any) -> Verdict:
        self.deciding.set()
        assert self.begun.wait(20)
        raise KeyboardInterrupt


def test_a_candidate_at_the_gates_when_the_run_ends_is_lost_and_not_left_open(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = SlowGates()

    def second(context: Context) -> Proposal:
        # before that its gate would keep the machine from the first
        assert judge.deciding.wait(20)
        return idea(rows(8))

    def create(name: str, workshop: proposers.Workshop) -> Scripted:
        judge.stop = workshop.stop
        return Scripted([idea(rows(2)), second])

    monkeypatch.setattr(proposers, "create", create)
    campaign.run(lab, replace(SETTINGS, proposer="sweep"), Transcript(), judge)
    assert [e.outcome.status for e in lab.ledger().experiments()] == [READY, LOST]
    assert not list((lab.folder / "runs").glob("*/trees"))


def test_a_proposer_that_waits_is_told_that_the_run_has_ended(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = threading.Event()

    class Waiting(Scripted):
        stop: threading.Event

        def propose(self, context: Context) -> Proposal | None:
            if self.moves:
                return super().propose(context)
            self.again.set()
            assert self.stop.wait(20)
            told.set()
            raise Stopped("the run ended")

    proposer = Waiting([idea(rows(2))])

    def create(name: str, workshop: proposers.Workshop) -> Scripted:
        proposer.stop = workshop.stop
        return proposer

    monkeypatch.setattr(proposers, "create", create)
    campaign.run(lab, replace(SETTINGS, proposer="sweep"), Transcript(), Pressed(proposer))
    assert told.wait(5)


class PressedAtTheGates(Rules):
    """Ctrl-C while the gates look once more at what was ready."""

    def build(self, tree: Path, changed: Sequence[str]) -> Finding:
        if "kRows = 4" in (tree / "csrc/scale.cpp").read_text():
            raise KeyboardInterrupt
        return super().build(tree, changed)


def test_ctrl_c_before_its_trial_leaves_what_was_ready_waiting(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposer = Scripted([idea(rows(4))])
    night(lab, monkeypatch, proposer, Pressed(proposer))
    monkeypatch.setattr(proposers, "create", lambda name, workshop: Scripted([]))
    campaign.resume(lab, None, {}, Transcript(), PressedAtTheGates())
    assert lab.ledger().experiments()[-1].outcome.status == READY
    campaign.resume(lab, None, {}, Transcript(), Rules())
    assert lab.ledger().experiments()[-1].outcome.status == KEEP


def test_no_gate_is_asked_for_a_proposal_that_comes_when_the_run_has_ended(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposer = Scripted([idea(rows(2))])

    def create(name: str, workshop: proposers.Workshop) -> Scripted:
        def late(context: Context) -> Proposal:
            assert workshop.stop.wait(20)
            return idea(rows(8))

        proposer.moves.append(late)
        return proposer

    monkeypatch.setattr(proposers, "create", create)
    campaign.run(lab, replace(SETTINGS, proposer="sweep"), Transcript(), Pressed(proposer))
    last = lab.ledger().experiments()[-1]
    assert (last.outcome.status, last.gates) == (LOST, ())


def test_ctrl_c_in_its_trial_leaves_a_paid_proposal_waiting(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposer = Scripted([idea(rows(4))])
    night(lab, monkeypatch, proposer, Pressed(proposer))
    assert [e.outcome.status for e in lab.ledger().experiments()] == [READY]
    git(lab.root, "gc", "--prune=now", "-q")
    monkeypatch.setattr(proposers, "create", lambda name, workshop: Scripted([]))
    campaign.resume(lab, None, {}, Transcript(), Rules())
    assert [e.outcome.status for e in lab.ledger().experiments()] == [KEEP]


def test_what_was_ready_outlives_a_fault_of_the_machine(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Rules):
        def build(self, tree: Path, changed: Sequence[str]) -> Finding:
            if "kRows = 4" in (tree / "csrc/scale.cpp").read_text():
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().build(tree, changed)

    proposer = Scripted([idea(rows(4))])
    night(lab, monkeypatch, proposer, Pressed(proposer))
    monkeypatch.setattr(proposers, "create", lambda name, workshop: Scripted([]))
    for judge, status in ((Full(), READY), (Rules(), KEEP)):
        campaign.resume(lab, None, {}, Transcript(), judge)
        assert [e.outcome.status for e in lab.ledger().experiments()] == [status]


def test_a_paid_proposal_waits_whoever_proposes_when_ctrl_c_comes_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposer = Scripted([idea(rows(4))])
    night(lab, monkeypatch, proposer, Pressed(proposer))
    other = Scripted([], ahead=0, name="sweep")
    monkeypatch.setattr(proposers, "create", lambda name, workshop: other)
    campaign.resume(lab, None, {}, Transcript(), Pressed(proposer))
    assert [e.outcome.status for e in lab.ledger().experiments()] == [READY]
