"""Rounds of one case: a block of calls of each arm in random order, all on the same fresh contents, audited as they come.

A block's time is the judge's wall clock, less the time in which threads of the runner, or the judge's thread that waits for it, were ready to run but
had no core because other work held it. It is never less than the runner's processor time divided by its threads, nor than the time of its busiest
thread: while one thread waits for a core, another may be doing what it alone can do, and then the wait delays nothing. On an idle machine a block's time
is the wall clock. Beside a process that loads one of two cores, the ratio of rms_norm is off by 0.38 % after 14 s; by the wall clock it would be 0.65 %,
without the rule of the busiest thread 0.73 %. Sleeping counts as time. A runner could let its own threads wait for each other to look faster: so
bench/speed.py compares the ratio with that of the wall clock.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.audit import Audit
from bench.conduct import Clocks, Conduct
from bench.contracts import Case, Contract
from bench.savings import Savings
from bench.staging import Contents, Stage, fill

BLOCK_S = 0.005  # of calls
LONGEST_BLOCK_S = 0.040  # of the slower arm
# All arms warm up together, in longer and longer blocks, until it is known how long a call takes.
WARM_UP_S = 0.6
CALL_TIMEOUT_S = 120.0
MOVED = 8  # one input set in so many lies elsewhere in the next part
# A call is asked alone once in so many rounds; where a saving is claimed so often at least, and for so long where noise leaves it open.
ALONE_EVERY, ALONE_ROUNDS, ALONE_S = 12, 25, 4.0
FORWARD_ROUNDS = 5

Samples = dict[str, list[float]]


@dataclass(frozen=True)
class Arm:
    """One thing to time: an implementation (None: the tree's default) of an op in a tree, `mode` eager or inductor."""

    name: str
    tree: Path
    impl: str | None = None
    mode: str = "eager"


@dataclass(frozen=True)
class Spent:
    """The seconds of one block: by the judge's clock, of the processors, and what is compared (see above)."""

    wall: float
    thread: float
    own: float

    @classmethod
    def of(cls, wall: float, before: Clocks, after: Clocks, threads: int) -> Spent:
        thread, waited, busiest = after.since(before)
        return cls(wall, thread, max(wall - waited, thread / threads, busiest))


@dataclass
class Measured:
    """Seconds a call, by arm and block: `row` in blocks of many calls (by other clocks: `wall`, `thread`), `alone` in blocks of one call,
    `forward` without backward. Each part has processes of its own, or at least a time of its own."""

    case: Case
    row: Samples
    wall: Samples
    thread: Samples
    alone: Samples
    forward: Samples
    parts: list[int] = field(default_factory=list)  # how many rounds there were at the end of each

    @classmethod
    def nothing(cls, case: Case, arms: Sequence[Arm]) -> Measured:
        samples: list[Samples] = [{arm.name: [] for arm in arms} for _ in range(5)]
        row, wall, thread, alone, forward = samples
        return cls(case, row, wall, thread, alone, forward)

    def rounds(self) -> int:
        return min(map(len, self.row.values()), default=0)

    def savings(self) -> Savings:
        return Savings.of(self.row, self.alone)


class Table:
    """One arm's input sets of one case, at first without contents, and the blocks run on them.

    `first`: how many input sets of other cases the runner holds before these.
    """

    def __init__(self, contents: Contents, arm: Arm, runner: Conduct, first: int = 0) -> None:
        self.contents, self.arm, self.runner, self.judge = contents, arm, runner, runner.judge
        self.first = first
        self.threads = torch.get_num_threads()  # as many as a runner has
        self.stage = Stage(contents, self.judge.arena)

    def bring(self, calls: Sequence[dict[str, Any]]) -> None:
        self.judge.ask("stage", timeout=CALL_TIMEOUT_S, calls=calls)

    def block(self, sets: list[int], keep: int, seed: int, backward: bool = True) -> Spent:
        """A call on each of `sets`, whose contents are new; call number `keep` is copied out."""
        self.stage.change(sets, seed)
        self.stage.remember(sets[keep])
        self.stage.poison()
        if self.judge.device == "cpu":
            # The runner's tensors are the arena's memory: a change there is a change for them.
            sets = [self.first + i for i in sets]
        else:
            with self.runner.turn():
                self.bring([self.stage.calls[i] for i in sets])
            sets = list(range(len(sets)))
        with self.runner.turn():
            before = self.runner.clocks()
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
            wall = time.perf_counter() - started
            after = self.runner.clocks()
        return Spent.of(wall, before, after, self.threads)

    def answer_first(self, seed: int) -> None:
        """The first call, which may build, compile and tune."""
        self.runner.first(self.block([0], 0, seed).wall)


class Rounds:
    """One case of a measurement: `answer_first`, `warm_up`, as many `round`s as wanted, `finish`. All raise Refused for a wrong answer.

    The answers of the other arms are compared with those of the first.
    """

    def __init__(
        self,
        asked: Contract,
        case: Case,
        arms: Sequence[Arm],
        runners: Sequence[Conduct],
        rng: random.Random,
        *,
        first: int = 0,
        share: int = 1,
    ) -> None:
        self.case, self.rng = case, rng
        device = runners[0].judge.device
        self.contents = Contents(asked, case, rng, share=share, device=device)
        self.tables = [
            Table(self.contents, arm, runner, first)
            for arm, runner in zip(arms, runners, strict=True)
        ]
        stages = {table.arm.name: table.stage for table in self.tables}
        fill(list(stages.values()), range(self.contents.sets()), rng)
        self.audit = Audit(self.contents, stages, device, rng)
        self.found = Measured.nothing(case, arms)
        self.calls = 0

    def move(self) -> None:
        """Let a share of the input sets, and the results, lie elsewhere: in memory that any of the arms may have had before."""
        sets = range(self.rng.randrange(MOVED), self.contents.sets(), MOVED)
        stages = [table.stage for table in self.tables]
        for stage in self.rng.sample(stages, len(stages)):
            stage.vacate(sets)
        fill(stages, sets, self.rng)

    def answer_first(self) -> None:
        """Ask each arm's process for its first call."""
        seed = self.rng.getrandbits(48)
        with ThreadPoolExecutor() as pool:  # `map` raises what one raised
            list(pool.map(lambda table: table.answer_first(seed), self._shuffled()))

    def _shuffled(self) -> list[Table]:
        """In random order: the arm that touches memory first gets other memory than the last, so none is always the first."""
        return self.rng.sample(self.tables, len(self.tables))

    def warm_up(self) -> None:
        if not self.calls:
            self._choose_calls()
        if self.calls > 1:
            self._ask(self.calls)  # a round that does not count; one call of each arm was the first

    def _choose_calls(self) -> None:
        """Choose how many calls a block has: the same in all arms, so that the request and the copied call weigh alike."""
        best = {table.arm.name: math.inf for table in self.tables}
        until, n, most = time.monotonic() + WARM_UP_S, 1, self.contents.sets()
        # on a GPU a first round alone takes longer: its input sets travel
        while time.monotonic() < until or (n < most and n * max(best.values()) < LONGEST_BLOCK_S):
            best = {name: min(best[name], one.own / n) for name, one in self._ask(n).items()}
            n = min(2 * n, most)
        wanted = min(BLOCK_S / min(best.values()), LONGEST_BLOCK_S / max(best.values()))
        self.calls = max(1, min(round(wanted), most))

    def round(self) -> None:
        found = self.found
        for name, spent in self._ask(self.calls).items():
            found.row[name].append(spent.own / self.calls)
            found.wall[name].append(spent.wall / self.calls)
            found.thread[name].append(spent.thread / self.calls)
        if self.calls > 1 and found.rounds() % ALONE_EVERY == 1:
            self._alone()

    def end_part(self) -> None:
        self.found.parts.append(self.found.rounds())

    def finish(self, *, pair: bool) -> None:
        """`pair`: among the arms are an incumbent and a candidate, for which it must be known what a call asked alone saves."""
        until = time.monotonic() + ALONE_S
        while self.calls > 1 and pair and self._open(time.monotonic() < until):
            self._alone()
        self.audit.run()
        for _ in range(FORWARD_ROUNDS if self.contents.wrt and pair else 0):
            for name, spent in self._ask(self.calls, backward=False).items():
                self.found.forward[name].append(spent.own / self.calls)

    def _open(self, time_left: bool) -> bool:
        """Whether a claimed saving needs more calls that are asked alone."""
        savings = self.found.savings()
        few = len(self.found.alone["candidate"]) < ALONE_ROUNDS
        return savings.claimed and (few or (savings.unclear and time_left))

    def _alone(self) -> None:
        for name, spent in self._ask(1).items():
            self.found.alone[name].append(spent.own)

    def _ask(self, calls: int, backward: bool = True) -> dict[str, Spent]:
        """A block of each arm on the same contents, in random order."""
        rng = self.rng
        sets, keep = rng.sample(range(self.contents.sets()), calls), rng.randrange(calls)
        seed = rng.getrandbits(48)
        spent = {
            table.arm.name: table.block(sets, keep, seed, backward) for table in self._shuffled()
        }
        if backward:
            self.audit.see(sets[keep])
        return spent


def prepare(
    asked: Contract,
    cases: Sequence[Case],
    arms: Sequence[Arm],
    runners: Sequence[Conduct],
    rng: random.Random,
) -> list[Rounds]:
    """The cases beside each other in the runners' memory, so that rounds of one may follow rounds of another."""
    for runner in runners:
        runner.judge.arena.reset()
    prepared: list[Rounds] = []
    for case in cases:
        first = sum(rounds.contents.sets() for rounds in prepared)
        prepared.append(Rounds(asked, case, arms, runners, rng, first=first, share=len(cases)))
    return prepared


def ready(prepared: Sequence[Rounds], runners: Sequence[Conduct]) -> None:
    """Have the processes that answer from now on take over the input sets, make a first call and warm up, with a core for each thread. From here on
    their conduct counts."""

    def take_over(runner: Conduct, tables: Sequence[Table]) -> None:
        if runner.judge.device == "cpu":  # those of a GPU bring what a block asks for, before it
            tables[0].bring([call for table in tables for call in table.stage.calls])
        runner.begin()

    by_runner = list(zip(runners, zip(*(r.tables for r in prepared), strict=True), strict=True))
    with ThreadPoolExecutor() as pool:
        shuffled = prepared[0].rng.sample(by_runner, len(by_runner))
        list(pool.map(lambda one: take_over(*one), shuffled))
    for rounds in prepared:
        rounds.answer_first()
    for runner in runners:
        runner.give_cores()
    for rounds in prepared:
        rounds.warm_up()
    # Again: some threads that worked in the first call may only have compiled.
    for runner in runners:
        runner.give_cores()
