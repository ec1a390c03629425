"""Work ahead: proposals are made and pass the gates while the device trains, and are judged on top of what was kept meanwhile."""

from __future__ import annotations

import sqlite3
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from lab_tree import CPP, PY, Rules, Transcript, compared, git, make, write
from scripted_nights import SETTINGS, Scripted, SlowTrials, idea, night, rate, rows

from agent import campaign, merging, proposers
from agent.ahead import Ahead
from agent.git import Repository
from agent.lab import Lab
from agent.machine import CORES, DEVICE, NOTHING, Machine
from agent.records import DROP, KEEP, LOST
from agent.spending import BudgetSpent
from bench.speed import Comparison


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


def test_a_proposal_that_the_incumbent_has_meanwhile_is_dropped_as_that(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposer = Scripted([idea(rows(4) | rate(0.02)), idea(rate(0.02))])
    night(lab, monkeypatch, proposer, SlowTrials(proposer))
    first, second = lab.ledger().experiments()
    assert [first.outcome.status, second.outcome.status] == [KEEP, DROP]
    assert "has this change already" in second.outcome.reason
    assert "LR = 0.02" in second.patch


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


def test_a_spent_budget_ends_the_night_after_what_was_ready_was_tried(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposer = Scripted([idea(rows(4)), BudgetSpent("12.00 USD are spent")])
    screen = night(lab, monkeypatch, proposer, SlowTrials(proposer))
    assert [e.outcome.status for e in lab.ledger().experiments()] == [KEEP]
    assert any("ending: 12.00 USD are spent" in line for line in screen.lines)


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
