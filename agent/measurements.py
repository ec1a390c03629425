"""What was measured, in the ledger: trials, which later experiments may share, champion and start run again, kernels timed again."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from agent.database import Database
from agent.records import Confirmation, Pair, TrialKey

_KEY = tuple(field.name for field in fields(TrialKey))
_ALIKE = tuple(name for name in _KEY if name not in ("tree", "seed"))


class Measurements:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add_trial(self, run: str, key: TrialKey, result: Mapping[str, Any]) -> None:
        with self._database.transaction():
            row = {"run": run, **asdict(key), "ok": int(result["ok"]), "at": time.time()}
            row |= {name: result.get(name) for name in ("val_bpb", "tokens_per_second")}
            self._database.insert("trials", row | {"result": json.dumps(dict(result))})

    def find_trial(
        self, key: TrialKey, since: float = 0.0, run: str | None = None
    ) -> dict[str, Any] | None:
        """The latest good trial with this key, not older than `since` (seconds since the epoch), of this run, or of any without one."""
        where = " AND ".join(f"{name} = ?" for name in _KEY)
        rows = self._database.rows(
            f"SELECT result FROM trials WHERE {where} AND ok = 1 AND NOT void AND at BETWEEN ? AND ? AND (? IS NULL OR run = ?) "
            "ORDER BY id DESC LIMIT 1",
            (*asdict(key).values(), since, time.time(), run, run),
        )
        return json.loads(rows[0]["result"]) if rows else None

    def figures(self, key: TrialKey) -> list[dict[str, Any]]:
        """tree, seed, val_bpb and tokens_per_second of every good trial that differs from `key` in tree and seed alone, oldest first.

        Without the curves, some 20 KB a trial: the noise is asked for after every pair, and a month leaves thousands of trials.
        """
        rows = self._good(key, "tree, seed, val_bpb, tokens_per_second", "ORDER BY id")
        return [dict(row) for row in rows]

    def seconds(self, key: TrialKey, most: int) -> list[float]:
        """How long the last `most` of these trials took in all, the latest first."""
        rows = self._good(key, "result", "ORDER BY id DESC LIMIT ?", most)
        return [json.loads(row["result"])["total_seconds"] for row in rows]

    def _good(self, key: TrialKey, columns: str, order: str, *more: int) -> list[sqlite3.Row]:
        where = " AND ".join(f"{name} = ?" for name in _ALIKE)
        return self._database.rows(
            f"SELECT {columns} FROM trials WHERE {where} AND ok = 1 AND NOT void {order}",
            [*(getattr(key, name) for name in _ALIKE), *more],
        )

    def void_trials(self, key: TrialKey, before: float) -> None:
        """Record that this machine and device have changed: no run finds a trial from before that moment any more."""
        with self._database.transaction():
            self._database.execute(
                "UPDATE trials SET void = 1 WHERE machine = ? AND device = ? AND (at < ? OR at > ?)",
                # the latter lie in the future: the clock went back
                (key.machine, key.device, before, time.time()),
            )

    def add_confirmation(self, run: str, incumbent: str, found: Confirmation) -> None:
        with self._database.transaction():
            row = {"run": run, "incumbent": incumbent, "at": time.time()}
            self._database.insert("confirmations", row | asdict(found))

    def confirmations(self, run: str, incumbent: str) -> list[Confirmation]:
        """The latest re-measurement of each op of this incumbent against the run's start."""
        rows = self._database.rows(
            "SELECT op, ratio, low, high, blocks, faster FROM confirmations WHERE run = ? AND incumbent = ? ORDER BY rowid",
            (run, incumbent),
        )
        found = {row["op"]: dict(row) | {"faster": bool(row["faster"])} for row in rows}
        return [Confirmation(**row) for row in found.values()]

    def add_pair(self, run: str, pair: Pair) -> None:
        """Add a pair of start and champion, in the place of an earlier one on the same seed."""
        with self._database.transaction():
            self._database.execute(
                "DELETE FROM pairs WHERE run = ? AND incumbent = ? AND seed = ?",
                (run, pair.incumbent, pair.seed),
            )
            self._database.insert("pairs", {"run": run, "at": time.time()} | asdict(pair))

    def pairs(self, run: str) -> list[Pair]:
        """Every pair of start and champion of a run, oldest first."""
        names = ", ".join(field.name for field in fields(Pair))
        rows = self._database.rows(
            f"SELECT {names} FROM pairs WHERE run = ? ORDER BY rowid", (run,)
        )
        return [Pair(**dict(row)) for row in rows]
