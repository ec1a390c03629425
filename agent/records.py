"""The values that move through the loop, all of them frozen. What a run is, proposes and finds is kept in rows of the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent import surface

# How an experiment ends. `lost`: the loop was stopped or killed while it was in flight, or the machine failed; the
# candidate is not to blame.
KEEP, DROP, REFUSE, CRASH, LOST = "keep", "drop", "refuse", "crash", "lost"
# The reason begins so where the judge or the machine failed: nothing is known of the candidate.
UNFINISHED = "the judge could not finish"
# How it stands before its end: at the gates, or past those that need no quiet machine and waiting for its trial.
RUNNING, READY = "running", "ready"
OPEN = (RUNNING, READY)

# The default of --isolation, which is that or strict.
BEST_EFFORT = "best-effort"


@dataclass(frozen=True)
class Settings:
    """What a run was asked for; kept with it, so that `--resume` goes on with the same."""

    target: str = "kernels"
    op: str | None = None
    proposer: str = "auto"
    models: tuple[str, ...] = ()  # the provider's default, if empty
    base_url: str | None = None  # of an OpenAI-compatible endpoint
    prices: tuple[str, ...] = ()  # MODEL=IN/OUT, USD per million tokens; they overrule the table
    command: str | None = None  # of the proposer `command`
    recording: str | None = None  # of the proposer `replay`
    experiments: int | None = None
    hours: float | None = None
    gpu_hours: float | None = None  # for which gates and trials may hold the device
    usd: float | None = None
    tokens: int | None = None  # in and out, cached ones included
    seconds: float = 300.0  # length of a trial
    data: str = ""  # directory of the prepared data
    start: str | None = None
    device: str = "cpu"
    seed: int = 0
    isolation: str = BEST_EFFORT
    judge: str = ""  # hash of the judge's files when the run was opened or resumed


@dataclass(frozen=True)
class Proposal:
    """A hypothesis and the whole new text of each file that it changes (None: the file is deleted).

    `notes` come back to the proposer with the outcome and must be plain JSON. Money and tokens are what all the research that led
    here took, its repairs included.
    """

    hypothesis: str
    files: Mapping[str, str | None]
    proposer: str
    model: str = ""
    expected: str = ""  # the effect that the proposer predicts
    notes: Mapping[str, Any] = field(default_factory=dict)
    cost_usd: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0


PLAIN, ABSENT = "100644", "000000"  # git's modes of a plain file, and of none


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
    """How an experiment ended.

    `speed` is candidate time / incumbent time, with the timer's bounds (bench/speed.py), from so many timed `blocks`. `bpb_change` is
    candidate minus incumbent and `rate` candidate tokens/s / incumbent tokens/s, with bounds of 95 %, from so many `pairs` of trials.
    """

    status: str
    reason: str
    speed: float | None = None
    val_bpb: float | None = None
    bpb_change: float | None = None
    peak_memory_mb: float | None = None
    device_seconds: float = 0.0  # of its trials, with the incumbent's beside it; not of its gates
    speed_low: float | None = None
    speed_high: float | None = None
    blocks: int | None = None
    bpb_low: float | None = None
    bpb_high: float | None = None
    rate: float | None = None
    rate_low: float | None = None
    rate_high: float | None = None
    pairs: int | None = None

    @property
    def judged(self) -> bool:
        """Whether the experiment was judged to an end: it is neither under way nor lost."""
        return self.status not in (LOST, *OPEN)


@dataclass(frozen=True)
class Pair:
    """Start and champion of a run, trained once more on a seed that chose nothing and scored on the test split.

    `judge` is a hash of the judge that scored them and of the machine.
    """

    incumbent: str
    keeps: int  # in this incumbent
    seed: int
    before_bpb: float
    after_bpb: float
    before_rate: float  # tokens/s
    after_rate: float
    judge: str


@dataclass(frozen=True)
class Confirmation:
    """An op of the champion timed once more against the start, with fresh inputs. `faster`: whether the timer called it so."""

    op: str
    ratio: float
    low: float
    high: float
    blocks: int
    faster: bool


@dataclass(frozen=True)
class Past:
    """A proposal and what became of it, in short, so that thousands can be held and searched."""

    id: int
    run: str
    number: int
    proposer: str
    model: str
    hypothesis: str
    expected: str
    paths: tuple[str, ...]
    notes: Mapping[str, Any]
    parent: str
    commit: str
    outcome: Outcome
    refused_by: str | None  # the gate
    started: float
    cost_usd: float
    hardware: str = ""  # that it was measured on, as bench/hardware.py names it; "" if not recorded

    @property
    def ops(self) -> tuple[str, ...]:
        """Stems of the kernel files that it changed: names of ops, or of a shared header."""
        kernels = filter(surface.is_kernel, self.paths)
        return tuple(sorted({path.rpartition("/")[2].partition(".")[0] for path in kernels}))


@dataclass(frozen=True)
class Experiment(Past):
    """A proposal and what became of it, complete with the patch and the evidence of each gate."""

    patch: str = ""
    gates: tuple[GateResult, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens billed; `input` does not count what was read from or written to the cache."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0

    @property
    def prompt(self) -> int:
        """Tokens of the prompt, cached or not."""
        return self.input + self.cache_read + self.cache_write


@dataclass(frozen=True)
class CallTotals:
    """What the calls of a run came to; `tokens_in` is a sum of Usage.input. Calls in flight count at their upper bound; `in_flight_usd` is their part of `usd`."""

    usd: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    cache_read: int = 0
    cache_write: int = 0
    count: int = 0
    in_flight_usd: float = 0.0

    @property
    def tokens(self) -> int:
        return self.tokens_in + self.tokens_out + self.cache_read + self.cache_write


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
