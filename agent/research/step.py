"""What a proposer that asks a model finds out first: the profile of a training step of the incumbent, and the plan that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.judging import Unfit
from agent.machine import DEVICE
from agent.proposers import Context, Workshop
from agent.research import amdahl, search


class Step:
    """Holds the profile of one incumbent, measured once while it stands: half a minute of the device."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self._profile: tuple[str, Mapping[str, Any] | None] | None = None

    def plan(self, context: Context) -> search.Plan:
        """What to try next, by the share of the step that each op takes."""
        ops = [context.op] if context.op else self._workshop.ops(context.incumbent)
        return search.plan(
            context.history, context.run, context.commit, ops, context.seed, self._workshop.repository,
            target=context.target, op=context.op, shares=amdahl.shares(self.profile(context)),
        )  # fmt: skip

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
