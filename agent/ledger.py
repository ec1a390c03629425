"""The ledger: one SQLite file that remembers every run, proposal, gate and trial.

Each method that writes is one transaction, synced to disk before it returns, so that a kill at any moment loses at most the
experiment in flight. A local disk is required: SQLite's write-ahead log does not work over a network file system.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from agent.records import (
    LOST,
    READY,
    REFUSE,
    RUNNING,
    CallTotals,
    Confirmation,
    Experiment,
    GateResult,
    Outcome,
    Pair,
    Past,
    Proposal,
    Run,
    Settings,
    TrialKey,
)
from agent.schema import SCHEMA, SCHEMA_VERSION, STEPS

_KEY = tuple(field.name for field in fields(TrialKey))
_OUTCOME = tuple(field.name for field in fields(Outcome))
_PAST = (
    "id", "run", "number", "proposer", "model", "hypothesis", "expected", "paths", "notes", "parent", "commit_hash",
    *_OUTCOME, "started", "cost_usd",
)  # fmt: skip


class LedgerError(RuntimeError):
    """The file is not a ledger that this version reads."""


class Ledger:
    """The ledger in the file `path`, created if it is not there. One object may be used by several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(
            path, isolation_level=None, timeout=30.0, check_same_thread=False
        )
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        with self._transaction():
            self._prepare(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _prepare(self, version: int) -> None:
        """Make the tables of a new file, or bring those of an older version up to date."""
        if version > SCHEMA_VERSION:
            raise LedgerError(
                f"{self.path}: schema {version}, expected {SCHEMA_VERSION}; move it away or use the version that wrote it"
            )
        scripts = [SCHEMA] if version == 0 else [STEPS[v] for v in range(version, SCHEMA_VERSION)]
        for statement in ";".join(scripts).split(";"):
            self._db.execute(statement)
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

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
        """Go on with a run under these settings; what was in flight is lost. How many experiments that were.

        An experiment that waited for its trial is not lost: it waits still.
        """
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
        rows = self._rows("SELECT * FROM runs ORDER BY started, rowid")
        return [
            Run(**{**row, "settings": Settings.from_json(json.loads(row["settings"]))})
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
        self,
        run: str,
        proposal: Proposal,
        parent: str,
        commit: str,
        patch: str,
        patch_hash: str,
        sketch: Sequence[int] = (),
    ) -> int:
        """Record a proposal before anything is spent on judging it; its id."""
        with self._transaction():
            (number,) = self._db.execute(
                "SELECT coalesce(max(number), 0) + 1 FROM experiments WHERE run = ?", (run,)
            ).fetchone()
            row = {
                "run": run,
                "number": number,
                "parent": parent,
                "status": RUNNING,
                "reason": "",
                "started": time.time(),
            }
            return self._insert("experiments", row | _proposed(proposal, commit, patch, patch_hash, sketch))  # fmt: skip

    def amend_experiment(
        self,
        experiment: int,
        proposal: Proposal,
        commit: str,
        patch: str,
        patch_hash: str,
        sketch: Sequence[int] = (),
    ) -> None:
        """Put a mended proposal in the place of the one that a gate refused; the gates' results stay."""
        self._update(experiment, _proposed(proposal, commit, patch, patch_hash, sketch))

    def bill_experiment(
        self, experiment: int, cost_usd: float, tokens_in: int, tokens_out: int
    ) -> None:
        """What it has cost by now, where a repair came to nothing."""
        self._update(
            experiment, {"cost_usd": cost_usd, "tokens_in": tokens_in, "tokens_out": tokens_out}
        )

    def rebase_experiment(self, experiment: int, parent: str, commit: str, patch: str) -> None:
        """The same proposal, now on another incumbent."""
        self._update(experiment, {"parent": parent, "commit_hash": commit, "patch": patch})

    def add_gate(self, experiment: int, result: GateResult) -> None:
        with self._transaction():
            (position,) = self._db.execute(
                "SELECT count(*) FROM gates WHERE experiment = ?", (experiment,)
            ).fetchone()
            row = asdict(result) | {
                "experiment": experiment,
                "position": position,
                "passed": int(result.passed),
            }
            self._insert("gates", row | {"evidence": json.dumps(dict(result.evidence))})

    def ready_experiment(self, experiment: int) -> None:
        """It is through the gates that need no quiet machine; a kill from here on does not lose it."""
        self._update(experiment, {"status": READY})

    def take_experiment(self, experiment: int) -> None:
        """It leaves the queue: from here on it is in flight."""
        self._update(experiment, {"status": RUNNING})

    def waiting(self, run: str) -> list[Experiment]:
        """Experiments that are ready for their trial, oldest first."""
        return self._experiments("WHERE run = ? AND status = ?", (run, READY))

    def close_experiment(
        self, experiment: int, outcome: Outcome, incumbent: str | None = None
    ) -> None:
        """Record how it ended; a keep moves the run's incumbent in the same transaction."""
        with self._transaction():
            self._set(experiment, asdict(outcome) | {"ended": time.time()})
            if incumbent is not None:
                self._db.execute(
                    "UPDATE runs SET incumbent = ? WHERE id = (SELECT run FROM experiments WHERE id = ?)",
                    (incumbent, experiment),
                )

    def _update(self, experiment: int, values: Mapping[str, Any]) -> None:
        with self._transaction():
            self._set(experiment, values)

    def _set(self, experiment: int, values: Mapping[str, Any]) -> None:
        assignments = ", ".join(f"{name} = ?" for name in values)
        self._db.execute(
            f"UPDATE experiments SET {assignments} WHERE id = ?", (*values.values(), experiment)
        )

    def experiments(self, run: str | None = None) -> list[Experiment]:
        """The experiments of a run, or of all, whole, oldest first. For many of them take `history`."""
        return self._experiments(*_of_run(run))

    def experiment(self, number: int) -> Experiment:
        """The experiment with this id."""
        (found,) = self._experiments("WHERE id = ?", (number,))
        return found

    def find(self, run: str, number: int) -> Experiment | None:
        """The experiment that a run counts as `number`."""
        found = self._experiments("WHERE run = ? AND number = ?", (run, number))
        return found[0] if found else None

    def history(self, run: str | None = None) -> list[Past]:
        """The experiments of a run, or of all, without patch and evidence, oldest first: 3,000 in a few hundredths of a second."""
        where, values = _of_run(run)
        names = ", ".join(f"e.{name}" for name in _PAST)
        refusing = "SELECT name FROM gates WHERE experiment = e.id AND NOT passed ORDER BY position DESC LIMIT 1"
        rows = self._rows(
            f"SELECT {names}, ({refusing}) AS gate FROM experiments e {where} ORDER BY id", values
        )
        return [Past(**_past(row, row["gate"])) for row in rows]

    def _experiments(self, where: str, values: Sequence[Any]) -> list[Experiment]:
        found = []
        for row in self._rows(f"SELECT * FROM experiments {where} ORDER BY id", values):
            gates = tuple(
                GateResult(g["name"], bool(g["passed"]), g["reason"], json.loads(g["evidence"]), g["seconds"])
                for g in self._rows("SELECT * FROM gates WHERE experiment = ? ORDER BY position", (row["id"],))
            )  # fmt: skip
            refusals = [gate.name for gate in gates if not gate.passed]
            past = _past(row, refusals[-1] if refusals else None)
            found.append(Experiment(**past, patch=row["patch"], gates=gates))
        return found

    def patch_numbers(self, run: str) -> dict[str, int]:
        """Number of the experiment that first carried each patch hash; those lost in flight may come again."""
        rows = self._rows(
            "SELECT patch_hash, number FROM experiments WHERE run = ? AND status <> ? ORDER BY number DESC",
            (run, LOST),
        )
        return {patch: number for patch, number in rows}

    def sketches(self, run: str) -> list[tuple[int, tuple[int, ...]]]:
        """(number, sketch) of every proposal of a run that was found correct, or may be yet.

        One that was not may come again, nearly the same, with its mistake mended.
        """
        measured = "SELECT 1 FROM gates WHERE experiment = e.id AND name = 'microbench'"
        rows = self._rows(
            f"SELECT number, sketch FROM experiments e WHERE run = ? AND sketch <> '[]' AND status <> ? "
            f"AND (status IN (?, ?) OR EXISTS ({measured})) ORDER BY number",
            (run, LOST, RUNNING, READY),
        )
        return [(row["number"], tuple(json.loads(row["sketch"]))) for row in rows]

    def counts(self, run: str) -> dict[str, int]:
        """How many experiments of a run have each status."""
        rows = self._rows(
            "SELECT status, count(*) AS n FROM experiments WHERE run = ? GROUP BY status", (run,)
        )
        return {row["status"]: row["n"] for row in rows}

    # ---- money and time

    def open_call(self, run: str, model: str, tokens_in: int, tokens_out: int, usd: float) -> int:
        """Record a request to a model at its upper bound before it is sent; its id."""
        with self._transaction():
            row = {
                "run": run, "model": model, "in_flight": 1, "tokens_in": tokens_in, "tokens_out": tokens_out,
                "cache_read": 0, "cache_write": 0, "usd": usd, "at": time.time(),
            }  # fmt: skip
            return self._insert("calls", row)

    def close_call(
        self,
        call: int,
        *,
        tokens_in: int,
        tokens_out: int,
        cache_read: int,
        cache_write: int,
        usd: float,
    ) -> None:
        """What the request really came to."""
        with self._transaction():
            self._db.execute(
                "UPDATE calls SET in_flight = 0, tokens_in = ?, tokens_out = ?, cache_read = ?, cache_write = ?, usd = ? "
                "WHERE id = ?",
                (tokens_in, tokens_out, cache_read, cache_write, usd, call),
            )

    def calls(self, run: str) -> CallTotals:
        """All requests of a run. One that was in flight when the loop was killed counts at its upper bound."""
        (row,) = self._rows(
            "SELECT total(usd) AS usd, coalesce(sum(tokens_in), 0) AS tokens_in, coalesce(sum(tokens_out), 0) AS tokens_out, "
            "coalesce(sum(cache_read), 0) AS cache_read, coalesce(sum(cache_write), 0) AS cache_write, count(*) AS count, "
            "total(usd * in_flight) AS in_flight_usd FROM calls WHERE run = ?",
            (run,),
        )
        return CallTotals(**dict(row))

    def spent(self, run: str) -> dict[str, float]:
        """Money (USD), tokens, hours at work and seconds on the device of a run so far."""
        calls, (seconds, device) = self.calls(run), self.worked(run)
        tokens = calls.tokens_in + calls.tokens_out + calls.cache_read + calls.cache_write
        return {
            "usd": calls.usd,
            "tokens": tokens,
            "hours": seconds / 3600,
            "device_seconds": device,
        }

    def begin_stretch(self, run: str) -> int:
        """From here on the run is worked on; the id to `tick` with."""
        with self._transaction():
            now = time.time()
            return self._insert(
                "stretches", {"run": run, "began": now, "until": now, "device_seconds": 0.0}
            )

    def tick(self, stretch: int, device_seconds: float) -> None:
        """The run is still worked on, and has held the device for so long in this stretch."""
        with self._transaction():
            self._db.execute(
                "UPDATE stretches SET until = ?, device_seconds = ? WHERE id = ?",
                (time.time(), device_seconds, stretch),
            )

    def worked(self, run: str) -> tuple[float, float]:
        """(seconds at work, seconds that the device was held) of a run, over all its stretches."""
        (row,) = self._rows(
            "SELECT total(until - began) AS seconds, total(device_seconds) AS device FROM stretches WHERE run = ?",
            (run,),
        )
        return row["seconds"], row["device"]

    # ---- trials and confirmations

    def add_trial(self, run: str | None, key: TrialKey, result: Mapping[str, Any]) -> None:
        with self._transaction():
            row = {"run": run, **asdict(key), "ok": int(result["ok"]), "at": time.time()}
            row |= {name: result.get(name) for name in ("val_bpb", "tokens_per_second")}
            self._insert("trials", row | {"result": json.dumps(dict(result))})

    def find_trial(self, key: TrialKey, since: float = 0.0) -> dict[str, Any] | None:
        """The latest good trial with this key, not older than `since` (seconds since the epoch)."""
        where = " AND ".join(f"{name} = ?" for name in _KEY)
        rows = self._rows(
            f"SELECT result FROM trials WHERE {where} AND ok = 1 AND NOT void AND at >= ? ORDER BY id DESC LIMIT 1",
            (*asdict(key).values(), since),
        )
        return json.loads(rows[0]["result"]) if rows else None

    def results(
        self, key: TrialKey, free: tuple[str, ...] = ("seed",)
    ) -> list[tuple[str, dict[str, Any]]]:
        """(tree, result) of every good trial that differs from `key` in the `free` fields at most, oldest first."""
        same = [name for name in _KEY if name not in free]
        where = " AND ".join(f"{name} = ?" for name in same)
        rows = self._rows(
            f"SELECT tree, result FROM trials WHERE {where} AND ok = 1 AND NOT void ORDER BY id",
            [getattr(key, name) for name in same],
        )
        return [(row["tree"], json.loads(row["result"])) for row in rows]

    def void_trials(self, key: TrialKey, before: float) -> None:
        """This machine and device have changed: no trial from before that moment is found again, by this run or another."""
        with self._transaction():
            self._db.execute(
                "UPDATE trials SET void = 1 WHERE machine = ? AND device = ? AND at < ?",
                (key.machine, key.device, before),
            )

    def add_confirmation(self, run: str, incumbent: str, found: Confirmation) -> None:
        with self._transaction():
            row = {"run": run, "incumbent": incumbent, "at": time.time()}
            self._insert("confirmations", row | asdict(found))

    def confirmations(self, run: str, incumbent: str) -> list[Confirmation]:
        """By op, the latest re-measurement of this incumbent against the run's start."""
        rows = self._rows(
            "SELECT op, ratio, low, high, blocks FROM confirmations WHERE run = ? AND incumbent = ? ORDER BY at",
            (run, incumbent),
        )
        return list({row["op"]: Confirmation(**dict(row)) for row in rows}.values())

    def add_pair(self, run: str, pair: Pair) -> None:
        """One more pair of start and champion; one that was run on this seed before gives way."""
        with self._transaction():
            self._db.execute(
                "DELETE FROM pairs WHERE run = ? AND incumbent = ? AND seed = ?",
                (run, pair.incumbent, pair.seed),
            )
            self._insert("pairs", {"run": run, "at": time.time()} | asdict(pair))

    def pairs(self, run: str) -> list[Pair]:
        """Every pair of start and champion that a run has been through, oldest first."""
        names = ", ".join(field.name for field in fields(Pair))
        rows = self._rows(f"SELECT {names} FROM pairs WHERE run = ? ORDER BY rowid", (run,))
        return [Pair(**dict(row)) for row in rows]


def _of_run(run: str | None) -> tuple[str, tuple[str, ...]]:
    return ("WHERE run = ?", (run,)) if run else ("", ())


def _proposed(
    proposal: Proposal, commit: str, patch: str, patch_hash: str, sketch: Sequence[int]
) -> dict[str, Any]:
    """The columns that a proposal fills."""
    return {
        "proposer": proposal.proposer, "model": proposal.model, "hypothesis": proposal.hypothesis,
        "expected": proposal.expected, "notes": json.dumps(dict(proposal.notes)), "paths": json.dumps(sorted(proposal.files)),
        "commit_hash": commit, "patch": patch, "patch_hash": patch_hash, "sketch": json.dumps(list(sketch)),
        "cost_usd": proposal.cost_usd, "tokens_in": proposal.tokens_in, "tokens_out": proposal.tokens_out,
    }  # fmt: skip


def _past(row: sqlite3.Row, gate: str | None) -> dict[str, Any]:
    """The fields of `Past`; `gate` is the last that refused, which a repair may have come through since."""
    outcome = Outcome(**{name: row[name] for name in _OUTCOME})
    return {
        "id": row["id"], "run": row["run"], "number": row["number"], "proposer": row["proposer"], "model": row["model"],
        "hypothesis": row["hypothesis"], "expected": row["expected"], "paths": tuple(json.loads(row["paths"])),
        "notes": json.loads(row["notes"]), "parent": row["parent"], "commit": row["commit_hash"], "outcome": outcome,
        "refused_by": gate if outcome.status == REFUSE else None, "started": row["started"], "cost_usd": row["cost_usd"],
    }  # fmt: skip
