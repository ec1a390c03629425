"""The ledger keeps every row through a kill, refuses a file that is not its own, and gives the tables that others read."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent import accounts, export, report
from agent.ledger import Ledger, LedgerError
from agent.records import (
    CRASH,
    DROP,
    KEEP,
    LOST,
    REFUSE,
    Confirmation,
    GateResult,
    Outcome,
    Pair,
    Proposal,
    Run,
    Settings,
    TrialKey,
    Usage,
)
from agent.schema import SCHEMA_VERSION

KEY = TrialKey("tree", "judge", "machine", "corpus-1", "cpu", 20.0, 0)
RESULT = {"ok": True, "val_bpb": 2.5, "tokens_per_second": 1000.0, "seed": 0}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "ledger.sqlite")
    made.start_run(Run("r1", Settings(seconds=20.0), "base", "start", "start", time.time()))
    return made


def propose(ledger: Ledger, digest: str = "d1", run: str = "r1") -> int:
    proposal = Proposal(
        "rows 1 -> 4", {"csrc/a.cpp": "x"}, "sweep", notes={"values": {"kRows": "4"}}, cost_usd=0.5
    )
    return ledger.open_experiment(run, proposal, "parent", "commit", "+patch\n", digest, (1, 2))


def test_an_experiment_comes_back_with_its_gates_and_outcome(ledger: Ledger) -> None:
    number = propose(ledger)
    result = GateResult("build", True, "built", {"a.cpp": 2.5}, 3.0)
    ledger.add_gate(number, result)
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


def test_what_waits_for_its_trial_is_not_lost_until_it_is_taken(ledger: Ledger) -> None:
    waits, taken = propose(ledger, "d1"), propose(ledger, "d2")
    ledger.ready_experiment(waits)
    ledger.ready_experiment(taken)
    ledger.take_experiment(taken)
    assert ledger.reopen_run("r1", Settings()) == 1
    assert [e.id for e in ledger.waiting("r1")] == [waits]
    assert ledger.counts("r1") == {LOST: 1, "ready": 1}


def test_a_call_in_flight_at_a_kill_counts_at_its_upper_bound(ledger: Ledger) -> None:
    answered = ledger.accounts.open_call("r1", "m", 1000, 500, 0.9)
    ledger.accounts.open_call("r1", "m", 2000, 500, 1.5)
    ledger.accounts.close_call(answered, Usage(100, 40, cache_read=800, cache_write=60), 0.2)
    ledger.close()
    again = Ledger(ledger.path)
    again.reopen_run("r1", Settings())
    totals = again.accounts.calls("r1")
    assert totals.usd == pytest.approx(1.7)
    assert totals.in_flight_usd == 1.5
    assert (totals.tokens_in, totals.tokens_out, totals.count) == (2100, 540, 2)
    assert again.accounts.spent("r1")["tokens"] == 2100 + 540 + 800 + 60


def test_time_at_work_adds_up_over_the_lives_of_a_run(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    clock = SimpleNamespace(time=lambda: now[0], monotonic=lambda: now[0])
    monkeypatch.setattr(accounts, "time", clock)
    for device_seconds in (3.0, 4.0):
        stretch = ledger.accounts.begin_stretch("r1")
        now[0] += 5.0
        ledger.accounts.tick(stretch, device_seconds)
        # after the last tick: what a kill loses
        now[0] += 50.0
    assert ledger.accounts.worked("r1") == (10.0, 7.0)


def test_the_short_rows_say_what_the_whole_ones_do(ledger: Ledger) -> None:
    number = propose(ledger)
    ledger.add_gate(number, GateResult("scope", True, "one file", {}, 0.1))
    ledger.add_gate(number, GateResult("build", False, "error: x", {}, 0.1))
    ledger.close_experiment(number, Outcome(REFUSE, "build: error: x"))
    (short,), (whole,) = ledger.history(), ledger.experiments()
    assert short.refused_by == "build"
    assert short.paths == ("csrc/a.cpp",)
    assert short.ops == ("a",)
    assert {f.name: getattr(whole, f.name) for f in fields(short)} == vars(short)
    assert ledger.find("r1", 1) == ledger.experiment(number) == whole
    assert ledger.find("r1", 2) is None


def test_only_what_was_found_correct_makes_later_proposals_near_duplicates(ledger: Ledger) -> None:
    refused_by = ("build", "microbench")
    for digest, gate in zip(("d1", "d2"), refused_by, strict=True):
        number = propose(ledger, digest)
        ledger.add_gate(number, GateResult(gate, False, "no", {}, 0.1))
        ledger.close_experiment(number, Outcome(REFUSE, gate))
    propose(ledger, "d3")  # at the gates still
    broke = propose(ledger, "d4")  # in its trial: mended, it may come again
    ledger.add_gate(broke, GateResult("microbench", True, "", {}, 0.1))
    ledger.close_experiment(broke, Outcome(CRASH, "trial: nan"))
    assert [number for number, _ in ledger.sketches("r1")] == [2, 3]


def test_a_repair_takes_the_place_of_what_was_refused_and_the_refusal_stays(ledger: Ledger) -> None:
    number = propose(ledger)
    ledger.add_gate(number, GateResult("build", False, "error: x", {}, 0.1))
    mended = Proposal("rows 1 -> 4", {"csrc/b.cpp": "y"}, "sweep", cost_usd=0.7)
    ledger.amend_experiment(number, mended, "other", "+better\n", "d9")
    ledger.add_gate(number, GateResult("build", True, "built", {}, 0.1))
    found = ledger.experiment(number)
    assert (found.commit, found.patch, found.cost_usd) == ("other", "+better\n", 0.7)
    assert [gate.passed for gate in found.gates] == [False, True]
    assert found.refused_by is None


SCHEMA_1 = """
CREATE TABLE runs (
  id TEXT PRIMARY KEY, settings TEXT NOT NULL, base TEXT NOT NULL, start TEXT NOT NULL, incumbent TEXT NOT NULL,
  started REAL NOT NULL, ended REAL
) STRICT;
CREATE TABLE experiments (
  id INTEGER PRIMARY KEY, run TEXT NOT NULL REFERENCES runs, number INTEGER NOT NULL,
  proposer TEXT NOT NULL, hypothesis TEXT NOT NULL, notes TEXT NOT NULL,
  parent TEXT NOT NULL, commit_hash TEXT NOT NULL, patch TEXT NOT NULL, patch_hash TEXT NOT NULL,
  status TEXT NOT NULL, reason TEXT NOT NULL, started REAL NOT NULL, ended REAL,
  speed REAL, val_bpb REAL, bpb_change REAL, peak_memory_mb REAL, device_seconds REAL NOT NULL DEFAULT 0,
  cost_usd REAL NOT NULL DEFAULT 0, tokens_in INTEGER NOT NULL DEFAULT 0, tokens_out INTEGER NOT NULL DEFAULT 0,
  UNIQUE (run, number)
) STRICT;
CREATE TABLE gates (
  experiment INTEGER NOT NULL REFERENCES experiments, position INTEGER NOT NULL, name TEXT NOT NULL,
  passed INTEGER NOT NULL, reason TEXT NOT NULL, evidence TEXT NOT NULL, seconds REAL NOT NULL,
  PRIMARY KEY (experiment, position)
) STRICT;
CREATE TABLE confirmations (
  run TEXT NOT NULL REFERENCES runs, op TEXT NOT NULL, incumbent TEXT NOT NULL,
  ratio REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL, at REAL NOT NULL
) STRICT;
CREATE TABLE trials (
  id INTEGER PRIMARY KEY, run TEXT REFERENCES runs,
  tree TEXT NOT NULL, judge TEXT NOT NULL, machine TEXT NOT NULL, dataset TEXT NOT NULL, device TEXT NOT NULL,
  seconds REAL NOT NULL, seed INTEGER NOT NULL, split TEXT NOT NULL,
  ok INTEGER NOT NULL, val_bpb REAL, tokens_per_second REAL, result TEXT NOT NULL, at REAL NOT NULL
) STRICT;
INSERT INTO confirmations VALUES ('old', 'scale', 's', 0.8, 0.7, 0.9, 3.0);
INSERT INTO runs VALUES ('old', '{"proposer": "sweep", "seconds": 15.0}', 'b', 's', 's', 1.0, NULL);
INSERT INTO experiments (run, number, proposer, hypothesis, notes, parent, commit_hash, patch, patch_hash, status, reason, started)
  VALUES ('old', 1, 'sweep', 'rows', '{}', 's', 'c', '+x', 'd', 'drop', 'no better', 2.0);
PRAGMA user_version = 1;
"""


def test_a_ledger_of_the_version_before_is_brought_up_to_date_with_all_it_holds(
    tmp_path: Path,
) -> None:
    file = tmp_path / "ledger.sqlite"
    with sqlite3.connect(file) as db:
        db.executescript(SCHEMA_1)
    db.close()
    ledger = Ledger(file)
    assert ledger.run("old").settings.seconds == 15.0
    (experiment,) = ledger.experiments("old")
    assert (experiment.hypothesis, experiment.model, experiment.paths) == ("rows", "", ())
    assert (experiment.outcome.bpb_low, experiment.outcome.pairs) == (None, None)
    assert experiment.hardware == ""
    assert ledger.measured.confirmations("old", "s") == [
        Confirmation("scale", 0.8, 0.7, 0.9, 0, True)
    ]
    assert ledger.measured.pairs("old") == []
    assert propose(ledger, run="old") == 2
    assert ledger.accounts.calls("old").count == 0
    ledger.close()
    assert len(Ledger(file).history()) == 2


def test_a_ledger_from_before_hardware_was_kept_loses_no_row_and_records_it_from_now_on(
    ledger: Ledger,
) -> None:
    propose(ledger)
    before = ledger.history()
    ledger.close()
    with sqlite3.connect(ledger.path) as db:
        db.execute("ALTER TABLE experiments DROP COLUMN hardware")
        db.execute("ALTER TABLE pairs DROP COLUMN judge")
        db.execute("ALTER TABLE confirmations DROP COLUMN faster")
        db.execute("PRAGMA user_version = 3")
    db.close()
    again = Ledger(ledger.path)
    assert again.history() == before
    again.open_experiment("r1", Proposal("", {}, "sweep"), "p", "c", "", "", hardware="Zen 5")
    assert [past.hardware for past in again.history()] == ["", "Zen 5"]


def test_a_trial_is_found_only_under_the_same_key_and_while_fresh(ledger: Ledger) -> None:
    ledger.measured.add_trial("r1", KEY, RESULT)
    assert ledger.measured.find_trial(KEY) == RESULT
    for other in ("tree", "judge", "machine", "dataset", "device"):
        assert ledger.measured.find_trial(TrialKey(**{**vars(KEY), other: "another"})) is None
    assert ledger.measured.find_trial(TrialKey(**{**vars(KEY), "seed": 1})) is None
    assert ledger.measured.find_trial(KEY, since=time.time() + 1) is None


def test_trials_that_a_changed_machine_made_void_are_never_found_again(ledger: Ledger) -> None:
    other = TrialKey(**{**vars(KEY), "machine": "another"})
    ledger.measured.add_trial("r1", KEY, RESULT)
    ledger.measured.add_trial("r1", other, RESULT)
    moment = time.time()
    ledger.measured.void_trials(KEY, before=moment)
    assert ledger.measured.find_trial(KEY) is None
    assert ledger.measured.figures(KEY) == []
    assert ledger.measured.find_trial(other) == RESULT
    ledger.measured.add_trial("r1", KEY, RESULT)
    ledger.measured.void_trials(KEY, before=moment)
    assert Ledger(ledger.path).measured.find_trial(KEY) == RESULT


def test_a_pair_that_is_run_again_takes_the_place_of_the_first(ledger: Ledger) -> None:
    first = Pair("champion", 2, 7, 2.5, 2.4, 1000.0, 1100.0, "judge")
    other = Pair("champion", 2, 8, 2.5, 2.3, 1000.0, 1100.0, "judge")
    better = Pair("champion", 2, 7, 2.5, 2.45, 1000.0, 1050.0, "judge")
    for pair in (first, other, better):
        ledger.measured.add_pair("r1", pair)
    assert ledger.measured.pairs("r1") == [other, better]


def test_a_failed_trial_is_kept_but_never_reused(ledger: Ledger) -> None:
    ledger.measured.add_trial("r1", KEY, {"ok": False, "failure": "nan", "val_bpb": float("nan")})
    assert ledger.measured.find_trial(KEY) is None
    assert ledger.measured.figures(KEY) == []
    assert ledger.measured.seconds(KEY, 9) == []


def test_figures_come_without_curves_and_the_latest_trials_say_how_long_one_takes(
    ledger: Ledger,
) -> None:
    for seed, seconds in enumerate((90.0, 60.0, 70.0)):
        key = TrialKey(**{**vars(KEY), "seed": seed, "tree": f"tree {seed}"})
        result = RESULT | {"seed": seed, "total_seconds": seconds, "losses": [[1.0, 2.0]]}
        ledger.measured.add_trial("r1", key, result)
    ledger.measured.add_trial("r1", TrialKey(**{**vars(KEY), "judge": "another"}), RESULT)
    figures = {"tree": "tree 2", "seed": 2, "val_bpb": 2.5, "tokens_per_second": 1000.0}
    assert ledger.measured.figures(KEY)[2:] == [figures]
    assert ledger.measured.seconds(KEY, 2) == [70.0, 60.0]


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
    ledger.add_gate(number, GateResult("scope", False, "outside", {"paths": ["bench/x.py"]}, 0.1))
    (run,) = json.loads(export.as_json(ledger))["runs"]
    assert run["experiments"][0]["gates"][0]["evidence"] == {"paths": ["bench/x.py"]}
    assert run["experiments"][0]["patch"] == "+patch\n"


def test_another_schema_version_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    Ledger(file).close()
    with sqlite3.connect(file) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(
        LedgerError, match=f"schema {SCHEMA_VERSION + 1}, expected at most {SCHEMA_VERSION}"
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
    ledger.add_gate(number, GateResult("scope", True, "", {}, 0.0))
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


def test_a_file_that_is_no_ledger_is_named_with_what_helps(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    file.write_bytes(b"not a database, " * 400)
    with pytest.raises(LedgerError, match="no ledger, or a damaged one: move it away"):
        Ledger(file)
    assert file.read_bytes().startswith(b"not a database")


def test_a_run_with_settings_of_a_newer_version_is_told_as_such(ledger: Ledger) -> None:
    with ledger._database.transaction():
        ledger._database.execute(
            "UPDATE runs SET settings = json_set(settings, '$.invented', 1) WHERE id = 'r1'"
        )
    with pytest.raises(
        LedgerError, match=r"run r1 .* does not know \(invented\): use the newer one"
    ):
        ledger.runs()


def test_a_full_disk_is_told_as_such_and_leaves_the_ledger_usable(ledger: Ledger) -> None:
    database = ledger._database
    ((pages,),) = database.rows("PRAGMA page_count")
    database.rows(f"PRAGMA max_page_count = {pages}")
    long = Proposal("x" * 1_000_000, {}, "sweep")
    with pytest.raises(sqlite3.OperationalError, match="disk is full"):
        ledger.open_experiment("r1", long, "p", "c", "", "")
    database.rows("PRAGMA max_page_count = 1000000")
    assert propose(ledger) == 1


class Pressed:
    """A connection during which Ctrl-C comes: SQLite has done what it was asked, and only then does Python hear of it."""

    def __init__(self, connection: sqlite3.Connection, at: str) -> None:
        self.connection, self.at = connection, at

    def execute(self, query: str, *values: object) -> sqlite3.Cursor:
        done = self.connection.execute(query, *values)
        if query.startswith(self.at):
            self.at = "once"
            raise KeyboardInterrupt
        return done

    def __getattr__(self, name: str) -> object:
        return getattr(self.connection, name)


@pytest.mark.parametrize(("at", "written"), [("BEGIN", 0), ("COMMIT", 1)])
def test_ctrl_c_at_an_edge_of_a_transaction_leaves_it_whole_and_the_next_one_free(
    ledger: Ledger, at: str, written: int
) -> None:
    ledger._database._db = Pressed(ledger._database._db, at)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        propose(ledger)
    assert len(ledger.history()) == written
    assert propose(ledger, "d2") == written + 1


def test_half_of_a_surrogate_pair_is_written_down_as_a_question_mark(ledger: Ledger) -> None:
    number = propose(ledger)
    ledger.add_gate(number, GateResult("build", False, "error: \ud83d", {"said": "\ud83d"}, 0.1))
    ledger.close_experiment(number, Outcome(REFUSE, "build: \ud83d"))
    found = ledger.experiment(number)
    assert (found.outcome.reason, found.gates[0].reason) == ("build: ?", "error: ?")


def test_the_latest_run_is_the_one_begun_last_though_the_clock_went_back(ledger: Ledger) -> None:
    ledger.start_run(Run("r2", Settings(), "base", "start", "start", 0.0))
    assert [run.id for run in ledger.runs()] == ["r1", "r2"]
    assert ledger.run().id == "r2"
    ledger.accounts.begin_stretch("r1")
    with sqlite3.connect(ledger.path) as db:
        db.execute("UPDATE stretches SET until = until + 86400")
    ledger.accounts.begin_stretch("r2")
    assert ledger.accounts.last_at_work(since=0.0) == "r2"


def test_a_run_before_the_loop_that_runs_is_not_at_work(ledger: Ledger) -> None:
    ledger.accounts.begin_stretch("r1")
    since = time.time()
    shown = report.status(ledger, ledger.path, Path(), since)
    assert "stopped" in shown
    assert shown.endswith("a loop has been started, and is getting ready")
    ledger.accounts.begin_stretch("r1")
    assert "running" in report.status(ledger, ledger.path, Path(), since)


def test_status_details_the_run_at_work_or_the_one_that_is_named(ledger: Ledger) -> None:
    propose(ledger)
    ledger.start_run(Run("r2", Settings(), "base", "start", "start", 1.0))
    assert "\nrun r2\n" in report.status(ledger, ledger.path, Path())
    assert "\nrun r1\n" in report.status(ledger, ledger.path, Path(), run="r1")
    since = time.time()
    ledger.accounts.begin_stretch("r1")  # an older run goes on
    shown = report.status(ledger, ledger.path, Path(), since)
    assert "\nrun r1\n" in shown
    assert not any(line.isspace() for line in shown.splitlines())


def test_a_long_run_is_listed_from_its_keeps_on(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "SHOWN", 2)
    for status in (DROP, KEEP, DROP, DROP, DROP):
        ledger.close_experiment(propose(ledger), Outcome(status, f"said of a {status}"))
    shown = report.status(ledger, ledger.path, Path())
    assert "2 earlier ones that were not kept" in shown
    assert shown.count("said of a drop") == 2
    assert shown.count("said of a keep") == 1


def test_a_run_that_has_ended_has_nothing_at_work(ledger: Ledger) -> None:
    propose(ledger)
    ledger.end_run("r1")
    assert ledger.counts("r1") == {LOST: 1}


def test_opening_a_ledger_of_this_version_writes_nothing(ledger: Ledger) -> None:
    log = ledger.path.with_name(f"{ledger.path.name}-wal")
    before = log.stat().st_size
    Ledger(ledger.path).close()
    assert log.stat().st_size == before


def test_json_export_holds_the_gain(ledger: Ledger) -> None:
    ledger.measured.add_pair("r1", Pair("start", 1, 7, 2.0, 1.9, 10.0, 11.0, "judge"))
    (run,) = json.loads(export.as_json(ledger))["runs"]
    assert (run["pairs"][0]["after_bpb"], run["confirmations"]) == (1.9, [])


def test_what_is_only_a_bound_is_told_apart_from_what_was_spent(ledger: Ledger) -> None:
    ledger.accounts.open_call("r1", "m", 2000, 500, 1.5)
    said = report.spending(ledger, "r1")
    assert said.endswith("2,500 tokens; 1.50 USD of it are the most that requests without an answer can have cost")  # fmt: skip


def test_a_gate_that_a_repair_has_passed_is_not_the_one_that_refused(ledger: Ledger) -> None:
    number = propose(ledger)
    ledger.add_gate(number, GateResult("build", False, "error: x", {}, 0.1))
    ledger.add_gate(number, GateResult("build", True, "built", {}, 0.1))
    ledger.close_experiment(
        number, Outcome(REFUSE, "trial: csrc/a.cpp changed while it was trained")
    )
    assert ledger.experiment(number).refused_by is None
    assert ledger.history()[0].refused_by is None
