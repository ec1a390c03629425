"""The one timer: gate, benchmark and agent all measure through it.

Each implementation under comparison has a runner of its own; the judge's monotonic clock runs around one request that makes `n` calls (n so
that a block takes about 10 ms, against about 0.1 ms for the request itself, which every arm pays alike). Blocks of the arms are
interleaved in random order. Input sets rotate over more memory than the last-level cache holds, and a few of them are rewritten
before each block, at the same addresses. In each block one call, drawn at random, is copied out while the clock runs; a part of those is compared
with float64 afterwards. Training ops are timed forward and backward together.

A comparison is the median of paired ratios (candidate / incumbent, block by block) with a bootstrap interval over blocks.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.comparison import examine
from bench.contracts import Case, Contract, contract
from bench.correctness import result_shapes
from bench.judge import Judge, Refused, place_call

BLOCK_S = 0.010
MAX_CALLS = 1000
ROTATE_BYTES = 96 << 20  # 3 x a 32 MB last-level cache; a GPU's 50 MB L2 twice
MAX_SETS = 8
WARM_UP_S = 0.3
CALL_TIMEOUT_S = 120.0
BOOTSTRAP = 2000
# Of a comparison, at least: the bootstrap interval of a median of five blocks missed one in an A/A comparison.
ROUNDS = 25


@dataclass(frozen=True)
class Arm:
    """One thing to time: an implementation (None: the tree's default) of an op in a tree, `mode` eager or inductor."""

    name: str
    tree: Path
    impl: str | None = None
    mode: str = "eager"


@dataclass(frozen=True)
class Comparison:
    """Candidate time / incumbent time: below one is faster. `low` and `high` bound it with 95 % confidence; `shapes` has each shape's own."""

    ratio: float
    low: float
    high: float
    shapes: list[dict[str, Any]]
    seconds: float

    @property
    def faster(self) -> bool:
        return self.high < 1.0

    @property
    def slower(self) -> bool:
        return self.low > 1.0


def compare(
    op: str,
    incumbent: Path,
    candidate: Path,
    *,
    device: str = "cpu",
    limit_s: float = 10.0,
    seed: int | None = None,
) -> Comparison:
    """Time an op of two trees on the trial's shapes. Raises Refused when an arm fails or a timed output is wrong."""
    asked = contract(op)
    cases = asked.trial[device]
    arms = (Arm("incumbent", incumbent), Arm("candidate", candidate))
    rows, logs = [], []
    with _runners(op, arms, device) as judges:
        started = time.monotonic()
        for i, case in enumerate(cases):
            share = (limit_s - (time.monotonic() - started)) / (len(cases) - i)
            samples = measure(
                asked, case, arms, judges, limit_s=max(share, 1.0), seed=seed, least=ROUNDS
            )
            logs.append(np.log(np.array(samples["candidate"]) / np.array(samples["incumbent"])))
            ratio, low, high = _interval([logs[-1]])
            rows.append(
                {
                    "case": case.label(),
                    "ratio": round(ratio, 4),
                    "low": round(low, 4),
                    "high": round(high, 4),
                    "incumbent_ms": round(1e3 * statistics.median(samples["incumbent"]), 4),
                    "candidate_ms": round(1e3 * statistics.median(samples["candidate"]), 4),
                    "blocks": len(samples["candidate"]),
                }
            )
    ratio, low, high = _interval(logs)
    return Comparison(ratio, low, high, rows, time.monotonic() - started)


def sample(
    op: str,
    case: Case,
    arms: Sequence[Arm],
    *,
    device: str,
    limit_s: float,
    seed: int | None = None,
) -> dict[str, list[float]]:
    """Seconds a call, block by block and interleaved, for each arm by name."""
    with _runners(op, arms, device) as judges:
        return measure(contract(op), case, arms, judges, limit_s=limit_s, seed=seed)


@contextlib.contextmanager
def _runners(op: str, arms: Sequence[Arm], device: str) -> Iterator[list[Judge]]:
    with contextlib.ExitStack() as stack:
        judges = [stack.enter_context(Judge(arm.tree, device=device)) for arm in arms]
        for judge in judges:
            judge.ask("load", op=op, tree=str(judge.tree))
        yield judges


def measure(
    asked: Contract,
    case: Case,
    arms: Sequence[Arm],
    judges: Sequence[Judge],
    *,
    limit_s: float,
    least: int = 5,
    seed: int | None = None,
) -> dict[str, list[float]]:
    """Interleaved blocks until the time is used, at least `least` rounds of them."""
    rng = random.Random(secrets.randbits(48) if seed is None else seed)
    tables = [_Table(asked, case, arm, judge, rng) for arm, judge in zip(arms, judges, strict=True)]
    deadline = time.monotonic() + limit_s
    # All arms make the same number of calls a block, so that the request and the copied call weigh alike in each.
    calls = max(1, min(MAX_CALLS, round(BLOCK_S / min(table.warm_up() for table in tables))))
    samples: dict[str, list[float]] = {arm.name: [] for arm in arms}
    rounds = 0
    with _one_thread():
        while rounds < least or time.monotonic() < deadline:
            for table in rng.sample(tables, len(tables)):
                samples[table.arm.name].append(table.block(calls))
            rounds += 1
    for table in tables:
        table.audit()
    return samples


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep the judge's own thread pool asleep: after a parallel fill its threads would spin into the block that is timed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Table:
    """The input sets of one arm in its arena, and the blocks run on them."""

    def __init__(
        self, asked: Contract, case: Case, arm: Arm, judge: Judge, rng: random.Random
    ) -> None:
        self.asked, self.case, self.arm, self.judge, self.rng = asked, case, arm, judge, rng
        self.generator = torch.Generator().manual_seed(rng.getrandbits(48))
        judge.arena.reset()
        shapes = result_shapes(asked, case)
        wrt = asked.differentiable
        first = place_call(judge.arena, case, shapes, wrt)
        one = sum(i.span() * getattr(torch, i.dtype).itemsize for i in case.inputs.values())
        sets = max(2, min(MAX_SETS, -(-ROTATE_BYTES // max(one, 1))))
        self.calls = [first, *(place_call(judge.arena, case, shapes, wrt) for _ in range(sets - 1))]
        for call in self.calls:
            self._fill(call)
        self._stage()

    def _fill(self, call: Mapping[str, Any]) -> None:
        for name, wanted in self.case.inputs.items():
            self.judge.arena.view(call["inputs"][name]).copy_(wanted.values(self.generator))
        for where in call["upstream"]:
            buffer = self.judge.arena.view(where)
            buffer.copy_(torch.randn(buffer.shape, generator=self.generator))

    def _stage(self) -> None:
        self.judge.ask("stage", timeout=CALL_TIMEOUT_S, calls=self.calls)

    def _ask(self, n: int, keep: int) -> float:
        started = time.perf_counter()
        self.judge.ask(
            "block",
            timeout=CALL_TIMEOUT_S,
            op=self.asked.name,
            impl=self.arm.impl,
            mode=self.arm.mode,
            n=n,
            keep=keep,
        )
        return time.perf_counter() - started

    def warm_up(self) -> float:
        """Run for a while; seconds a call."""
        self._ask(1, -1)  # builds, compiles
        spent, calls, n = 0.0, 0, 1
        while spent < WARM_UP_S:
            spent += self._ask(n, -1)
            calls += n
            n = min(2 * n, MAX_CALLS)
        return spent / calls

    def block(self, n: int) -> float:
        """Seconds a call over a block of n; one set has fresh contents, one random call is copied out."""
        self._fill(self.rng.choice(self.calls))
        self.keep = self.rng.randrange(n)
        kept = self.calls[self.keep % len(self.calls)]
        for where in [*kept["outputs"], *kept["gradients"]]:
            self.judge.arena.view(where).fill_(float("nan"))
        if self.judge.device != "cpu":
            self._stage()
        return self._ask(n, self.keep) / n

    def audit(self) -> None:
        """The call that the last block copied out must be right: what was timed is what was checked."""
        call = self.calls[self.keep % len(self.calls)]
        arena, wrt = self.judge.arena, tuple(call["wrt"])
        inputs = {name: arena.view(where).clone() for name, where in call["inputs"].items()}
        upstream = [arena.view(where).clone() for where in call["upstream"]]
        names = [*self.asked.results, *(f"d{n}" for n in wrt)]
        places = [*call["outputs"], *call["gradients"]]
        answer = {
            name: arena.view(where).clone() for name, where in zip(names, places, strict=True)
        }
        wrong, _ = examine(
            self.asked, self.case, inputs, upstream, answer, wrt, device=self.judge.device
        )
        if wrong:
            raise Refused("wrong", f"an output of a timed call ({self.arm.name}) is wrong: {wrong}")


def _interval(logs: Sequence[np.ndarray[Any, Any]]) -> tuple[float, float, float]:
    """Geometric mean over shapes of the median ratio, with its 95 % bootstrap interval over blocks."""
    generator = np.random.default_rng(0)
    centre = float(np.mean([np.median(x) for x in logs]))
    draws = np.mean(
        [np.median(x[generator.integers(0, len(x), (BOOTSTRAP, len(x)))], axis=1) for x in logs],
        axis=0,
    )
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(np.exp(centre)), float(np.exp(low)), float(np.exp(high))
