"""Money and time in the ledger: requests to models with what they cost, and for how long a run was worked on."""

from __future__ import annotations

import time

from agent.database import Database
from agent.records import CallTotals, Usage


class Accounts:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._clocks: dict[int, float] = {}  # by stretch, the monotonic time at which it began

    def open_call(self, run: str, model: str, tokens_in: int, tokens_out: int, usd: float) -> int:
        """Record a request to a model at its upper bound before it is sent; its id."""
        with self._database.transaction():
            row = {
                "run": run, "model": model, "in_flight": 1, "tokens_in": tokens_in, "tokens_out": tokens_out,
                "cache_read": 0, "cache_write": 0, "usd": usd, "at": time.time(),
            }  # fmt: skip
            return self._database.insert("calls", row)

    def close_call(self, call: int, used: Usage, usd: float) -> None:
        """Replace the bound of a request by what it really used and cost."""
        with self._database.transaction():
            self._database.execute(
                "UPDATE calls SET in_flight = 0, tokens_in = ?, tokens_out = ?, cache_read = ?, cache_write = ?, usd = ? "
                "WHERE id = ?",
                (used.input, used.output, used.cache_read, used.cache_write, usd, call),
            )

    def calls(self, run: str) -> CallTotals:
        """All requests of a run. One that was in flight when the loop was killed counts at its upper bound."""
        (row,) = self._database.rows(
            "SELECT total(usd) AS usd, coalesce(sum(tokens_in), 0) AS tokens_in, coalesce(sum(tokens_out), 0) AS tokens_out, "
            "coalesce(sum(cache_read), 0) AS cache_read, coalesce(sum(cache_write), 0) AS cache_write, count(*) AS count, "
            "total(usd * in_flight) AS in_flight_usd FROM calls WHERE run = ?",
            (run,),
        )
        return CallTotals(**dict(row))

    def spent(self, run: str) -> dict[str, float]:
        """Money (USD), tokens, hours at work and seconds on the device of a run so far.

        `in_flight_usd` is the part of the money that is only an upper bound.
        """
        calls, (seconds, device) = self.calls(run), self.worked(run)
        return {
            "usd": calls.usd,
            "in_flight_usd": calls.in_flight_usd,
            "tokens": calls.tokens,
            "hours": seconds / 3600,
            "device_seconds": device,
        }

    def begin_stretch(self, run: str) -> int:
        """Begin a stretch of work on a run; its id, for `tick`. Time for which the machine sleeps does not count."""
        with self._database.transaction():
            now = time.time()
            stretch = self._database.insert(
                "stretches", {"run": run, "began": now, "until": now, "device_seconds": 0.0}
            )
        self._clocks[stretch] = time.monotonic()
        return stretch

    def last_at_work(self, since: float) -> str | None:
        """The run that was worked on last, if that work began after `since`, in seconds since 1970."""
        query = "SELECT run FROM stretches WHERE began >= ? ORDER BY id DESC LIMIT 1"
        rows = self._database.rows(query, [since])
        return rows[0]["run"] if rows else None

    def tick(self, stretch: int, device_seconds: float) -> None:
        """Record that the run is still worked on, and for how long it has held the device in this stretch."""
        with self._database.transaction():
            self._database.execute(
                "UPDATE stretches SET until = began + ?, device_seconds = ? WHERE id = ?",
                (time.monotonic() - self._clocks[stretch], device_seconds, stretch),
            )

    def worked(self, run: str) -> tuple[float, float]:
        """(seconds at work, seconds that the device was held) of a run, over all its stretches."""
        (row,) = self._database.rows(
            "SELECT total(until - began) AS seconds, total(device_seconds) AS device FROM stretches WHERE run = ?",
            (run,),
        )
        return row["seconds"], row["device"]
