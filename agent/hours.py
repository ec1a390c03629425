"""The time that a run has: its --hours of work and --gpu-hours of the device, over all its lives, and how much of it is set aside for its end.

At the end the champion is run again, which takes as long as six trials, and the experiment that is then under way may take six (champion.py).
That is part of the night that was asked for, so nothing new is begun once no more time than that is left. If it would be more than SHARE of a
limit, nothing is set aside, and the re-run is left for later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from agent.figures import count
from agent.ledger import Ledger
from agent.machine import Machine
from agent.records import Run
from agent.screen import duration

SHARE = 0.25  # of a limit, which may be set aside at most


class Hours:
    """The clock of one life of a run, which begins when this object is made."""

    def __init__(self, run: Run, ledger: Ledger, machine: Machine) -> None:
        self._run, self._settings = run.id, run.settings
        self._ledger, self._machine = ledger, machine
        self._stretch = ledger.accounts.begin_stretch(run.id)

    def tick(self) -> None:
        """Record that the run is still worked on."""
        self._ledger.accounts.tick(self._stretch, self._machine.device_seconds)

    def left_s(self) -> float:
        return min((limit - used for limit, used, _ in self._limits()), default=math.inf)

    def over(self, aside_s: Callable[[], float]) -> str | None:
        """Why nothing more is begun, or None. `aside_s`: seconds that the end of the run will take, asked for where there is a limit."""
        for limit, used, what in self._limits():
            asked = aside_s()
            aside = asked if asked <= SHARE * limit else 0.0
            if used + aside >= limit:
                all_of_it = f"{count(limit / 3600, 'hour')}{what}"
                if aside:
                    return f"the last {duration(aside)} of {all_of_it} are set aside for running again what was kept"
                return f"{all_of_it} {'is' if limit == 3600 else 'are'} over"
        return None

    def _limits(self) -> Iterator[tuple[float, float, str]]:
        """(limit, used by now, of what), both in seconds."""
        self.tick()
        worked, held = self._ledger.accounts.worked(self._run)
        for hours, used, what in (
            (self._settings.hours, worked, ""),
            (self._settings.gpu_hours, held, " of the device"),
        ):
            if hours is not None:
                yield hours * 3600, used, what
