"""The trial: a fixed wall-clock time of training, and what it proves.

1. Set-up, off the clock and capped: the runner imports the model, builds, compiles and warms up on random tokens. No text is readable yet.
2. The bell: the judge hands over the training shard (a descriptor), the seed and the seconds, and its own clock starts.
3. Time's up: an answer after the bell is refused.
4. Score: the judge sends token rows and gets logits; it alone knows the targets. Every byte of the split counts once: bits = sum of -log2 p over
   the tokens, bytes = raw UTF-8 length, asserted. Some rows are asked again with another suffix (logits before the cut must not move)
   and in another order (scores must not depend on it).
"""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.data import Dataset
from bench.judge import Judge, Refused
from bench.roofline import peak_flops

SEQUENCE = {
    "cpu": 512,
    "cuda": 2048,
}  # longest row that is scored: the judge's choice, so that every model sits the same exam
BATCH_ROWS = 16
SETUP_LIMIT_S = 240.0
GRACE_S = 1.0  # for the answer to travel; training itself must end before the bell
AGAIN_ROWS = 16  # rows asked a second time
MOVED = 1e-3  # a logit that moves further than this with its future, or with its neighbours, has seen them
FLOOR_BPB = 0.4  # below this no language model of this size is honest

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrialResult:
    """One trial. `ok` False: `failure` classifies it, `detail` says what happened, figures are those known until then."""

    ok: bool
    failure: str = ""  # out_of_memory, nan, explosion, late, timeout, leak, order, crash, or the exception's name
    detail: str = ""
    val_bpb: float = math.nan
    training_seconds: float = 0.0
    total_seconds: float = 0.0
    peak_memory_mb: float = 0.0
    mfu_percent: float = 0.0
    total_tokens_M: float = 0.0
    num_steps: int = 0
    num_params_M: float = 0.0
    depth: int = 0
    tokens_per_second: float = 0.0
    seed: int = 0
    implementations: dict[str, str] = field(default_factory=dict)
    losses: list[list[float]] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    isolation: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Described:
    """What the model says of itself; reported, never trusted for a decision."""

    num_params: int
    depth: int
    flops_per_token: float
    implementations: dict[str, str]

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> Described:
        return cls(
            int(answer["num_params"]),
            int(answer["depth"]),
            float(answer["flops_per_token"]),
            {str(op): str(impl) for op, impl in dict(answer["implementations"]).items()},
        )


@dataclass(frozen=True)
class Trained:
    """What the model says of its training."""

    steps: int
    tokens: int
    peak_memory_mb: float
    losses: list[list[float]]  # [tokens, loss]
    grad_norms: list[float]

    @classmethod
    def read(cls, answer: Mapping[str, Any]) -> Trained:
        return cls(
            int(answer["steps"]),
            int(answer["tokens"]),
            float(answer["peak_memory_mb"]),
            [[float(tokens), float(loss)] for tokens, loss in list(answer["losses"])[:400]],
            [float(norm) for norm in list(answer["grad_norms"])[:400]],
        )


def _read(form: Any, answer: Any) -> Any:
    """An answer in its form, or a refusal that says what was expected."""
    try:
        return form.read(answer)
    except (KeyError, TypeError, ValueError) as error:
        expected = ", ".join(form.__dataclass_fields__)
        raise Refused(
            "structure",
            f"model/train.py: expected {{{expected}}}, and {type(error).__name__}: {error}",
        ) from None


def run_trial(
    tree: Path,
    dataset: Dataset,
    *,
    seconds: float,
    seed: int,
    device: str,
    split: str = "val",
    impl: Mapping[str, str] | None = None,
    steps: int | None = None,
    score: bool = True,
    progress: Progress | None = None,
) -> TrialResult:
    """Train the model of `tree` for `seconds` (or exactly `steps` steps within them) and score it on `split`."""
    started = time.monotonic()
    known: dict[str, Any] = {"seed": seed}
    tell = progress or (lambda _: None)
    try:
        with Judge(tree, device=device) as judge:
            known["isolation"] = judge.isolation
            tell({"phase": "set-up"})
            described = _set_up(judge, dataset, seconds, impl)
            known.update(
                num_params_M=described.num_params / 1e6,
                depth=described.depth,
                implementations=described.implementations,
            )
            trained, elapsed = _train(judge, dataset, seconds, seed, steps, tell)
            known.update(
                training_seconds=elapsed,
                num_steps=trained.steps,
                total_tokens_M=trained.tokens / 1e6,
                tokens_per_second=trained.tokens / elapsed,
                mfu_percent=100
                * described.flops_per_token
                * trained.tokens
                / elapsed
                / peak_flops(device),
                peak_memory_mb=trained.peak_memory_mb,
                losses=trained.losses,
                grad_norms=trained.grad_norms,
            )
            if score:
                known["val_bpb"] = _score(judge, dataset, split, device, tell)
        return TrialResult(True, **{**known, "total_seconds": time.monotonic() - started})
    except Refused as refused:
        failure = _classify(refused)
        return TrialResult(
            False,
            failure,
            str(refused)[-4000:],
            **{**known, "total_seconds": time.monotonic() - started},
        )


def _set_up(
    judge: Judge, dataset: Dataset, seconds: float, impl: Mapping[str, str] | None
) -> Described:
    judge.ask("load", tree=str(judge.tree))
    judge.arena.reset()
    warm_up = judge.arena.place("int32", (4 * SEQUENCE[judge.device] * 256,))
    noise = torch.randint(0, dataset.vocab_size, tuple(warm_up["shape"]), dtype=torch.int32)
    judge.arena.view(warm_up).copy_(noise)
    spec = {
        "vocab_size": dataset.vocab_size,
        "bos": dataset.bos,
        "sequence_length": SEQUENCE[judge.device],
        "device": judge.device,
        "seconds": seconds,
        "impl": dict(impl) if impl else None,
    }
    answer = judge.ask("setup", timeout=SETUP_LIMIT_S, spec=spec, warm_up=warm_up)
    described: Described = _read(Described, answer.get("describe"))
    return described


def _train(
    judge: Judge, dataset: Dataset, seconds: float, seed: int, steps: int | None, tell: Progress
) -> tuple[Trained, float]:
    """Ring the bell and wait. Returns what the runner says and the seconds of the judge's own clock."""
    fd = os.open(dataset.train_file(), os.O_RDONLY)
    try:
        dtype = str(dataset.tokens("train").dtype)
        bell = time.monotonic()
        answer = judge.ask(
            "train",
            timeout=seconds + GRACE_S,
            fd=fd,
            dtype=dtype,
            seed=seed,
            seconds=seconds,
            steps=steps,
            progress=lambda p: tell(
                {"phase": "training", "elapsed": time.monotonic() - bell, "seconds": seconds, **p}
            ),
        )
        elapsed = time.monotonic() - bell
    except Refused as refused:
        if refused.kind == "timeout":
            raise Refused(
                "late", f"training did not end within {seconds:.0f} s of the bell"
            ) from None
        raise
    finally:
        os.close(fd)
    trained: Trained = _read(Trained, answer.get("trained"))
    final = [loss for _, loss in trained.losses[-5:]]
    if not final or not all(map(math.isfinite, final)):
        raise Refused("nan", f"the training loss is not finite: {final}")
    if min(final) > 2 * math.log(dataset.vocab_size):
        raise Refused(
            "explosion", f"the training loss ended at {final[-1]:.2f}, far above that of guessing"
        )
    return trained, elapsed


def _score(judge: Judge, dataset: Dataset, split: str, device: str, tell: Progress) -> float:
    """Bits per byte of a split, by the judge's own arithmetic."""
    inputs, targets = _rows(np.asarray(dataset.tokens(split)), SEQUENCE[device], dataset.bos)
    sizes = torch.from_numpy(dataset.token_bytes()).long()
    counted = targets >= 0
    total_bytes = int(sizes[targets[counted]].sum())
    expected = dataset.val_bytes if split == "val" else dataset.test_bytes
    if total_bytes != expected:
        raise AssertionError(
            f"the {split} tokens spell {total_bytes} bytes, the text has {expected}"
        )

    generator = torch.Generator().manual_seed(secrets.randbits(48))
    order = torch.randperm(len(inputs), generator=generator)
    bits = 0.0
    for start in range(0, len(order), BATCH_ROWS):
        rows = order[start : start + BATCH_ROWS]
        logits = _logits(judge, inputs[rows], dataset.vocab_size)
        if start == 0:
            _probe(judge, inputs[rows], logits, dataset.vocab_size, generator)
        bits += _bits(logits, targets[rows], sizes)
        tell({"phase": "scoring", "fraction": min(1.0, (start + BATCH_ROWS) / len(order))})
    bpb = bits / total_bytes
    if not math.isfinite(bpb):
        raise Refused("nan", "a logit is not finite")
    if bpb < FLOOR_BPB:
        raise Refused(
            "implausible",
            f"{bpb:.3f} bits a byte is better than any honest model of this size: the score is quarantined",
        )
    return bpb


def _rows(tokens: np.ndarray[Any, Any], T: int, bos: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (R, T): every token but the first is a target once; the last row is filled up, and -1 there does not count."""
    stream = torch.from_numpy(tokens.astype(np.int64))
    count = -(-(len(stream) - 1) // T)
    inputs = torch.full((count * T,), bos)
    targets = torch.full((count * T,), -1)
    inputs[: len(stream) - 1] = stream[:-1]
    targets[: len(stream) - 1] = stream[1:]
    return inputs.view(count, T), targets.view(count, T)


def _logits(judge: Judge, rows: Tensor, vocab_size: int) -> Tensor:
    """A view of the logits (B, T, V) that the runner wrote; valid until the next request."""
    judge.arena.reset()
    where = judge.arena.place("int64", tuple(rows.shape))
    judge.arena.view(where).copy_(rows)
    out = judge.arena.place("float32", (*rows.shape, vocab_size))
    logits = judge.arena.view(out)
    # Poisoned here and there: a row that is not written shows as a NaN.
    logits[:, ::16].fill_(math.nan)
    judge.ask("logits", rows=where, out=out)
    return logits


def _bits(logits: Tensor, targets: Tensor, sizes: Tensor) -> float:
    """Sum of -log2 p over the targets that stand for bytes (a document's start does not)."""
    total = 0.0
    for row, wanted in zip(logits, targets, strict=True):
        nll = torch.nn.functional.cross_entropy(row, wanted, ignore_index=-1, reduction="none")
        total += float(nll[(wanted >= 0) & (sizes[wanted.clamp(min=0)] > 0)].double().sum())
    return total / math.log(2)


def _probe(
    judge: Judge, rows: Tensor, logits: Tensor, vocab_size: int, generator: torch.Generator
) -> None:
    """Ask the same rows with other futures, and in another order."""
    before = logits.clone()
    T = rows.shape[1]
    cuts = torch.randint(1, T, (len(rows),), generator=generator)
    other = torch.randint(0, vocab_size, rows.shape, generator=generator)
    late = torch.arange(T)[None] >= cuts[:, None]
    after = _logits(judge, torch.where(late, other, rows), vocab_size)
    moved = (after - before).abs().amax(-1).masked_fill(late, 0.0)
    if not float(moved.max()) <= MOVED:
        row = int(moved.amax(1).argmax())
        raise Refused(
            "leak",
            f"logits before position {int(cuts[row])} move by {float(moved.max()):.2g} when later tokens change: the model sees the future",
        )
    order = torch.randperm(len(rows), generator=generator)
    again = _logits(judge, rows[order], vocab_size)
    moved_by = float((again - before[order]).abs().max())
    if not moved_by <= MOVED:
        raise Refused(
            "order",
            f"logits move by {moved_by:.2g} with the order of the rows: the model keeps state between rows",
        )
    logits.copy_(before)


def _classify(refused: Refused) -> str:
    text = str(refused).lower()
    if (
        refused.kind in ("OutOfMemoryError", "MemoryError")
        or "out of memory" in text
        or "can't allocate memory" in text
    ):
        return "out_of_memory"
    return refused.kind
