"""Nights of a proposer that says what a test tells it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from lab_tree import CPP, MODEL, Rules, Transcript

from agent import campaign, proposers
from agent.lab import Lab
from agent.proposers import Context
from agent.records import GateResult, Proposal, Settings
from bench.trial_result import TrialResult

SETTINGS = Settings(seconds=5.0, data="corpus-1", target="all")


def rows(value: int) -> dict[str, str | None]:
    return {"csrc/scale.cpp": CPP.replace("kRows = 1", f"kRows = {value}")}


def rate(value: float) -> dict[str, str | None]:
    return {"model/optim.py": MODEL.replace("LR = 0.04", f"LR = {value}")}


Move = Proposal | Exception | Callable[[Context], Proposal]


@dataclass
class Scripted:
    """Proposes what it is given, one after another; `mend` answers refusals."""

    moves: list[Move]
    mend: Callable[[Proposal, GateResult], Proposal | None] = lambda proposal, refusal: None
    ahead: bool = True
    name: str = "scripted"
    seen: list[Context] = field(default_factory=list)
    # asked a second time
    again: threading.Event = field(default_factory=threading.Event)

    def propose(self, context: Context) -> Proposal | None:
        self.seen.append(context)
        if len(self.seen) > 1:
            self.again.set()
        if not self.moves:
            return None
        move = self.moves.pop(0)
        if isinstance(move, Exception):
            raise move
        return move(context) if callable(move) else move

    def repair(self, proposal: Proposal, refusal: GateResult) -> Proposal | None:
        return self.mend(proposal, refusal)


def idea(files: Mapping[str, str | None], says: str = "an idea") -> Proposal:
    return Proposal(says, files, "scripted")


def night(
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
    proposer: Scripted,
    judge: Rules | None = None,
    **settings: Any,
) -> Transcript:
    monkeypatch.setattr(proposers, "create", lambda name, workshop: proposer)
    screen = Transcript()
    asked = replace(SETTINGS, proposer="sweep", **settings)
    campaign.run(lab, asked, screen, judge or Rules())
    return screen


class SlowTrials(Rules):
    """A candidate is trained once its proposer has been asked for the next proposal."""

    def __init__(self, proposer: Scripted) -> None:
        super().__init__()
        self.proposer = proposer

    def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
        if "kRows = 1" not in (tree / "csrc/scale.cpp").read_text():
            assert self.proposer.again.wait(20)
        return found
