"""`pytest bench` runs every implementation on one shape of its op; `pytest bench --benchmark` measures them, with their peers, against this machine's ceilings.

Times come from bench/timing.py, the timer of the gates; pytest-benchmark receives the samples through a clock that moves only when told, and
does what it is good at: its table, JSON files and `--benchmark-compare`. How many times as fast as a peer an implementation is comes from
interleaved blocks of both: the middle half of their ratios, with its 95 % interval (bench/ratio.py).
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from bench import arms as measured
from bench import first_kernels, roofline, rounds, staging
from bench.conduct import Conduct
from bench.contracts import Case, contract, written
from bench.goals import cases, lead
from bench.implementations import OURS
from bench.interval import CONFIDENCE
from bench.ratio import Estimate, estimate, logs, stretches, typical
from bench.sandbox import processes
from bench.timing import Arm, Samples, measure, runners_of, sample

# Beside other tests (`make test`) a GPU has no room for all runners at once, 5 GiB each: there the CPU's kernels are run.
_ALONE = "PYTEST_XDIST_WORKER" not in os.environ
DEVICE = "cuda" if torch.cuda.is_available() and _ALONE else "cpu"
SECONDS_A_CASE = 8.0  # of blocks
_FOLDER = processes.scratch()  # goes with this process
_RUNNERS = contextlib.ExitStack()


@dataclass(frozen=True)
class Row:
    """What is printed of one arm on one case."""

    op: str
    case: str
    arm: str
    ms: float
    gb_per_s: float
    gflop_per_s: float
    percent_of_limit: float
    beside: str  # an implementation of ours beside its peers, in words


ROWS: list[Row] = []
ABSENT: dict[str, str] = {}  # who is not measured, and why


class Clock:
    """A timer for pytest-benchmark that shows the samples it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@functools.cache
def arms(op: str, measuring: bool) -> tuple[Arm, ...]:
    """Who runs: ours and plain torch, and where it is measured the peers as well."""
    found = measured.arms(op, DEVICE, compiled=measuring and not no_compiler())
    if not measuring:
        return tuple(found)
    peers, absent = measured.peers(op, DEVICE, Path(_FOLDER.name))
    ABSENT.update({f"{op}, {name}": why for name, why in absent.items()})
    return (*found, *peers)


@functools.cache
def no_compiler() -> str:
    """Why torch.compile makes no kernel here, as where Python.h is missing, or "": its one arm would refuse the figures of all others."""
    if why := first_kernels.why_not(first_kernels.COMPILED, DEVICE):
        ABSENT["torch.compile"] = why
    return why


@functools.cache
def samples(op: str, index: int, measuring: bool) -> Samples:
    """All arms of one case in one interleaved measurement."""
    present = [arm for arm in arms(op, measuring) if not why_not(op, index, arm)]
    case = cases(op, DEVICE)[index]
    if measuring:
        return sample(op, case, present, device=DEVICE, limit_s=SECONDS_A_CASE)
    runners = [runner(arm) for arm in present]
    for each in runners:
        each.load(op)
    # One row of the case, two input sets and no warm-up: nobody reads these times.
    brief = mock.patch.object(rounds, "WARM_UP_S", 0.0)
    with brief, mock.patch.dict(staging.STAGED_BYTES, cpu=0, cuda=0):
        small, rng = measured.one_row(case), random.Random(0)
        return measure(contract(op), small, present, runners, limit_s=0.0, rng=rng).row


@functools.cache
def runner(arm: Arm) -> Conduct:
    """Where nothing is measured, an arm's runner serves all ops: to start one for each takes 2 s of processor time, 25 times."""
    (found,) = _RUNNERS.enter_context(runners_of(written(measured.ROOT)[0], [arm], DEVICE))
    return found


def pytest_sessionfinish() -> None:
    _RUNNERS.close()


@functools.cache
def why_not(op: str, index: int, arm: Arm) -> str:
    """Why an arm has no samples of a case, or ""."""
    return measured.why_not(op, cases(op, DEVICE)[index], arm, DEVICE)


def beside(op: str, case: Case, times: Samples, ours: str) -> str:
    """How many times as fast as the fastest peer ours is, and whether that reaches the goal of this op."""
    peers = sorted(times.keys() - set(OURS[DEVICE]), key=lambda n: statistics.median(times[n]))  # fmt: skip
    shown, words = [peers[0]], ""
    if DEVICE == "cpu" and (goal := lead(op, case)):
        peer = next((name for name in peers if name in goal.peers), None)
        if peer is None:
            words = f", goal {goal.at_least:g}: not measured, no {' or '.join(goal.peers)} here"
        else:
            shown = list(dict.fromkeys((peers[0], peer)))
            reached = _speed_up(times, ours, peer).ratio >= goal.at_least
            words = f", goal {goal.at_least:g}: {'yes' if reached else 'no'}"
    return ", ".join(_told(_speed_up(times, ours, peer), peer) for peer in shown) + words


def _speed_up(times: Samples, ours: str, peer: str) -> Estimate:
    return estimate(stretches(logs(times, peer, [ours])), [1.0], typical)


def _told(found: Estimate, peer: str) -> str:
    low, high = found.interval(CONFIDENCE)
    return f"{found.ratio:.2f} [{low:.2f}, {high:.2f}] x {peer}"


@pytest.fixture(scope="session")
def ceilings(request: pytest.FixtureRequest) -> None:
    """Ceilings that were measured while other work ran are too low: a benchmark measures them again, for 2 s, and the best figures count."""
    if request.config.getoption("--benchmark"):
        roofline.ceilings(DEVICE, again=True)


@pytest.fixture
def replay(
    request: pytest.FixtureRequest, ceilings: None
) -> Callable[[str, Case, Arm, Samples], None]:
    """Hand the samples of one arm to pytest-benchmark, with bytes, flops and % of limit."""
    clock = Clock()
    request.node.add_marker(pytest.mark.benchmark(timer=clock))
    benchmark = request.getfixturevalue("benchmark")

    def hand_over(op: str, case: Case, arm: Arm, found: Samples) -> None:
        asked, times = contract(op), found[arm.name]
        moved, flops = asked.least_work(case)
        median = statistics.median(times)
        limit = roofline.limit_of(asked, case, DEVICE)
        rates = {
            "gb_per_s": moved / median / 1e9,
            "gflop_per_s": flops / median / 1e9,
            "percent_of_limit": 100 * limit / median,
        }
        benchmark.group = f"{op} {case.label()}"
        benchmark.extra_info.update(rates)
        remaining = iter(times)
        benchmark.pedantic(lambda: clock.advance(next(remaining)), rounds=len(times))
        if request.config.getoption("--benchmark"):
            words = beside(op, case, found, arm.name) if arm.name in OURS[DEVICE] else ""
            ROWS.append(Row(op, case.label(), arm.name, 1e3 * median, **rates, beside=words))

    return hand_over


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not ROWS:
        return
    write = terminalreporter.write_line
    number = torch.get_num_threads()
    threads = f", {number} thread{'s' * (number > 1)}" if DEVICE == "cpu" else ""
    terminalreporter.section(
        f"kernels (forward + backward where trained{threads}; % of the ceilings of this machine)"
    )
    write(f"{'':16} {'ms':>9} {'GB/s':>8} {'GFLOP/s':>9} {'% limit':>8}  as fast as, 95 %")
    shown = ""
    for row in ROWS:
        title = f"{row.op} {row.case}"
        if title != shown:
            write(title)
        shown = title
        figures = f"{row.ms:9.3f} {row.gb_per_s:8.1f} {row.gflop_per_s:9.1f}"
        write(f"  {row.arm:14} {figures} {row.percent_of_limit:8.1f}  {row.beside}".rstrip())
    for name, why in ABSENT.items():
        write(f"not measured: {name}: {why}")
