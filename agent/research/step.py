"""The profile of a training step of the incumbent, measured once while it stands: half a minute of the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.judging import Unfit
from agent.machine import DEVICE
from agent.proposers import Context, Workshop


class Step:
    """What proposers know of a step. It holds the profile of one incumbent."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self._profile: tuple[str, Mapping[str, Any] | None] | None = None

    def profile(self, context: Context) -> Mapping[str, Any] | None:
        """As bench/step_profile.py describes it; None if it cannot be measured."""
        if self._profile is None or self._profile[0] != context.commit:
            with self._workshop.machine.hold(DEVICE):
                try:
                    found = self._workshop.judge.profile(None, context.incumbent)
                except Unfit as unfit:
                    self._workshop.screen.say(f"  the incumbent's step has no profile: {unfit}")
                    found = None
            self._profile = context.commit, found
        return self._profile[1]
