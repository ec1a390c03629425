"""Proposers: one file each, found by its name, behind one small protocol.

`agent/proposers/<name>.py` defines `create() -> Proposer`. A proposer learns how its proposals ended from `Context.history`, which is
the ledger, so that a killed run forgets nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.records import Experiment, Proposal


@dataclass(frozen=True)
class Context:
    """What a proposer is told."""

    run: str
    incumbent: Path  # the tree to improve
    target: str
    op: str | None
    device: str
    seed: int
    history: Sequence[Experiment] = ()  # of all runs, oldest first
    agenda: str = ""  # program.md
    brought: tuple[str, ...] = ()  # files of --start: what the person asks to refine


class Proposer(Protocol):
    name: str

    def propose(self, context: Context) -> Proposal | None:
        """The next proposal; None when there is nothing left to try."""
        ...


def names() -> list[str]:
    """The proposers of this folder, by file name."""
    return sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__"
    )


def create(name: str) -> Proposer:
    """Raises ValueError with the list if there is none of that name."""
    if name not in names():
        raise ValueError(f"no proposer {name!r}: expected one of {', '.join(names())}")
    made: Proposer = importlib.import_module(f"agent.proposers.{name}").create()
    return made
