"""The ledger: one SQLite file that remembers every run, proposal, gate and trial.

Each method that writes is one transaction, synced to disk before it returns, so that a kill at any moment loses at most the
experiment in flight. Runs and experiments are here; `accounts` has money and time, `measured` has the trials.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from agent.accounts import Accounts
from agent.database import Database, LedgerError
from agent.measurements import Measurements
from agent.records import (
    CRASH,
    LOST,
    OPEN,
    READY,
    REFUSE,
    RUNNING,
    Experiment,
    GateResult,
    Outcome,
    Past,
    Proposal,
    Run,
    Settings,
)

__all__ = ["Ledger", "LedgerError"]

_OUTCOME = tuple(field.name for field in fields(Outcome))
_PAST = (
    "id", "run", "number", "proposer", "model", "hypothesis", "expected", "paths", "notes", "parent", "commit_hash",
    *_OUTCOME, "started", "cost_usd", "hardware",
)  # fmt: skip


def _settings(row: Mapping[str, Any]) -> Settings:
    kept = json.loads(row["settings"])
    if unknown := sorted(set(kept) - {field.name for field in fields(Settings)}):
        raise LedgerError(
            f"run {row['id']} was begun with settings that this version of the lab does not know ({', '.join(unknown)}): use the newer one"
        )
    # JSON has no tuples
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()}
    return Settings(**plain)


class Ledger:
    """The ledger in the file `path`, created if it is not there. One object may be used by several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = Database(path)
        self.accounts, self.measured = Accounts(self._database), Measurements(self._database)

    def close(self) -> None:
        self._database.close()

    # ---- runs

    def start_run(self, run: Run) -> None:
        with self._database.transaction():
            row = asdict(run) | {"settings": json.dumps(asdict(run.settings))}
            self._database.insert("runs", row)

    def reopen_run(self, run: str, settings: Settings) -> int:
        """Resume a run under these settings; how many experiments were in flight, and are now lost.

        An experiment that waited for its trial is not lost: it still waits.
        """
        with self._database.transaction():
            lost = self._lose(run)
            values = (json.dumps(asdict(settings)), run)
            self._database.execute(
                "UPDATE runs SET ended = NULL, settings = ? WHERE id = ?", values
            )
            return lost

    def end_run(self, run: str) -> None:
        """Record that a run has ended; an experiment that is still in flight is lost."""
        with self._database.transaction():
            self._lose(run)
            self._database.execute("UPDATE runs SET ended = ? WHERE id = ?", (time.time(), run))

    def _lose(self, run: str) -> int:
        """Mark what is in flight as lost, inside a transaction; how many experiments that were."""
        done = self._database.execute(
            "UPDATE experiments SET status = ?, reason = 'the loop was stopped while it ran', "
            "ended = ? WHERE run = ? AND status = ?",
            (LOST, time.time(), run, RUNNING),
        )
        return done.rowcount

    def runs(self) -> list[Run]:
        """Every run, oldest first, whatever the clock said."""
        rows = self._database.rows("SELECT * FROM runs ORDER BY rowid")
        return [Run(**{**row, "settings": _settings(row)}) for row in map(dict, rows)]

    def run(self, name: str | None = None) -> Run:
        """The run of this name, or the latest. Raises LedgerError, which lists the names there are."""
        runs = self.runs()
        found = [run for run in runs if name is None or run.id == name]
        if not found:
            names = (
                ", ".join(run.id for run in runs)
                or "none yet (to begin one: python -m agent --target kernels)"
            )
            raise LedgerError(f"no run{f' {name}' if name else ''} in {self.path}; runs: {names}")
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
        hardware: str = "",
    ) -> int:
        """Record a proposal before anything is spent on judging it; its id."""
        with self._database.transaction():
            (number,) = self._database.execute(
                "SELECT coalesce(max(number), 0) + 1 FROM experiments WHERE run = ?", (run,)
            ).fetchone()
            row = {
                "run": run,
                "number": number,
                "parent": parent,
                "status": RUNNING,
                "reason": "",
                "started": time.time(),
                "hardware": hardware,
            }
            return self._database.insert("experiments", row | _proposed(proposal, commit, patch, patch_hash, sketch))  # fmt: skip

    def amend_experiment(
        self,
        experiment: int,
        proposal: Proposal,
        commit: str,
        patch: str,
        patch_hash: str,
        sketch: Sequence[int] = (),
    ) -> None:
        """Put a repaired proposal in the place of the one that a gate refused; the gates' results stay."""
        self._update(experiment, _proposed(proposal, commit, patch, patch_hash, sketch))

    def bill_experiment(
        self, experiment: int, cost_usd: float, tokens_in: int, tokens_out: int
    ) -> None:
        """Update what an experiment has cost, where a repair came to nothing."""
        self._update(
            experiment, {"cost_usd": cost_usd, "tokens_in": tokens_in, "tokens_out": tokens_out}
        )

    def rebase_experiment(self, experiment: int, parent: str, commit: str, patch: str) -> None:
        """Put the same proposal on another incumbent."""
        self._update(experiment, {"parent": parent, "commit_hash": commit, "patch": patch})

    def add_gate(self, experiment: int, result: GateResult) -> None:
        with self._database.transaction():
            (position,) = self._database.execute(
                "SELECT count(*) FROM gates WHERE experiment = ?", (experiment,)
            ).fetchone()
            row = asdict(result) | {
                "experiment": experiment,
                "position": position,
                "passed": int(result.passed),
            }
            self._database.insert("gates", row | {"evidence": json.dumps(dict(result.evidence))})

    def ready_experiment(self, experiment: int) -> None:
        """Mark it as past the gates that need no quiet machine; from here on a kill does not lose it."""
        self._update(experiment, {"status": READY})

    def take_experiment(self, experiment: int) -> None:
        """Take it from the queue: from here on it is in flight."""
        self._update(experiment, {"status": RUNNING})

    def waiting(self, run: str) -> list[Experiment]:
        """Experiments that are ready for their trial, oldest first."""
        return self._experiments("WHERE run = ? AND status = ?", (run, READY))

    def close_experiment(
        self, experiment: int, outcome: Outcome, incumbent: str | None = None
    ) -> None:
        """Record how it ended; a keep moves the run's incumbent in the same transaction."""
        with self._database.transaction():
            self._set(experiment, asdict(outcome) | {"ended": time.time()})
            if incumbent is not None:
                self._database.execute(
                    "UPDATE runs SET incumbent = ? WHERE id = (SELECT run FROM experiments WHERE id = ?)",
                    (incumbent, experiment),
                )

    def _update(self, experiment: int, values: Mapping[str, Any]) -> None:
        with self._database.transaction():
            self._set(experiment, values)

    def _set(self, experiment: int, values: Mapping[str, Any]) -> None:
        assignments = ", ".join(f"{name} = ?" for name in values)
        self._database.execute(
            f"UPDATE experiments SET {assignments} WHERE id = ?", (*values.values(), experiment)
        )

    def experiments(self, run: str | None = None) -> list[Experiment]:
        """The experiments of a run, or of all, complete and oldest first. `history` is for many of them."""
        return self._experiments(*_of_run(run))

    def experiment(self, experiment: int) -> Experiment:
        """The experiment with this id."""
        (found,) = self._experiments("WHERE id = ?", (experiment,))
        return found

    def number(self, experiment: int) -> int:
        """The number of the experiment with this id in its run, by which screens, logs and reports name it."""
        ((number,),) = self._database.rows(
            "SELECT number FROM experiments WHERE id = ?", (experiment,)
        )
        return int(number)

    def find(self, run: str, number: int) -> Experiment | None:
        """The experiment with this number in a run."""
        found = self._experiments("WHERE run = ? AND number = ?", (run, number))
        return found[0] if found else None

    def history(self, run: str | None = None) -> list[Past]:
        """The experiments of a run, or of all, without patch and evidence, oldest first: 3,000 in a few hundredths of a second."""
        where, values = _of_run(run)
        names = ", ".join(f"e.{name}" for name in _PAST)
        refusing = "SELECT CASE WHEN passed THEN NULL ELSE name END FROM gates WHERE experiment = e.id ORDER BY position DESC LIMIT 1"
        rows = self._database.rows(
            f"SELECT {names}, ({refusing}) AS gate FROM experiments e {where} ORDER BY id", values
        )
        return [Past(**_past(row, row["gate"])) for row in rows]

    def _experiments(self, where: str, values: Sequence[Any]) -> list[Experiment]:
        found = []
        for row in self._database.rows(f"SELECT * FROM experiments {where} ORDER BY id", values):
            gates = tuple(
                GateResult(g["name"], bool(g["passed"]), g["reason"], json.loads(g["evidence"]), g["seconds"])
                for g in self._database.rows("SELECT * FROM gates WHERE experiment = ? ORDER BY position", (row["id"],))
            )  # fmt: skip
            past = _past(row, gates[-1].name if gates and not gates[-1].passed else None)
            found.append(Experiment(**past, patch=row["patch"], gates=gates))
        return found

    def patch_numbers(self, run: str) -> dict[str, int]:
        """Number of the experiment that first carried each patch hash; those lost in flight may come again."""
        rows = self._database.rows(
            "SELECT patch_hash, number FROM experiments WHERE run = ? AND status <> ? ORDER BY number DESC",
            (run, LOST),
        )
        return {patch: number for patch, number in rows}

    def sketches(self, run: str) -> list[tuple[int, tuple[int, ...]]]:
        """(number, sketch) of every proposal of a run that was found correct, or may still be.

        One that was found wrong may come again, nearly the same, with its mistake repaired.
        """
        measured = "SELECT 1 FROM gates WHERE experiment = e.id AND name = 'microbench'"
        rows = self._database.rows(
            f"SELECT number, sketch FROM experiments e WHERE run = ? AND sketch <> '[]' AND status NOT IN (?, ?) "
            f"AND (status IN (?, ?) OR EXISTS ({measured})) ORDER BY number",
            (run, LOST, CRASH, RUNNING, READY),
        )
        return [(row["number"], tuple(json.loads(row["sketch"]))) for row in rows]

    def finished(self, run: str) -> int:
        """How many experiments of a run were judged to an end."""
        counts = self.counts(run)
        return sum(n for status, n in counts.items() if status not in (LOST, *OPEN))

    def counts(self, run: str) -> dict[str, int]:
        """How many experiments of a run have each status."""
        rows = self._database.rows(
            "SELECT status, count(*) AS n FROM experiments WHERE run = ? GROUP BY status", (run,)
        )
        return {row["status"]: row["n"] for row in rows}


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
    """The fields of `Past`. `gate` is the last one, if it did not pass: it refused only with status REFUSE (a verdict may drop)."""
    outcome = Outcome(**{name: row[name] for name in _OUTCOME})
    return {
        "id": row["id"], "run": row["run"], "number": row["number"], "proposer": row["proposer"], "model": row["model"],
        "hypothesis": row["hypothesis"], "expected": row["expected"], "paths": tuple(json.loads(row["paths"])),
        "notes": json.loads(row["notes"]), "parent": row["parent"], "commit": row["commit_hash"], "outcome": outcome,
        "refused_by": gate if outcome.status == REFUSE else None, "started": row["started"], "cost_usd": row["cost_usd"],
        "hardware": row["hardware"],
    }  # fmt: skip
