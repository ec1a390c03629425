"""What a trial comes to: its figures, or how it failed and under which name."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.judge import Refused

# Words of torch, of its CPU allocator, and of what ends a sandbox (cgroup.py, watchdog.py).
NO_MEMORY = ("out of memory", "can't allocate memory", "it used more memory than", "mib of memory")


@dataclass(frozen=True)
class TrialResult:
    """One trial. Where `ok` is False, `failure` classifies it, `detail` says what happened, and the figures are those known until then.

    `failure` is the name of the exception that the candidate raised, or

    out_of_memory, late, timeout, crash, structure      it broke, was too slow, or answered in another form
    nan, range, explosion                               of its losses and logits
    warm_start, forged                                  it knows text before it has read any; its curve is not that of its training
    leak, state                                         a logit depends on later tokens; a score depends on more than the row and the weights
    weights, off_clock                                  the weights changed after training; it worked outside of its time
    unused, wrong, ...                                  the kernels: they did not run, or fail a check of the correctness gate
    implausible                                         a score better than any honest model's
    """

    ok: bool
    failure: str = ""
    detail: str = ""
    val_bpb: float = math.nan
    training_seconds: float = 0.0
    total_seconds: float = 0.0
    setup_seconds: float = 0.0
    cpu_seconds: float = 0.0  # of the training and of handing over the weights, all cores
    peak_memory_mb: float = 0.0  # as the model says: on a GPU, the device's
    resident_memory_mb: float = 0.0  # as the kernel counted it, all processes
    mfu_percent: float = 0.0
    total_tokens_M: float = 0.0
    num_steps: int = 0
    num_params_M: float = 0.0
    depth: int = 0
    tokens_per_second: float = 0.0
    seed: int = 0
    implementations: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)  # of kernels, while training
    witnessed: dict[str, int] = field(default_factory=dict)  # of the calls, those held to float64
    train_loss: float = math.nan  # nats a token after training, by the judge, on rows of the shard
    losses: list[list[float]] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    isolation: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def classify(refused: Refused) -> str:
    """The `failure` of a trial that was refused."""
    text = str(refused).lower()
    known = refused.kind in ("OutOfMemoryError", "MemoryError")
    if known or any(words in text for words in NO_MEMORY):
        return "out_of_memory"
    return refused.kind
