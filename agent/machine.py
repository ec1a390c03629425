"""Who may use the machine, and when: nothing is timed or trained beside work that would slow it down.

On a CPU a build takes the cores from a trial, so all heavy work takes turns. On a GPU a build and a trial run side by side, and only
what runs on the device takes turns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NOTHING, CORES, DEVICE = "", "cores", "device"


class Machine:
    """The one machine of a run; several threads ask it for a turn."""

    def __init__(self, device: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._shared = frozenset({CORES, DEVICE} if device == "cpu" else {DEVICE})
        self._turn = threading.RLock()
        self._clock = clock
        self._held = 0.0
        self._since: float | None = None

    @contextmanager
    def hold(self, uses: str) -> Iterator[None]:
        """Hold what a piece of work uses (NOTHING, CORES or DEVICE) until it is done; waits for its turn."""
        if uses not in (NOTHING, CORES, DEVICE):
            raise ValueError(f"uses: expected {NOTHING!r}, {CORES!r} or {DEVICE!r}, got {uses!r}")
        if uses not in self._shared:
            yield
            return
        with self._turn:
            outermost = uses == DEVICE and self._since is None
            if outermost:
                self._since = self._clock()
            try:
                yield
            finally:
                if outermost and self._since is not None:
                    self._held += self._clock() - self._since
                    self._since = None

    @property
    def device_seconds(self) -> float:
        """Seconds for which the device was held so far."""
        since = self._since
        return self._held + (self._clock() - since if since is not None else 0.0)
