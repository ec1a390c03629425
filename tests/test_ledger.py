"""The ledger keeps every row through a kill, refuses a file that is not its own, and gives the tables that others read."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent import export
from agent.ledger import SCHEMA_VERSION, Ledger, LedgerError
from agent.records import DROP, KEEP, LOST, GateResult, Outcome, Proposal, Run, Settings, TrialKey

KEY = TrialKey("tree", "judge", "machine", "corpus-1", "cpu", 20.0, 0)
RESULT = {"ok": True, "val_bpb": 2.5, "tokens_per_second": 1000.0, "seed": 0}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "ledger.sqlite")
    made.start_run(Run("r1", Settings(seconds=20.0), "base", "start", "start", time.time()))
    return made


def propose(ledger: Ledger, digest: str = "d1", run: str = "r1") -> int:
    proposal = Proposal(
        "rows 1 -> 4", {"csrc/a.cpp": "x"}, "sweep", {"values": {"kRows": "4"}}, 0.5, 100, 20
    )
    return ledger.open_experiment(run, proposal, "parent", "commit", "+patch\n", digest)


def test_an_experiment_comes_back_with_its_gates_and_outcome(ledger: Ledger) -> None:
    number = propose(ledger)
    result = GateResult("build", True, "built", {"a.cpp": 2.5}, 3.0)
    ledger.add_gate(number, 0, result)
    ledger.close_experiment(
        number, Outcome(KEEP, "faster", speed=0.8, val_bpb=2.4, bpb_change=-0.01), "commit"
    )
    (experiment,) = ledger.experiments("r1")
    assert experiment.gates == (result,)
    assert experiment.outcome == Outcome(KEEP, "faster", 0.8, 2.4, -0.01)
    assert (experiment.number, experiment.notes, experiment.patch) == (
        1,
        {"values": {"kRows": "4"}},
        "+patch\n",
    )
    assert ledger.run("r1").incumbent == "commit"
    assert ledger.run("r1").settings.seconds == 20.0


def test_a_drop_leaves_the_incumbent(ledger: Ledger) -> None:
    ledger.close_experiment(propose(ledger), Outcome(DROP, "no better"))
    assert ledger.run().incumbent == "start"


def test_reopening_marks_what_was_in_flight_as_lost_and_its_patch_may_come_again(
    ledger: Ledger,
) -> None:
    ledger.close_experiment(propose(ledger, "d1"), Outcome(DROP, "no better"))
    propose(ledger, "d2")
    assert ledger.reopen_run("r1", Settings(experiments=9)) == 1
    assert [e.outcome.status for e in ledger.experiments("r1")] == [DROP, LOST]
    assert ledger.patch_numbers("r1") == {"d1": 1}
    assert ledger.run("r1").settings.experiments == 9


def test_money_of_lost_experiments_is_not_forgotten(ledger: Ledger) -> None:
    propose(ledger), propose(ledger)
    ledger.reopen_run("r1", Settings())
    assert ledger.spent("r1")["cost_usd"] == 1.0
    assert ledger.spent("r1")["tokens_in"] == 200


def test_a_trial_is_found_only_under_the_same_key_and_while_fresh(ledger: Ledger) -> None:
    ledger.add_trial("r1", KEY, RESULT)
    assert ledger.find_trial(KEY) == RESULT
    for other in ("tree", "judge", "machine", "dataset", "device"):
        assert ledger.find_trial(TrialKey(**{**vars(KEY), other: "another"})) is None
    assert ledger.find_trial(TrialKey(**{**vars(KEY), "seed": 1})) is None
    assert ledger.find_trial(KEY, since=time.time() + 1) is None


def test_a_failed_trial_is_kept_but_never_reused(ledger: Ledger) -> None:
    ledger.add_trial("r1", KEY, {"ok": False, "failure": "nan", "val_bpb": float("nan")})
    assert ledger.find_trial(KEY) is None
    assert ledger.results(KEY) == []


def test_tsv_begins_with_the_columns_of_autoresearch_and_keeps_one_line_a_row(
    ledger: Ledger,
) -> None:
    outcome = Outcome(KEEP, "a\tb\nc", speed=0.5, val_bpb=2.4, peak_memory_mb=2048.0)
    ledger.close_experiment(propose(ledger), outcome, "commit")
    header, row, *rest = export.tsv(ledger).splitlines()
    assert header.split("\t")[:5] == ["commit", "val_bpb", "memory_gb", "status", "description"]
    assert row.split("\t")[:5] == ["commit", "2.400000", "2.0", "keep", "rows 1 -> 4"]
    assert row.split("\t")[-1] == "a b c"
    assert len(row.split("\t")) == len(header.split("\t"))
    assert rest == []


def test_json_export_holds_runs_gates_and_patches(ledger: Ledger) -> None:
    number = propose(ledger)
    ledger.add_gate(
        number, 0, GateResult("scope", False, "outside", {"paths": ["bench/x.py"]}, 0.1)
    )
    (run,) = json.loads(export.as_json(ledger))["runs"]
    assert run["experiments"][0]["gates"][0]["evidence"] == {"paths": ["bench/x.py"]}
    assert run["experiments"][0]["patch"] == "+patch\n"


def test_another_schema_version_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    Ledger(file).close()
    with sqlite3.connect(file) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(
        LedgerError, match=f"schema {SCHEMA_VERSION + 1}, expected {SCHEMA_VERSION}"
    ):
        Ledger(file)


def test_an_unknown_run_is_answered_with_those_that_exist(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="runs: r1"):
        ledger.run("r2")


WRITER = """
import sys, time
from pathlib import Path
from agent.ledger import Ledger
from agent.records import GateResult, Outcome, Proposal, Run, Settings
ledger = Ledger(Path(sys.argv[1]))
ledger.start_run(Run("k", Settings(), "b", "s", "s", time.time()))
for i in range(10_000):
    number = ledger.open_experiment("k", Proposal(f"idea {i}", {}, "sweep"), "p", f"c{i}", "", f"d{i}")
    ledger.add_gate(number, 0, GateResult("scope", True, "", {}, 0.0))
    ledger.close_experiment(number, Outcome("keep", "faster"), f"c{i}")
    print(i, flush=True)
"""


def test_kill_9_loses_at_most_the_experiment_in_flight(tmp_path: Path) -> None:
    for attempt in range(4):
        file = tmp_path / f"{attempt}.sqlite"
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(5 + attempt):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        acknowledged = 5 + attempt + len(writer.stdout.read().split())
        writer.wait()
        ledger = Ledger(file)
        experiments = ledger.experiments("k")
        ended = [e for e in experiments if e.outcome.status == KEEP]
        assert len(ended) >= acknowledged
        assert len(experiments) - len(ended) <= 1
        assert ledger.run("k").incumbent == ended[-1].commit
        assert all(len(e.gates) == 1 for e in ended)
