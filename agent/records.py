"""The values that move through the loop; each is frozen, and each but `Candidate` is a row of the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# How an experiment ends. `lost`: the loop was stopped or killed while it was in flight.
KEEP, DROP, REFUSE, CRASH, LOST = "keep", "drop", "refuse", "crash", "lost"
RUNNING = "running"


@dataclass(frozen=True)
class Settings:
    """What a run was asked for; kept with it, so that `--resume` goes on with the same."""

    target: str = "kernels"
    op: str | None = None
    proposer: str = "sweep"
    experiments: int | None = None
    hours: float | None = None
    seconds: float = 300.0  # length of a trial
    data: str = ""  # directory of the prepared data
    start: str | None = None
    device: str = "cpu"
    seed: int = 0
    judge: str = ""  # hash of the judge's files when the run was opened or gone on with


@dataclass(frozen=True)
class Proposal:
    """A hypothesis and the whole new text of each file that it changes (None: the file is deleted).

    `notes` come back to the proposer with the outcome and must be plain JSON.
    """

    hypothesis: str
    files: Mapping[str, str | None]
    proposer: str
    notes: Mapping[str, Any] = field(default_factory=dict)
    cost_usd: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True)
class Change:
    """One path that differs between two commits, with git's modes ("000000" where it does not exist) and contents."""

    path: str
    mode_before: str
    mode_after: str
    before: bytes | None
    after: bytes | None

    @property
    def added(self) -> bool:
        return self.before is None

    @property
    def deleted(self) -> bool:
        return self.after is None

    def text(self) -> str:
        """The new content; "" for a deleted file. Raises UnicodeDecodeError for what is not text."""
        return (self.after or b"").decode()


@dataclass(frozen=True)
class Candidate:
    """What the gates judge: a tree of files beside the tree that it would replace."""

    target: str
    incumbent: Path
    tree: Path
    changes: tuple[Change, ...]
    patch: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(change.path for change in self.changes)


@dataclass(frozen=True)
class GateResult:
    """What one gate said. `reason` names what would mend a refusal; `evidence` is plain JSON."""

    name: str
    passed: bool
    reason: str
    evidence: Mapping[str, Any]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "passed": self.passed,
            "reason": self.reason,
            "evidence": dict(self.evidence),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Run:
    """One campaign: its settings, the commit it started from, the incumbent it has come to."""

    id: str
    settings: Settings
    base: str  # the user's HEAD
    start: str  # base, with the files of --start
    incumbent: str
    started: float
    ended: float | None = None


@dataclass(frozen=True)
class Outcome:
    """How an experiment ended. `speed` is candidate time / incumbent time, `bpb_change` candidate minus incumbent."""

    status: str
    reason: str
    speed: float | None = None
    val_bpb: float | None = None
    bpb_change: float | None = None
    peak_memory_mb: float | None = None
    device_seconds: float = 0.0


@dataclass(frozen=True)
class Experiment:
    """A proposal and what became of it, as the ledger remembers it."""

    id: int
    run: str
    number: int
    proposer: str
    hypothesis: str
    notes: Mapping[str, Any]
    parent: str
    commit: str
    patch: str
    outcome: Outcome
    gates: tuple[GateResult, ...]
    started: float


@dataclass(frozen=True)
class TrialKey:
    """What makes two trials the same measurement: equal keys may share one result."""

    tree: str  # hash of the editable files
    judge: str  # hash of bench/, so that a changed judge never meets old figures
    machine: str
    dataset: str
    device: str
    seconds: float
    seed: int
    split: str = "val"
