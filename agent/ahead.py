"""Makes the next result while the present one is used: one thread, one result ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

Made = TypeVar("Made")
# How long the thread has to see that it is no longer wanted. It is a daemon, so it cannot keep the program from ending.
PATIENCE_S = 10.0


class Ahead(Generic[Made]):
    """`next` gives what `make` returns, or raises what it raised. With `ahead`, the one after it is made in the meantime.

    `stop` is set on leaving; `make` has to watch it wherever it waits.
    """

    def __init__(self, make: Callable[[], Made], ahead: bool, stop: threading.Event) -> None:
        self._make, self._ahead, self._stop = make, ahead, stop
        self._asked = threading.Semaphore(1)
        self._done: queue.SimpleQueue[Made | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="ahead", daemon=True)

    def __enter__(self) -> Ahead[Made]:
        if self._ahead:
            self._thread.start()
        return self

    def next(self, within_s: float) -> Made | None:
        """The next result, or None if it is not there within `within_s`. Without `ahead` it is made now, however long that takes."""
        if not self._ahead:
            return self._make()
        try:
            made = self._done.get(timeout=within_s)
        except queue.Empty:
            return None
        if isinstance(made, BaseException):
            raise made
        self._asked.release()
        return made

    def _work(self) -> None:
        while True:
            self._asked.acquire()
            if self._stop.is_set():
                return
            try:
                self._done.put(self._make())
            except BaseException as error:  # the boundary of the thread: `next` raises it
                self._done.put(error)
                return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._asked.release()
        if self._ahead:
            self._thread.join(PATIENCE_S)
