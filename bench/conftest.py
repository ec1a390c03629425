"""`pytest bench` runs every implementation once; `pytest bench --benchmark` measures them, with their peers, against this machine's ceilings.

Times come from bench/timing.py, the timer of the gates; pytest-benchmark receives the samples through a clock that moves only when told, and
keeps what it is good at: its table, JSON files and `--benchmark-compare`.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.contracts import Case, contract
from bench.roofline import bound_seconds
from bench.timing import Arm, sample

ROOT = Path(__file__).resolve().parent.parent
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


def arms(op: str, device: str, measuring: bool) -> list[Arm]:
    """The implementations that the device runs, plain torch first; torch.compile of it joins when measuring (it compiles for 10 s).

    "fused" is a library's, of an op that has one.
    """
    peers = [Arm("torch eager", ROOT, "torch")]
    if measuring:
        peers.append(Arm("torch.compile", ROOT, "torch", "inductor"))
    ours = {"cpu": ("fused", "cpp"), "cuda": ("fused", "triton", "cuda")}[device]
    written = (ROOT / "kernels" / f"{op}.py").read_text()
    return peers + [Arm(name, ROOT, name) for name in ours if f'"{name}":' in written]


@functools.cache
def samples(op: str, index: int, device: str, measuring: bool) -> dict[str, list[float]]:
    """All arms of one case in one interleaved measurement."""
    case = contract(op).trial[device][index]
    limit = SECONDS_A_CASE if measuring else 0.0
    return sample(op, case, arms(op, device, measuring), device=device, limit_s=limit)


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
