"""A coding agent that is a script of a few lines, and the desk at which it works."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab_tree import CPP, Rules, Transcript, make, write

from agent.git import Repository
from agent.judging import Judging
from agent.ledger import Ledger
from agent.machine import Machine
from agent.proposers import Context, Workshop
from agent.proposers.command import Command, Task
from agent.records import GateResult, Proposal, Run, Settings
from agent.research.search import IMPROVE, Plan

FASTER = "csrc/scale.cpp", CPP.replace("kRows = 1", "kRows = 4")


REFUSAL = GateResult("build", False, "scale.cpp:3: error: cannot unroll", {"line": 3}, 0.1)


@dataclass
class Bench:
    """A checkout and all that a proposer may use of it."""

    root: Path
    settings: Settings = field(default_factory=Settings)
    stop: threading.Event = field(default_factory=threading.Event)
    screen: Transcript = field(default_factory=Transcript)

    def __post_init__(self) -> None:
        write(self.root, {"bench/contracts/scale.py": "# y = factor x\n"})
        self.repository = Repository(self.root)
        self.base = self.repository.resolve("HEAD")
        self.run = self.root / ".lab" / "runs" / "night"
        self.run.mkdir(parents=True)
        self.incumbent = self.run / "trees" / "base"
        self.repository.export(self.base, self.incumbent, ("kernels", "csrc", "model"))
        self.ledger = Ledger(self.root / ".lab" / "ledger.sqlite")
        self.ledger.start_run(Run("night", self.settings, self.base, self.base, self.base, 0.0))

    def workshop(self) -> Workshop:
        judge: Judging = Rules()
        return Workshop(
            self.settings, "night", self.run, self.ledger, self.repository,
            judge, Machine("cpu"), self.screen, self.stop,
        )  # fmt: skip

    def context(self, target: str = "kernels") -> Context:
        return Context(
            "night", self.base, self.incumbent, target, None, "cpu", 0, agenda="be brave"
        )

    def agent(
        self,
        script: str,
        *arguments: str,
        plan: Plan | None = None,
        seconds: float = 30.0,
        environment: Mapping[str, str] = os.environ,
    ) -> Command:
        """A coding agent that is this Python script."""
        file = self.root / ".lab" / "agent.py"
        file.write_text("import json, os, pathlib, subprocess, sys, time\n" + script)
        task = Task(plan or Plan(IMPROVE, "scale"), "make scale faster")
        return Command(
            [sys.executable, str(file), *arguments], self.workshop(), lambda context: task,
            seconds=seconds, environment=environment,
        )  # fmt: skip

    def logs(self) -> str:
        return "".join(file.read_text() for file in sorted(self.run.glob("*.log")))


def bench_in(tmp_path: Path) -> Bench:
    """A fixture's body: see conftest.py."""
    return Bench(make(tmp_path / "checkout"))


def put(path: str, text: str) -> str:
    """A line of script that writes a file."""
    return f"pathlib.Path({path!r}).write_text({text!r})\n"


def proposed(agent: Command, context: Context) -> Proposal:
    proposal = agent.propose(context)
    assert proposal is not None
    return proposal
