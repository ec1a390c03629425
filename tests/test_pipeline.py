"""One result is made while the last one is used; the machine is nobody's twice; a proposal meets the incumbent of its own time."""

from __future__ import annotations

import errno
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from lab_tree import CPP, MODEL, PY, Rules, Transcript, compared, git, make, write

from agent import campaign, loop, merging, preparing, proposers
from agent.git import GitError, Repository
from agent.guard import LoopError
from agent.judging import Progress
from agent.lab import Lab
from agent.machine import CORES, DEVICE, NOTHING, Machine
from agent.pipeline import Ahead
from agent.proposers import Context, NoProposal, Stopped
from agent.records import CRASH, DROP, KEEP, LOST, READY, REFUSE, GateResult, Proposal, Settings
from agent.spending import BudgetSpent
from agent.workspace import Workspace
from bench.finding import Finding
from bench.speed import Comparison
from bench.trial import TrialResult
from bench.verdict import Verdict

SETTINGS = Settings(seconds=5.0, data="corpus-1", target="all")


def rows(value: int) -> dict[str, str | None]:
    return {"csrc/scale.cpp": CPP.replace("kRows = 1", f"kRows = {value}")}


def rate(value: float) -> dict[str, str | None]:
    return {"model/optim.py": MODEL.replace("LR = 0.04", f"LR = {value}")}


# ---- Ahead


def test_the_next_result_is_made_while_the_last_one_is_used_and_no_more_than_one() -> None:
    made: list[int] = []
    begun = [threading.Event() for _ in range(9)]
    stop = threading.Event()

    def make_one() -> int:
        made.append(len(made))
        begun[made[-1]].set()
        return made[-1]

    with Ahead(make_one, 1, stop) as ahead:
        for used in (0, 1):
            assert ahead.next(5.0) == used
            assert begun[used + 1].wait(5)
            # in which one more would be made
            time.sleep(0.1)
            assert made == list(range(used + 2))
    assert stop.is_set()


def test_without_working_ahead_a_result_is_made_when_it_is_asked_for() -> None:
    made: list[int] = []
    with Ahead(lambda: made.append(1), 0, threading.Event()) as ahead:
        assert made == []
        ahead.next(5.0)
        assert made == [1]


def test_what_goes_wrong_ahead_is_raised_where_the_result_is_asked_for() -> None:
    def fail() -> int:
        raise ValueError("the idea broke")

    with Ahead(fail, 1, threading.Event()) as ahead, pytest.raises(ValueError, match="the idea"):
        ahead.next(5.0)


# ---- Machine


@pytest.mark.parametrize(
    ("device", "one", "other", "together"),
    [
        ("cpu", CORES, DEVICE, False),
        ("cpu", DEVICE, DEVICE, False),
        ("cpu", NOTHING, DEVICE, True),
        ("cuda", CORES, DEVICE, True),
        ("cuda", DEVICE, DEVICE, False),
    ],
)
def test_who_shares_the_machine(device: str, one: str, other: str, together: bool) -> None:
    machine = Machine(device)
    inside = threading.Event()

    def work() -> None:
        with machine.hold(other):
            inside.set()

    with machine.hold(one):
        threading.Thread(target=work, daemon=True).start()
        assert inside.wait(5 if together else 0.1) == together
    assert inside.wait(5)


def test_the_time_that_the_device_is_held_is_counted_once() -> None:
    now = [0.0]
    machine = Machine("cpu", clock=lambda: now[0])
    with machine.hold(DEVICE):
        now[0] = 2.0
        with machine.hold(DEVICE):
            now[0] = 3.0
            assert machine.device_seconds == 3.0
    with machine.hold(CORES):
        now[0] = 9.0
    assert machine.device_seconds == 3.0


# ---- merging


def test_a_change_is_put_on_another_commit_where_they_do_not_meet(tmp_path: Path) -> None:
    root = make(tmp_path / "checkout")
    repository = Repository(root)
    head = repository.resolve("HEAD")
    changed = repository.commit(head, rows(8) | rate(0.02), "mine")
    theirs: dict[str, str | None] = {"csrc/scale.cpp": CPP + "// faster\n", "model/other.py": "x\n"}
    target = repository.commit(head, theirs, "theirs")
    merged = merging.onto(repository, head, changed, target)
    assert merged is not None
    assert sorted(merged) == ["csrc/scale.cpp", "model/optim.py"]
    assert "kRows = 8" in (merged["csrc/scale.cpp"] or "")
    assert "// faster" in (merged["csrc/scale.cpp"] or "")
    assert merging.onto(repository, head, changed, changed) == {}


def test_changes_of_the_same_line_do_not_merge(tmp_path: Path) -> None:
    repository = Repository(make(tmp_path / "checkout"))
    head = repository.resolve("HEAD")
    ours, theirs = (repository.commit(head, rows(n), "m") for n in (2, 8))
    gone = repository.commit(head, {"csrc/scale.cpp": None}, "m")
    assert merging.onto(repository, head, ours, theirs) is None
    assert merging.onto(repository, head, ours, gone) is None


# ---- the loop with a proposer that works ahead

Move = Proposal | Exception | Callable[[Context], Proposal]


@dataclass
class Scripted:
    """Proposes what it is given, one after another; `mend` answers refusals."""

    moves: list[Move]
    mend: Callable[[Proposal, GateResult], Proposal | None] = lambda proposal, refusal: None
    ahead: int = 1
    name: str = "scripted"
    seen: list[Context] = field(default_factory=list)
    # asked a second time
    again: threading.Event = field(default_factory=threading.Event)

    def propose(self, context: Context) -> Proposal | None:
        self.seen.append(context)
        if len(self.seen) > 1:
            self.again.set()
        if not self.moves:
            return None
        move = self.moves.pop(0)
        if isinstance(move, Exception):
            raise move
        return move(context) if callable(move) else move

    def repair(self, proposal: Proposal, refusal: GateResult) -> Proposal | None:
        return self.mend(proposal, refusal)


def idea(files: Mapping[str, str | None], says: str = "an idea") -> Proposal:
    return Proposal(says, files, "scripted")


def night(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, proposer: Scripted, judge: Rules | None = None
) -> Transcript:
    monkeypatch.setattr(proposers, "create", lambda name, workshop: proposer)
    screen = Transcript()
    campaign.run(lab, replace(SETTINGS, proposer="sweep"), screen, judge or Rules())
    return screen


class SlowTrials(Rules):
    """A candidate is trained once its proposer has been asked for the next proposal."""

    def __init__(self, proposer: Scripted) -> None:
        super().__init__()
        self.proposer = proposer

    def trial(
        self, tree: Path, seed: int, progress: Progress | None, split: str = "val"
    ) -> TrialResult:
        if "kRows = 1" not in (tree / "csrc/scale.cpp").read_text():
            assert self.proposer.again.wait(20)
        return super().trial(tree, seed, progress, split)


def test_a_proposal_made_while_another_was_kept_is_judged_on_top_of_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposer = Scripted([idea(rows(4), "rows"), idea(rate(0.02), "rate")])
    night(lab, monkeypatch, proposer, SlowTrials(proposer))
    first, second = lab.ledger().experiments()
    assert proposer.seen[0].commit == proposer.seen[1].commit  # made before the keep
    assert [first.outcome.status, second.outcome.status] == [KEEP, KEEP]
    assert second.parent == first.commit
    shown = git(lab.root, "show", f"{lab.ledger().run().incumbent}:csrc/scale.cpp")
    assert "kRows = 4" in shown
    assert [gate.name for gate in second.gates].count("correctness") == 2  # again, on the new one


def test_a_proposal_on_lines_that_were_changed_meanwhile_is_dropped_untried(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposer = Scripted([idea(rows(4)), idea(rows(2))])
    night(lab, monkeypatch, proposer, SlowTrials(proposer))
    first, second = (e.outcome for e in lab.ledger().experiments())
    assert first.status == KEEP
    assert second.status == DROP
    assert "changed in the same lines" in second.reason


def test_a_refusal_goes_back_to_the_proposer_and_what_it_mends_is_kept(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"csrc/scale.cpp": CPP.replace("kUnroll = 1", "kUnroll = 2")}
    refusals: list[GateResult] = []

    def mend(proposal: Proposal, refusal: GateResult) -> Proposal:
        refusals.append(refusal)
        return replace(proposal, files=rows(4), cost_usd=0.5)

    night(lab, monkeypatch, Scripted([idea(broken)], mend))
    (experiment,) = lab.ledger().experiments()
    assert [refusal.name for refusal in refusals] == ["build"]
    assert experiment.outcome.status == KEEP
    assert experiment.cost_usd == 0.5
    assert "kRows = 4" in experiment.patch
    assert [gate.passed for gate in experiment.gates].count(False) == 1


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
    trips: list[Move] = [KeyError("usage"), idea(rows(4)), *(KeyError("usage") for _ in range(3))]
    with pytest.raises(LoopError, match="3 times in a row scripted failed: KeyError: 'usage'"):
        night(lab, monkeypatch, Scripted(trips))
    rows_of = lab.ledger().experiments()
    assert [e.outcome.status for e in rows_of] == [CRASH, KEEP, CRASH, CRASH, CRASH]
    assert "see " in rows_of[0].outcome.reason


def test_a_spent_budget_ends_the_night_after_what_was_ready_was_tried(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposer = Scripted([idea(rows(4)), BudgetSpent("12.00 USD are spent")])
    screen = night(lab, monkeypatch, proposer, SlowTrials(proposer))
    assert [e.outcome.status for e in lab.ledger().experiments()] == [KEEP]
    assert any("ending: 12.00 USD are spent" in line for line in screen.lines)


class Pressed(SlowTrials):
    """Ctrl-C in the trial of the first candidate."""

    def trial(
        self, tree: Path, seed: int, progress: Progress | None, split: str = "val"
    ) -> TrialResult:
        if "kRows = 1" not in (tree / "csrc/scale.cpp").read_text():
            assert self.proposer.again.wait(20)
            raise KeyboardInterrupt
        return super().trial(tree, seed, progress, split)


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


@dataclass
class TwoOps(Rules):
    """A change of what two ops share makes one of them surely faster, and the other perhaps by more."""

    def ops(self) -> list[str]:
        return ["scale", "shift"]

    def compare(self, op: str, incumbent: Path, candidate: Path) -> Comparison:
        self.calls.append(f"compare {op}")
        return compared(0.95, 0.92, 0.98) if op == "scale" else compared(0.90, 0.80, 1.01)


def test_a_change_of_several_ops_claims_the_time_of_one_that_is_surely_faster(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(lab.root, {"csrc/shift.cpp": "// shift\n", "kernels/shift.py": PY.replace("scale", "shift")})  # fmt: skip
    git(lab.root, "add", "-A")
    git(lab.root, "commit", "-qm", "two ops")
    both = {**rows(4), "csrc/shift.cpp": "// shift\nint faster;\n"}
    judge = TwoOps()
    night(lab, monkeypatch, Scripted([idea(both)]), judge)
    (experiment,) = lab.ledger().experiments()
    assert "compare shift" in judge.calls
    assert experiment.outcome.status == KEEP, experiment.outcome.reason
    assert experiment.gates[-1].evidence["ratio"] == [0.95, 0.92, 0.98]


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


def test_a_place_that_a_lost_experiment_leaves_is_filled(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Locked(Rules):
        locked = True

        def compare(self, op: str, incumbent: Path, candidate: Path) -> Comparison:
            if self.locked:
                self.locked = False
                time.sleep(0.5)  # long enough that the proposer has heard that the limit is filled
                raise sqlite3.OperationalError("database is locked")
            return super().compare(op, incumbent, candidate)

    made = Scripted([idea(rows(2)), idea(rows(4))])
    monkeypatch.setattr(proposers, "create", lambda name, workshop: made)
    settings = replace(SETTINGS, proposer="sweep", experiments=1)
    campaign.run(lab, settings, Transcript(), Locked())
    assert [e.outcome.status for e in lab.ledger().experiments()] == [LOST, KEEP]
