"""The one timer: gate, benchmark and agent all measure through it.

Each implementation under comparison has a runner of its own; the judge's monotonic clock runs around one request that makes `n` calls (n so
that a block takes about 10 ms, against about 0.1 ms for the request itself, which every arm pays alike). Blocks of the arms are
interleaved in random order. Every call of a block has an input set of its own, with contents that no call has seen (bench/staging.py), and in
each block one call, drawn at random, is copied out while the clock runs; the most suspicious of those are compared with float64 (bench/audit.py).
Training ops are timed forward and backward together.

A comparison is the median of paired ratios (candidate / incumbent, block by block) with a bootstrap interval over blocks. It is refused,
whatever its ratio, where a block is faster than this machine can be, where time that is saved in a row of calls is not saved by a call that is
asked alone, where a runner worked while it was not asked, took threads, memory or torch's settings (bench/conduct.py). A speed-up
of more than QUARANTINE times is no result before a person has looked at it.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import device_memory, roofline
from bench.audit import Audit
from bench.conduct import Conduct, no_memory_hog
from bench.contracts import Case, Contract, contract
from bench.judge import Judge, Refused
from bench.staging import Contents, Stage
from bench.threads import one_thread

BLOCK_S = 0.010
LONGEST_BLOCK_S = 0.040  # of the slower arm
WARM_UP_S = 0.3
CALL_TIMEOUT_S = 120.0
BOOTSTRAP = 2000
# Of a comparison, at least: the bootstrap interval of a median of five blocks missed one in an A/A comparison.
ROUNDS = 25
LEAST_S = 0.5  # of a case
FORWARD_ROUNDS = 5
# Of the time that a call saves in a row, so much at least has to be saved by a call asked alone. Honest ones save as much or more; least
# where threads have to be woken first, some 50 us.
ALONE_SHARE = 0.25
ALONE_S = 4.0  # asked on for so long where noise leaves that open
WORTH_ASKING = 0.1  # of the incumbent's time: smaller savings drown in the noise of single calls
QUARANTINE = 10.0

Samples = dict[str, list[float]]
Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Arm:
    """One thing to time: an implementation (None: the tree's default) of an op in a tree, `mode` eager or inductor."""

    name: str
    tree: Path
    impl: str | None = None
    mode: str = "eager"


@dataclass(frozen=True)
class Comparison:
    """Candidate time / incumbent time: below one is faster. `low` and `high` bound it with 95 % confidence; `shapes` has each shape's own.

    `arms`: of incumbent and candidate the seconds of import and first calls, the largest memory in MB, and the processors that were busy
    with it while it was asked: less than one where other work took them.
    """

    ratio: float
    low: float
    high: float
    shapes: list[dict[str, Any]]
    seconds: float
    arms: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def blocks(self) -> int:
        """Blocks of calls behind the ratio, over all shapes."""
        return sum(int(shape["blocks"]) for shape in self.shapes)

    @property
    def faster(self) -> bool:
        return self.high < 1.0

    @property
    def slower(self) -> bool:
        return self.low > 1.0


@dataclass
class Measured:
    """Seconds a call, by arm and block: `row` in blocks of many calls, `alone` in blocks of one, `forward` without backward."""

    row: Samples
    alone: Samples
    forward: Samples


@dataclass(frozen=True)
class Savings:
    """Seconds that a call of the candidate saves: in a row of calls, and when it is asked alone (with bounds).

    A runner that leaves work out where it will not be looked at, or does the work of many calls in one, saves nothing in a call that
    is asked alone and whose results are copied out. The request costs both arms the same, so that it falls out of a difference.
    """

    incumbent: float
    row: float
    alone: float
    low: float
    high: float

    @classmethod
    def of(cls, row: Samples, alone: Samples) -> Savings:
        incumbent, candidate = (statistics.median(row[n]) for n in ("incumbent", "candidate"))
        saved = np.subtract(alone["incumbent"], alone["candidate"])
        low, high = np.quantile(_medians(saved, np.random.default_rng(0)), (0.005, 0.995))
        return cls(
            incumbent, incumbent - candidate, float(np.median(saved)), float(low), float(high)
        )

    @property
    def claimed(self) -> bool:
        return self.row > WORTH_ASKING * self.incumbent

    @property
    def unclear(self) -> bool:
        return self.claimed and self.low < ALONE_SHARE * self.row < self.high

    def check(self, case: Case) -> None:
        """Raises Refused where calls are cheap only in a row; of kind noise where that may also be chance."""
        if not self.claimed or self.alone >= ALONE_SHARE * self.row:
            return
        measured = (
            f"a call in a row of calls saves {1e6 * self.row:.0f} us, and one asked alone {1e6 * self.alone:.0f} us "
            f"[{1e6 * self.low:.0f}, {1e6 * self.high:.0f}] ({case.label()})"
        )
        if self.unclear:
            raise Refused("noise", f"{measured}: run it again when this machine does nothing else")
        raise Refused(
            "phase",
            f"{measured}: work of some calls is left out or done by others; if it is not, "
            "run it again when this machine does nothing else",
        )


def compare(
    op: str,
    incumbent: Path,
    candidate: Path,
    *,
    device: str = "cpu",
    limit_s: float = 10.0,
    seed: int | None = None,
    cases: Sequence[Case] | None = None,
) -> Comparison:
    """Time an op of two trees on `cases`, by default the trial's. Raises Refused when an arm fails, a timed output is wrong, or time was not
    saved honestly."""
    asked = contract(op)
    cases = asked.trial[device] if cases is None else cases
    arms = (Arm("incumbent", incumbent), Arm("candidate", candidate))
    rng = random.Random(secrets.randbits(48) if seed is None else seed)
    rows, logs = [], []
    with _runners(op, arms, device) as runners:
        started = time.monotonic()
        for i, case in enumerate(cases):
            share = (limit_s - (time.monotonic() - started)) / (len(cases) - i)
            found = measure(
                asked,
                case,
                arms,
                runners,
                limit_s=max(share, LEAST_S),
                rng=rng,
                least=ROUNDS,
                pair=True,
            )
            _possible(asked, case, found.row, device)
            logs.append(np.log(_ratios(found.row)))
            rows.append(_row(case, found, *_interval([logs[-1]])))
            if found.alone["candidate"] and rows[-1]["high"] < 1:
                Savings.of(found.row, found.alone).check(case)
        for runner in runners:
            _once_more(asked, arms, runner, rng)
            runner.end(torch.get_num_threads())
            runner.unchanged()
        no_memory_hog(*runners)
        ratio, low, high = _interval(logs)
        fastest = min(rows, key=lambda row: float(row["ratio"]))
        if fastest["ratio"] * QUARANTINE < 1:
            raise Refused(
                "quarantine",
                f"quarantined: needs a person. {1 / fastest['ratio']:.0f} times as fast on {fastest['case']}, and nothing was found wrong",
            )
        about = {
            runner.name: {
                "cold_s": round(runner.cold_s, 2),
                "peak_mb": round(runner.peak_bytes() / 2**20),
                "processors": round(runner.turn_cpu_s / runner.turn_s, 2),
            }
            for runner in runners
        }
    return Comparison(ratio, low, high, rows, time.monotonic() - started, about)


def sample(
    op: str,
    case: Case,
    arms: Sequence[Arm],
    *,
    device: str,
    limit_s: float,
    seed: int | None = None,
) -> Samples:
    """Seconds a call, block by block and interleaved, for each arm by name."""
    rng = random.Random(secrets.randbits(48) if seed is None else seed)
    with _runners(op, arms, device) as runners:
        return measure(contract(op), case, arms, runners, limit_s=limit_s, rng=rng).row


@contextlib.contextmanager
def _runners(op: str, arms: Sequence[Arm], device: str) -> Iterator[list[Conduct]]:
    with contextlib.ExitStack() as stack:
        # On a GPU, tensors that travelled through the host would do so while the clock runs.
        judges = [
            stack.enter_context(
                Judge(arm.tree, device=device, memory=device_memory.lendable(device))
            )
            for arm in arms
        ]
        runners = [Conduct(arm.name, judge) for arm, judge in zip(arms, judges, strict=True)]
        for runner in runners:
            runner.judge.ask(
                "stage", calls=[]
            )  # answered once torch is imported, which is not the candidate's time
            started = time.monotonic()
            runner.judge.ask("load", op=op, tree=str(runner.judge.tree))
            runner.cold_s = time.monotonic() - started
            runner.begin()
        yield runners


def measure(
    asked: Contract,
    case: Case,
    arms: Sequence[Arm],
    runners: Sequence[Conduct],
    *,
    limit_s: float,
    rng: random.Random,
    least: int = 5,
    pair: bool = False,
) -> Measured:
    """Interleaved blocks until the time is used, at least `least` rounds of them. `pair`: an incumbent and a candidate, of which Savings
    are to be known. Raises Refused for a wrong answer."""
    deadline = time.monotonic() + limit_s
    contents = Contents(asked, case, rng)
    tables = [_Table(contents, arm, runner) for arm, runner in zip(arms, runners, strict=True)]
    stages = {table.arm.name: table.stage for table in tables}
    audit = Audit(contents, stages, runners[0].judge.device, rng)
    speeds = [table.warm_up(rng) for table in tables]
    seed = rng.getrandbits(48)
    for stage in stages.values():
        stage.fill(seed)
    # All arms make the same number of calls a block, so that the request and the copied call weigh alike in each.
    n = round(min(BLOCK_S / min(speeds), LONGEST_BLOCK_S / max(speeds)))
    n = max(1, min(n, contents.sets()))
    row, alone, forward = (_nothing(arms) for _ in range(3))

    def ask(calls: int, samples: Samples, backward: bool = True) -> None:
        sets, keep = rng.sample(range(contents.sets()), calls), rng.randrange(calls)
        seed = rng.getrandbits(48)
        for table in rng.sample(tables, len(tables)):
            seconds = table.block(sets, keep, seed, backward)
            samples[table.arm.name].append(seconds / calls)
        if backward:
            audit.see(sets[keep])

    with one_thread():
        rounds = 0
        while rounds < least or time.monotonic() < deadline:
            ask(n, row)
            if n > 1:
                ask(1, alone)
            rounds += 1
        until = time.monotonic() + (ALONE_S if pair else 0.0)
        while n > 1 and pair and Savings.of(row, alone).unclear and time.monotonic() < until:
            for _ in range(ROUNDS):
                ask(1, alone)
    audit.run()
    with one_thread():
        for _ in range(FORWARD_ROUNDS if contents.wrt and pair else 0):
            ask(n, forward, backward=False)
    return Measured(row, alone, forward)


def _nothing(arms: Sequence[Arm]) -> Samples:
    return {arm.name: [] for arm in arms}


class _Table:
    """One arm's input sets, and the blocks run on them."""

    def __init__(self, contents: Contents, arm: Arm, runner: Conduct) -> None:
        self.contents, self.arm, self.runner, self.judge = contents, arm, runner, runner.judge
        self.stage = Stage(contents, self.judge.arena)
        self.stage.fill(0)
        if self.judge.device == "cpu":
            # The runner's tensors are the arena's memory: what is changed there later is changed for them.
            self._bring(self.stage.calls)

    def _bring(self, calls: Sequence[dict[str, Any]]) -> None:
        self.judge.ask("stage", timeout=CALL_TIMEOUT_S, calls=calls)

    def block(self, sets: list[int], keep: int, seed: int, backward: bool = True) -> float:
        """Seconds of one block: a call on each of `sets`, whose contents are new; call number `keep` is copied out."""
        self.stage.change(sets, seed)
        self.stage.poison()
        if self.judge.device != "cpu":
            self._bring([self.stage.calls[i] for i in sets])
            sets = list(range(len(sets)))
        with self.runner.turn():
            started = time.perf_counter()
            self.judge.ask(
                "block",
                timeout=CALL_TIMEOUT_S,
                op=self.contents.asked.name,
                impl=self.arm.impl,
                mode=self.arm.mode,
                sets=sets,
                keep=keep,
                backward=backward,
            )
            return time.perf_counter() - started

    def warm_up(self, rng: random.Random) -> float:
        """Run for a while; seconds a call. The first call, which may build, compile and tune, is kept apart."""

        def some(n: int) -> float:
            return self.block(
                rng.sample(range(self.contents.sets()), n), rng.randrange(n), rng.getrandbits(48)
            )

        self.runner.first(some(1))
        spent, calls, n = 0.0, 0, 1
        while spent < WARM_UP_S:
            spent += some(n)
            calls += n
            n = min(2 * n, self.contents.sets())
        return spent / calls


def _once_more(asked: Contract, arms: Sequence[Arm], runner: Conduct, rng: random.Random) -> None:
    """A drawn case, as the correctness gate asks them, through the entry that was timed. Raises Refused if it is wrong now."""
    arm = next(arm for arm in arms if arm.name == runner.name)
    contents = Contents(asked, asked.draw(rng), rng)
    table = _Table(contents, arm, runner)
    audit = Audit(contents, {arm.name: table.stage}, runner.judge.device, rng)
    table.block([0], 0, rng.getrandbits(48))
    audit.see(0)
    audit.run()


def _row(case: Case, found: Measured, ratio: float, low: float, high: float) -> dict[str, Any]:
    def ms(samples: Samples, name: str) -> float:
        return round(1e3 * statistics.median(samples[name]), 4)

    row: dict[str, Any] = {
        "case": case.label(),
        "ratio": round(ratio, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "incumbent_ms": ms(found.row, "incumbent"),
        "candidate_ms": ms(found.row, "candidate"),
        "blocks": len(found.row["candidate"]),
    }
    if found.forward["candidate"]:
        row["incumbent_forward_ms"] = ms(found.forward, "incumbent")
        row["candidate_forward_ms"] = ms(found.forward, "candidate")
    return row


def _possible(asked: Contract, case: Case, row: Samples, device: str) -> None:
    """Raises Refused where a block took less time than its traffic or arithmetic takes at the ceilings of this machine."""
    passes = 3 if asked.differentiable and not case.forward_only else 1
    moved, flops = passes * asked.least_bytes(case), passes * asked.flops(case)
    for name, seconds in row.items():
        floor = roofline.floor_seconds(moved, flops, device)
        if min(seconds) < floor:
            # A ceiling that was measured while other work ran is too low, and nobody is refused for that.
            floor = roofline.floor_seconds(moved, flops, device, again=True)
        if min(seconds) < floor:
            raise Refused(
                "impossible",
                f"a call of the {name} took {1e6 * min(seconds):.0f} us on {case.label()}, where moving its data once takes this "
                f"machine at least {1e6 * floor:.0f} us: the work is not done in the call",
            )


def _ratios(samples: Samples) -> Numbers:
    return np.divide(samples["candidate"], samples["incumbent"])


def _medians(x: Numbers, generator: np.random.Generator) -> Numbers:
    """Medians of bootstrap resamples."""
    found: Numbers = np.median(x[generator.integers(0, len(x), (BOOTSTRAP, len(x)))], axis=1)
    return found


def _interval(logs: Sequence[Numbers]) -> tuple[float, float, float]:
    """Geometric mean over shapes of the median ratio, with its 95 % bootstrap interval over blocks."""
    generator = np.random.default_rng(0)
    centre = float(np.mean([np.median(x) for x in logs]))
    draws = np.mean([_medians(x, generator) for x in logs], axis=0)
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(np.exp(centre)), float(np.exp(low)), float(np.exp(high))
