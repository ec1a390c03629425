"""What a trial's runner claims about its model and its training, in what form, and when it cannot be true.

Nothing here decides what a model is worth: bench/scoring.py does. A claim is refused where the judge's own measurements show that it is false.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.implementations import triton_kernels
from bench.judge import Refused

GUESSING = (0.8, 1.5)  # loss of a model that has learned nothing, in units of ln V
MOST = 1e15  # of anything that is counted
LONGEST_NAME = 100  # of an op
MAX_STATE_BYTES = 2 << 30
EARLY = 0.01  # share of the tokens in which nothing much can have been learned
# A curve that ends this far below what the judge measures is not a mean of losses.
FORGED_NATS = 1.0
MOST_POINTS, LAST_POINTS = 400, 5  # of a curve: how many are kept, and how many tell where it ended
SLACK, SLACK_S = 1.05, 0.3  # of processor time, which comes in ticks


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
            _count(answer["num_params"]),
            _count(answer["depth"]),
            float(answer["flops_per_token"]),
            {_op(name): str(impl) for name, impl in dict(answer["implementations"]).items()},
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
        found = cls(
            _count(answer["steps"]),
            _count(answer["tokens"]),
            float(answer["peak_memory_mb"]),
            [[float(tokens), float(loss)] for tokens, loss in _thinned(answer["losses"])],
            [float(norm) for norm in _thinned(answer["grad_norms"])],
        )
        if min(found.steps, found.tokens) < 1:
            raise ValueError(f"a training of {found.steps} steps on {found.tokens} tokens")
        if not found.losses:
            raise ValueError("`losses` is a curve without a point")
        return found

    def final(self) -> float:
        """Mean of the last points of the curve; NaN if there is none, or where any point of it is not finite."""
        last = [loss for _, loss in self.losses[-LAST_POINTS:]]
        known = last and all(map(math.isfinite, (x for point in self.losses for x in point)))
        return math.fsum(last) / len(last) if known else math.nan


def _op(name: str) -> str:
    """The name of an op, of which a path is made. Raises ValueError for what can be none."""
    if not name.isidentifier() or len(name) > LONGEST_NAME:
        raise ValueError(f"an op named {name[:LONGEST_NAME]!r}")
    return name


def _count(value: Any) -> int:
    """A number of things. Raises ValueError for one with which nobody could reckon."""
    found = int(value)
    if abs(found) > MOST:
        raise ValueError(f"a count of more than {MOST:.0e}")
    return found


def _thinned(points: Any) -> list[Any]:
    """At most MOST_POINTS of a curve, evenly, with the last LAST_POINTS among them, which tell where it ended."""
    every = list(points)
    if len(every) <= MOST_POINTS:
        return every
    body, last = every[:-LAST_POINTS], every[-LAST_POINTS:]
    return [*body[:: -(-len(body) // (MOST_POINTS - LAST_POINTS))], *last]


def read(form: Any, answer: Any) -> Any:
    """An answer in its form, or a refusal that says what was expected."""
    try:
        return form.read(answer)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        expected = ", ".join(form.__dataclass_fields__)
        raise Refused(
            "structure",
            f"model/train.py: expected {{{expected}}}, but reading it failed: {type(error).__name__}: {error}",
        ) from None


def state_bytes(answer: Mapping[str, Any]) -> int:
    """Bytes of a model's state as the runner says; the arena bounds it."""
    size = answer.get("bytes")
    if not isinstance(size, int) or not 0 < size <= MAX_STATE_BYTES:
        raise Refused(
            "structure", f"a model's state of {size} bytes: expected 1 to {MAX_STATE_BYTES}"
        )
    return size


def counts(answer: Any) -> dict[str, int]:
    """Names, and how often each was called; entries of another form are left out."""
    items = answer.items() if isinstance(answer, dict) else ()
    return {str(name): int(count) for name, count in items if isinstance(count, int)}


def require_guessing(loss: float, vocab_size: int) -> None:
    """Before it has read any text, a model guesses. `loss` in nats, by the judge."""
    guessing = math.log(vocab_size)
    low, high = (share * guessing for share in GUESSING)
    if not low <= loss <= high:
        raise Refused(
            "warm_start",
            f"before it has read any text the model has a loss of {loss:.2f} nats; one that knows nothing has {low:.2f} to {high:.2f} "
            f"(ln {vocab_size} = {guessing:.2f})",
        )


def require_curve(trained: Trained, measured: float, vocab_size: int) -> None:
    """A finite curve ends near what the judge measures of the model (`measured`, nats), and does not begin with knowledge."""
    final, guessing = trained.final(), math.log(vocab_size)
    if max(final, measured) > 2 * guessing:
        raise Refused(
            "explosion",
            f"the training loss ended at {final:.2f} nats, by the judge's own measure at {measured:.2f}: expected at most {2 * guessing:.2f}, twice that of guessing",
        )
    if final < measured - FORGED_NATS:
        raise Refused(
            "forged",
            f"the curve ends at {final:.2f} nats, and the model has {measured:.2f} on the text that it trained on",
        )
    first_tokens, first_loss = trained.losses[0]
    if first_tokens <= EARLY * trained.tokens and first_loss < guessing / 2:
        raise Refused(
            "warm_start",
            f"the curve begins at {first_loss:.2f} nats, where guessing costs {guessing:.2f}: that was learned elsewhere",
        )


def require_processor_time(used: float, elapsed: float) -> None:
    """Raises Refused for more processor time than the cores had between two looks at the clock: it was spent before, or kept out of sight."""
    cores = len(os.sched_getaffinity(0))
    if not 0 <= used <= SLACK * cores * elapsed + SLACK_S:
        raise Refused(
            "off_clock",
            f"{used:.1f} s of processor time appeared in {elapsed:.1f} s on {cores} cores, which have {SLACK * cores * elapsed + SLACK_S:.1f} at "
            "most: work was done before the bell or out of sight",
        )


def require_kernels(
    described: Described,
    steps: int,
    calls: Mapping[str, int],
    launches: Mapping[str, int],
    tree: Path,
    device: str,
) -> None:
    """Each op ran as described: in C++ at least once a step, on a GPU at least once in all (a recorded graph replays what it launched once).

    calls: of each implementation ("op/impl"), and into each op's C++ and CUDA library ("op"). launches: of Triton kernels, by name.
    """
    for op, impl in described.implementations.items():
        if impl in ("cpp", "cuda"):
            ran = max(calls.get(op, 0), calls.get(f"{op}/{impl}", 0))
        elif impl == "triton" and device == "cuda":
            ours = triton_kernels(tree / "kernels" / f"{op}.py")
            ran = sum(count for name, count in launches.items() if name in ours)
        else:
            continue
        least = max(1, steps) if impl == "cpp" else 1
        if ran < least:
            raise Refused(
                "unused",
                f"{op} is said to run as {impl}, and {steps} steps of training called it {ran} times, {least} is the least: call it, or let "
                "Trainer.describe() name what runs",
            )
