"""One SQLite file in WAL mode: transactions that are on disk when they return, and the steps that bring an older file up to date.

A local disk is required: SQLite's write-ahead log does not work over a network file system.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.schema import SCHEMA, SCHEMA_VERSION, STEPS


class LedgerError(RuntimeError):
    """The file is not a ledger that this version reads."""


class Database:
    """The file `path`, created with its tables if it is not there. One object may be used by several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(
            path, isolation_level=None, timeout=30.0, check_same_thread=False
        )
        self._db.row_factory = sqlite3.Row
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            # Most openings only read: they take no lock, and sync nothing beside a timed trial.
            if self._version() != SCHEMA_VERSION:
                with self.transaction():
                    self._prepare(self._version())
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # it is locked, or the disk is full
                raise
            raise LedgerError(
                f"{path}: {error}; this is no ledger, or a damaged one: move it away, and a new one is begun"
            ) from None

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _prepare(self, version: int) -> None:
        """Make the tables of a new file, or bring those of an older version up to date."""
        if version > SCHEMA_VERSION:
            raise LedgerError(
                f"{self.path}: schema {version}, expected at most {SCHEMA_VERSION}; move it away, or use the version of the lab that wrote it"
            )
        scripts = [SCHEMA] if version == 0 else [STEPS[v] for v in range(version, SCHEMA_VERSION)]
        for statement in ";".join(scripts).split(";"):
            self._db.execute(statement)
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is executed inside is synced to disk as a whole, or not at all."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # SQLite itself ends a transaction when the disk is full; that error is the one to show.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def execute(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Change rows, inside a transaction."""
        return self._db.execute(query, [_storable(value) for value in values])

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def insert(self, table: str, row: Mapping[str, Any]) -> int:
        """Add a row, inside a transaction; its id."""
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        done = self.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))
        return int(done.lastrowid or 0)


def _storable(value: Any) -> Any:
    """The value; in a text, ? for half of a surrogate pair, which is no UTF-8: a candidate's last words may hold one."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value
