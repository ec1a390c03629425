"""Waiting out a server that is busy or away, in growing steps, until it answers, the run is told to stop, or `longest_s` are over.

A night must outlive an outage of hours: who gives up here gives up a conversation, and the next begins (the loop looks at the night's limits
meanwhile). The wait is what the server asked for, else 1, 2, 4 ... up to 300 seconds, drawn from the upper half of that step so that several labs do not come back at the
same moment.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from agent.proposers import Stopped
from agent.research.messages import ModelUnusable, Transient
from agent.screen import duration

FIRST_S, LONGEST_S = 1.0, 300.0  # of the steps that double
LONGEST_ASKED_S = 3600.0  # a server that asks for more is tried again after this
SAY_EVERY_S = 60.0

Answer = TypeVar("Answer")


class Patience:
    """Repeats requests that fail with Transient. `say` gets a line at the first failure, then one a minute."""

    def __init__(
        self,
        stop: threading.Event,
        say: Callable[[str], None],
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        longest_s: float = math.inf,
    ) -> None:
        """longest_s: after which ModelUnusable is raised, so that one request ends no night."""
        self._stop, self._say, self._clock, self._longest_s = stop, say, clock, longest_s
        self._rng = rng or random.Random()

    def check(self) -> None:
        """Raises Stopped if the run was told to stop."""
        if self._stop.is_set():
            raise Stopped("the run was told to stop")

    def until_answered(self, attempt: Callable[[], Answer]) -> Answer:
        """The answer of the first attempt that is not Transient; raises Stopped, ModelUnusable after `longest_s`, and whatever else `attempt` raises."""
        failures, began, spoke = 0, self._clock(), -math.inf
        while True:
            self.check()
            try:
                return attempt()
            except Transient as error:
                said, seconds = str(error), self.pause(failures, error.retry_after)
            self.check()
            if self._clock() - began > self._longest_s:
                raise ModelUnusable(f"{said}, for {duration(self._longest_s)}")
            failures += 1
            spoke = self._wait(seconds, said, began, spoke)

    def pause(self, failures: int, asked: float | None) -> float:
        """Seconds to wait after a failure that came after `failures` others; `asked`: what the server asked for, if anything."""
        if asked is not None and math.isfinite(asked) and asked > 0:
            return min(asked, LONGEST_ASKED_S) * self._rng.uniform(1.0, 1.1)
        step = min(FIRST_S * 2.0 ** min(failures, 16), LONGEST_S)
        return step * self._rng.uniform(0.5, 1.0)

    def _wait(self, seconds: float, said: str, began: float, spoke: float) -> float:
        """Wait `seconds`, speaking once a minute; the time at which it last spoke."""
        until = self._clock() + seconds
        while (left := until - self._clock()) > 0:
            if self._clock() - spoke >= SAY_EVERY_S:
                waited = self._clock() - began
                so_far = f" ({waited:.0f} s so far)" if waited >= 1 else ""
                self._say(f"  {said}; trying again in {left:.0f} s{so_far}")
                spoke = self._clock()
            if self._stop.wait(min(left, spoke + SAY_EVERY_S - self._clock())):
                raise Stopped(f"stopped while waiting: {said}")
        return spoke
