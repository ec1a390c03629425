"""A research session's surroundings: a lab around a small checkout, and the replies that most tests script."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from lab_tree import Rules, Transcript, make
from scripted_model import Scripted, call, calls

from agent.lab import Lab
from agent.ledger import Ledger
from agent.machine import Machine
from agent.prices import Price
from agent.proposers import Context, NoProposal, Workshop
from agent.records import GateResult, Run, Settings
from agent.research.draft import Draft
from agent.research.messages import (
    Reply,
)
from agent.research.patience import Patience
from agent.research.researcher import Researcher
from agent.research.session import Bounds, Session
from agent.research.tools import Toolbox, ToolLimits
from agent.spending import Limits, Purse

PATH = "csrc/scale.cpp"


REFUSED = GateResult("build", False, "scale.cpp:3: error: cannot unroll", {}, 0.1)


@dataclass
class Setting:
    """A lab around a small checkout, with all that a session is given."""

    workshop: Workshop
    context: Context
    screen: Transcript
    rules: Rules

    @property
    def ledger(self) -> Ledger:
        return self.workshop.ledger

    def session(self, model: Scripted, limits: ToolLimits | None = None, **bounds: Any) -> Session:
        draft = Draft(self.context.incumbent, self.workshop.folder, "kernels", None)
        toolbox = Toolbox(draft, self.workshop, self.context, limits)
        purse = Purse(self.ledger.accounts, "r", {"scripted": Price(4.0, 20.0, 0.4, 5.0)}, Limits())
        patience = Patience(self.workshop.stop, self.screen.say)
        return Session(
            model, toolbox, purse, patience, ("Rules.",), "Make scale faster.", Bounds(**bounds),
        )  # fmt: skip

    def researcher(self, *models: Scripted, **settings: Any) -> Researcher:
        prices = tuple(f"{model.name}=4/20/0.4/5" for model in models)
        settings = {"prices": prices} | settings
        asked = replace(self.workshop.settings, **settings)
        return Researcher("scripted", replace(self.workshop, settings=asked), models)


def settings_in(tmp_path: Path) -> Iterator[Setting]:
    """A fixture's body: see conftest.py."""
    home = Lab(make(tmp_path / "checkout"))
    repository, ledger = home.repository(), home.ledger()
    commit = repository.resolve("HEAD")
    settings = Settings(device="cpu")
    ledger.start_run(Run("r", settings, commit, commit, commit, time.time()))
    folder = tmp_path / "scratch"
    folder.mkdir()
    screen, rules = Transcript(), Rules()
    workshop = Workshop(
        settings=settings, run="r", folder=folder, ledger=ledger, repository=repository,
        judge=rules, machine=Machine("cpu"), screen=screen, stop=threading.Event(),
    )  # fmt: skip
    context = Context(
        run="r", commit=commit, incumbent=home.root, target="kernels", op=None, device="cpu", seed=0,
        agenda="Fuse what is bound by memory.",
    )  # fmt: skip
    yield Setting(workshop, context, screen, rules)
    ledger.close()


def read() -> Reply:
    return calls(call("read", path=PATH))


def edit(rows: int = 4) -> Reply:
    return calls(call("edit", path=PATH, old="kRows = 1;", new=f"kRows = {rows};"))


def submit(hypothesis: str = "four rows a block hide the latency") -> Reply:
    return calls(call("submit", hypothesis=hypothesis, expected="scale twice as fast", op="scale"))


def ends_with_nothing(made: Session) -> NoProposal:
    with pytest.raises(NoProposal) as caught:
        made.run()
    return caught.value
