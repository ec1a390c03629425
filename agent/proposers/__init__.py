"""Proposers: one file each, found by its name, behind one small protocol.

`agent/proposers/<name>.py` defines `create(workshop) -> Proposer`. A proposer learns how its proposals ended from `Context.history`, which
comes from the ledger, so that a killed run forgets nothing.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agent.git import Repository
from agent.judging import Judging
from agent.lab import Unusable
from agent.ledger import Ledger
from agent.machine import Machine
from agent.records import GateResult, Past, Proposal, Settings
from agent.screen import Screen

AUTO = "auto"
CONTRACTS = "bench/contracts"
REPAIRS = 2  # times that a refused proposal goes back to its proposer
MODELS = frozenset({"anthropic", "openai"})  # they ask a model, and their requests are counted
# These and the coding agent think while a trial runs; the others spend nothing.
PAID = MODELS | {"command"}


@dataclass(frozen=True)
class Context:
    """What a proposer is told for one proposal."""

    run: str
    commit: str  # of the incumbent
    incumbent: Path  # its tree, which nothing changes while the run lasts
    target: str
    op: str | None
    device: str
    seed: int
    history: Sequence[Past] = ()  # of all runs, oldest first
    agenda: str = ""  # program.md
    brought: tuple[str, ...] = ()  # files of --start, which the person asks to refine
    hardware: str = ""  # of the measurements, as bench/hardware.py names it
    seconds: float = 300.0  # of a trial
    standing: str = ""  # what the incumbent's trials have shown, in a sentence


@dataclass(frozen=True)
class Workshop:
    """What the parts of one run share, proposers included. `stop` is set when the run ends: whatever waits then has to give up."""

    settings: Settings
    run: str
    folder: Path  # of the run; drafts in it are removed when the run ends, logs stay
    ledger: Ledger
    repository: Repository
    judge: Judging
    machine: Machine
    screen: Screen
    stop: threading.Event

    def ops(self, tree: Path) -> list[str]:
        """The ops to plan for: those of which a tree has a kernel. A first one has nothing to be faster than, and the microbench would refuse it."""
        return [op for op in self.judge.ops() if (tree / "kernels" / f"{op}.py").is_file()]

    def contracts(self) -> dict[str, str]:
        """The contracts of the ops by path, for reading. A link among them, as an editor's lock is one, is passed over."""
        files = sorted((self.repository.root / CONTRACTS).glob("*.py"))
        return {
            f"{CONTRACTS}/{file.name}": file.read_text() for file in files if not file.is_symlink()
        }


class NoProposal(Exception):
    """Work was done and nothing to judge came of it; the ledger gets a row with what it cost."""

    def __init__(
        self,
        reason: str,
        *,
        hypothesis: str = "",
        model: str = "",
        notes: Mapping[str, Any] | None = None,
        cost_usd: float = 0.0,
        tokens_in: int = 0,
        tokens_out: int = 0,
    ) -> None:
        super().__init__(reason)
        self.reason, self.hypothesis, self.model = reason, hypothesis, model
        self.notes = dict(notes or {})
        self.cost_usd, self.tokens_in, self.tokens_out = cost_usd, tokens_in, tokens_out


class Stopped(Exception):
    """The run ended while a proposal was being made."""


class Proposer(Protocol):
    name: str
    ahead: bool  # whether it prepares the next proposal while a trial runs

    def propose(self, context: Context) -> Proposal | None:
        """The next proposal; None when there is nothing left to try.

        Raises NoProposal if nothing came of it, Stopped if the run ended meanwhile, agent.spending.BudgetSpent to end the run.
        """
        ...

    def repair(self, proposal: Proposal, refusal: GateResult) -> Proposal | None:
        """The same idea, repaired after a gate refused it; None to give it up. Raises what `propose` raises."""
        ...


def names() -> list[str]:
    """The proposers of this folder, by file name."""
    return sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__"
    )


def choose(settings: Settings, environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """The proposer of these settings, and why; `auto` takes what is configured here. Raises Unusable for an unknown name, and for a model of nobody."""
    if settings.proposer != AUTO:
        if settings.proposer not in names():
            known = ", ".join([AUTO, *names()])
            raise Unusable(f"--proposer {settings.proposer}: expected one of {known}")
        return settings.proposer, "as asked"
    if settings.recording:
        return "replay", "--recording is given"
    if settings.command:
        return "command", "--command is given"
    if settings.base_url:
        return "openai", "--base-url is given"
    if environment.get("ANTHROPIC_API_KEY"):
        return "anthropic", "ANTHROPIC_API_KEY is set"
    if environment.get("OPENAI_API_KEY"):
        return "openai", "OPENAI_API_KEY is set"
    if settings.models:
        raise Unusable(
            f"--model {settings.models[0]}: whom to ask? Set ANTHROPIC_API_KEY or OPENAI_API_KEY, or give --base-url"
        )
    return "sweep", "no key is set (ANTHROPIC_API_KEY, OPENAI_API_KEY): it searches constants alone"


def about_money(name: str, settings: Settings) -> str:
    """What to say where a limit of money or tokens is set for a proposer that spends neither, or none for one that spends; "" elsewhere."""
    limited = settings.usd is not None or settings.tokens is not None
    if limited == (name in PAID):
        return ""
    if limited:
        return f"{name} asks no model: a limit of money or tokens never ends it"
    return f"{name} may spend without a limit: --usd or --tokens sets one, with --resume too"


def create(name: str, workshop: Workshop) -> Proposer:
    """The proposer of this name, ready to work. Raises agent.lab.Unusable, in one line, if something that it needs is missing."""
    made: Proposer = importlib.import_module(f"agent.proposers.{name}").create(workshop)
    return made
