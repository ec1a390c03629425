"""`pytest bench` runs every implementation once; `pytest bench --benchmark` measures them, with their peers, against this machine's ceilings.

Times come from bench/timing.py, the timer of the gates; pytest-benchmark receives the samples through a clock that moves only when told, and
keeps what it is good at: its table, JSON files and `--benchmark-compare`.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from bench.arms import arms, missing
from bench.contracts import Case, contract
from bench.roofline import bound_seconds
from bench.timing import Arm, sample

SECONDS_A_CASE = 12.0
ROWS: list[tuple[str, str, str, float, float, float, float]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--benchmark",
        action="store_true",
        help="measure every implementation of every op and its peers",
    )


class Clock:
    """A timer for pytest-benchmark that shows the samples it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@functools.cache
def samples(op: str, index: int, device: str, measuring: bool) -> dict[str, list[float]]:
    """All arms of one case in one interleaved measurement."""
    case = contract(op).trial[device][index]
    limit = SECONDS_A_CASE if measuring else 0.0
    present = [
        arm for arm in arms(op, device, compiled=measuring) if not why_not(op, index, arm, device)
    ]
    return sample(op, case, present, device=device, limit_s=limit)


@functools.cache
def why_not(op: str, index: int, arm: Arm, device: str) -> str:
    """Why an arm has no samples of a case, or ""."""
    return missing(op, contract(op).trial[device][index], arm, device)


@pytest.fixture
def replay(request: pytest.FixtureRequest) -> Callable[[str, Case, Arm, str, list[float]], None]:
    """Hand the samples of one arm to pytest-benchmark, with bytes, flops and % of limit."""
    clock = Clock()
    request.node.add_marker(pytest.mark.benchmark(timer=clock))
    benchmark = request.getfixturevalue("benchmark")

    def hand_over(op: str, case: Case, arm: Arm, device: str, times: list[float]) -> None:
        asked = contract(op)
        # Backward: twice the arithmetic and, at least, twice the traffic.
        passes = 3 if asked.differentiable else 1
        moved, flops = passes * asked.least_bytes(case), passes * asked.flops(case)
        median = statistics.median(times)
        dtype = next(i.dtype for i in case.inputs.values() if i.dtype != "int64")
        percent = 100 * bound_seconds(moved, flops, dtype, device) / median
        benchmark.group = f"{op} {case.label()}"
        benchmark.extra_info.update(
            gb_per_s=moved / median / 1e9,
            gflop_per_s=flops / median / 1e9,
            percent_of_limit=percent,
        )
        remaining = iter(times)
        benchmark.pedantic(lambda: clock.advance(next(remaining)), rounds=len(times))
        ROWS.append(
            (
                op,
                case.label(),
                arm.name,
                1e3 * median,
                moved / median / 1e9,
                flops / median / 1e9,
                percent,
            )
        )

    return hand_over


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not ROWS:
        return
    write = terminalreporter.write_line
    terminalreporter.section(
        "kernels (forward + backward where trained; % of the ceilings of this machine)"
    )
    write(
        f"{'op and case':64} {'implementation':14} {'ms':>9} {'GB/s':>8} {'GFLOP/s':>9} {'% limit':>8}"
    )
    shown = ""
    for op, case, arm, ms, gbs, gflops, percent in ROWS:
        title = f"{op} {case}"
        write(
            f"{title if title != shown else '':64.64} {arm:14} {ms:9.3f} {gbs:8.1f} {gflops:9.1f} {percent:8.1f}"
        )
        shown = title
