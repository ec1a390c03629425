"""The ledger: one SQLite file that remembers every run, proposal, gate and trial.

Each method that writes is one transaction, synced to disk before it returns, so that a kill at any moment loses at most the
experiment in flight. A local disk is required: SQLite's write-ahead log does not work over a network file system.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from agent.records import (
    LOST,
    RUNNING,
    Experiment,
    GateResult,
    Outcome,
    Proposal,
    Run,
    Settings,
    TrialKey,
)

SCHEMA_VERSION = 1
_SCHEMA = """
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
CREATE TABLE trials (
  id INTEGER PRIMARY KEY, run TEXT REFERENCES runs,
  tree TEXT NOT NULL, judge TEXT NOT NULL, machine TEXT NOT NULL, dataset TEXT NOT NULL, device TEXT NOT NULL,
  seconds REAL NOT NULL, seed INTEGER NOT NULL, split TEXT NOT NULL,
  ok INTEGER NOT NULL, val_bpb REAL, tokens_per_second REAL, result TEXT NOT NULL, at REAL NOT NULL
) STRICT;
CREATE INDEX trials_by_key ON trials (tree, dataset, device, seconds, seed);
CREATE TABLE confirmations (
  run TEXT NOT NULL REFERENCES runs, op TEXT NOT NULL, incumbent TEXT NOT NULL,
  ratio REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL, at REAL NOT NULL
) STRICT;
"""
_KEY = tuple(field.name for field in fields(TrialKey))
_OUTCOME = tuple(field.name for field in fields(Outcome))


class LedgerError(RuntimeError):
    """The file is not a ledger that this version reads."""


class Ledger:
    """The ledger in the file `path`, created if it is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=30.0)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        with self._transaction():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise LedgerError(
                    f"{path}: schema {version}, expected {SCHEMA_VERSION}; move it away or use the version that wrote it"
                )

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _insert(self, table: str, row: Mapping[str, Any]) -> int:
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        done = self._db.execute(
            f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values())
        )
        return int(done.lastrowid or 0)

    # ---- runs

    def start_run(self, run: Run) -> None:
        with self._transaction():
            row = asdict(run) | {"settings": json.dumps(asdict(run.settings))}
            self._insert("runs", row)

    def reopen_run(self, run: str, settings: Settings) -> int:
        """Go on with a run under these settings; what was in flight is lost. How many experiments that were."""
        with self._transaction():
            done = self._db.execute(
                "UPDATE experiments SET status = ?, reason = 'the loop was stopped while it ran', ended = ? "
                "WHERE run = ? AND status = ?",
                (LOST, time.time(), run, RUNNING),
            )
            values = (json.dumps(asdict(settings)), run)
            self._db.execute("UPDATE runs SET ended = NULL, settings = ? WHERE id = ?", values)
            return done.rowcount

    def end_run(self, run: str) -> None:
        with self._transaction():
            self._db.execute("UPDATE runs SET ended = ? WHERE id = ?", (time.time(), run))

    def runs(self) -> list[Run]:
        """Every run, oldest first."""
        rows = self._db.execute("SELECT * FROM runs ORDER BY started, rowid").fetchall()
        return [
            Run(**{**row, "settings": Settings(**json.loads(row["settings"]))})
            for row in map(dict, rows)
        ]

    def run(self, name: str | None = None) -> Run:
        """The run of this name, or the latest. Raises LedgerError with the names that there are."""
        runs = self.runs()
        found = [run for run in runs if name is None or run.id == name]
        if not found:
            names = ", ".join(run.id for run in runs) or "none yet"
            raise LedgerError(f"no run {name or ''} in {self.path}; runs: {names}")
        return found[-1]

    # ---- experiments

    def open_experiment(
        self, run: str, proposal: Proposal, parent: str, commit: str, patch: str, patch_hash: str
    ) -> int:
        """Record a proposal before anything is spent on it; its id."""
        with self._transaction():
            (number,) = self._db.execute(
                "SELECT coalesce(max(number), 0) + 1 FROM experiments WHERE run = ?", (run,)
            ).fetchone()
            row = {
                "run": run, "number": number, "proposer": proposal.proposer, "hypothesis": proposal.hypothesis,
                "notes": json.dumps(dict(proposal.notes)), "parent": parent, "commit_hash": commit, "patch": patch,
                "patch_hash": patch_hash, "status": RUNNING, "reason": "", "started": time.time(),
                "cost_usd": proposal.cost_usd, "tokens_in": proposal.tokens_in, "tokens_out": proposal.tokens_out,
            }  # fmt: skip
            return self._insert("experiments", row)

    def add_gate(self, experiment: int, position: int, result: GateResult) -> None:
        with self._transaction():
            row = asdict(result) | {
                "experiment": experiment,
                "position": position,
                "passed": int(result.passed),
            }
            self._insert("gates", row | {"evidence": json.dumps(dict(result.evidence))})

    def close_experiment(
        self, experiment: int, outcome: Outcome, incumbent: str | None = None
    ) -> None:
        """Record how it ended; a keep moves the run's incumbent in the same transaction."""
        with self._transaction():
            values = asdict(outcome)
            assignments = ", ".join(f"{name} = ?" for name in values)
            self._db.execute(
                f"UPDATE experiments SET {assignments}, ended = ? WHERE id = ?",
                (*values.values(), time.time(), experiment),
            )
            if incumbent is not None:
                self._db.execute(
                    "UPDATE runs SET incumbent = ? WHERE id = (SELECT run FROM experiments WHERE id = ?)",
                    (incumbent, experiment),
                )

    def experiments(self, run: str | None = None) -> list[Experiment]:
        """The experiments of a run, or of all, oldest first."""
        where, values = ("WHERE run = ?", (run,)) if run else ("", ())
        rows = self._db.execute(f"SELECT * FROM experiments {where} ORDER BY id", values).fetchall()
        return [self._experiment(row) for row in rows]

    def _experiment(self, row: sqlite3.Row) -> Experiment:
        gates = self._db.execute(
            "SELECT * FROM gates WHERE experiment = ? ORDER BY position", (row["id"],)
        )
        return Experiment(
            id=row["id"], run=row["run"], number=row["number"], proposer=row["proposer"], hypothesis=row["hypothesis"],
            notes=json.loads(row["notes"]), parent=row["parent"], commit=row["commit_hash"], patch=row["patch"],
            outcome=Outcome(**{name: row[name] for name in _OUTCOME}), started=row["started"],
            gates=tuple(
                GateResult(g["name"], bool(g["passed"]), g["reason"], json.loads(g["evidence"]), g["seconds"]) for g in gates
            ),
        )  # fmt: skip

    def patch_numbers(self, run: str) -> dict[str, int]:
        """Number of the experiment that first carried each patch hash; those lost in flight may come again."""
        rows = self._db.execute(
            "SELECT patch_hash, number FROM experiments WHERE run = ? AND status NOT IN (?, ?) ORDER BY number DESC",
            (run, LOST, RUNNING),
        )
        return {patch: number for patch, number in rows}

    def spent(self, run: str) -> dict[str, float]:
        """Money, tokens and device seconds of a run so far."""
        row = self._db.execute(
            "SELECT total(cost_usd) AS cost_usd, total(tokens_in) AS tokens_in, total(tokens_out) AS tokens_out, "
            "total(device_seconds) AS device_seconds FROM experiments WHERE run = ?",
            (run,),
        ).fetchone()
        return dict(row)

    # ---- trials and confirmations

    def add_trial(self, run: str | None, key: TrialKey, result: Mapping[str, Any]) -> None:
        with self._transaction():
            row = {"run": run, **asdict(key), "ok": int(result["ok"]), "at": time.time()}
            row |= {name: result.get(name) for name in ("val_bpb", "tokens_per_second")}
            self._insert("trials", row | {"result": json.dumps(dict(result))})

    def find_trial(self, key: TrialKey, since: float = 0.0) -> dict[str, Any] | None:
        """The latest good trial with this key, not older than `since` (seconds since the epoch)."""
        where = " AND ".join(f"{name} = ?" for name in _KEY)
        row = self._db.execute(
            f"SELECT result FROM trials WHERE {where} AND ok = 1 AND at >= ? ORDER BY id DESC LIMIT 1",
            (*asdict(key).values(), since),
        ).fetchone()
        return json.loads(row["result"]) if row else None

    def results(
        self, key: TrialKey, free: tuple[str, ...] = ("seed",)
    ) -> list[tuple[str, dict[str, Any]]]:
        """(tree, result) of every good trial that differs from `key` in the `free` fields at most, oldest first."""
        same = [name for name in _KEY if name not in free]
        where = " AND ".join(f"{name} = ?" for name in same)
        rows = self._db.execute(
            f"SELECT tree, result FROM trials WHERE {where} AND ok = 1 ORDER BY id",
            tuple(getattr(key, name) for name in same),
        )
        return [(row["tree"], json.loads(row["result"])) for row in rows]

    def add_confirmation(
        self, run: str, op: str, incumbent: str, ratio: float, low: float, high: float
    ) -> None:
        with self._transaction():
            row = {
                "run": run,
                "op": op,
                "incumbent": incumbent,
                "ratio": ratio,
                "low": low,
                "high": high,
            }
            self._insert("confirmations", row | {"at": time.time()})

    def confirmations(self, run: str, incumbent: str) -> dict[str, tuple[float, float, float]]:
        """(ratio, low, high) by op: the latest re-measurement of this incumbent against the run's start."""
        rows = self._db.execute(
            "SELECT op, ratio, low, high FROM confirmations WHERE run = ? AND incumbent = ? ORDER BY at",
            (run, incumbent),
        )
        return {row["op"]: (row["ratio"], row["low"], row["high"]) for row in rows}
