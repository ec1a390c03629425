"""The books of a runner: what it does when it is not asked, its memory and threads, and what a call saves that is asked alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from bench.conduct import Conduct, no_memory_hog
from bench.contracts import Case, Input
from bench.judge import Refused
from bench.sandbox import processes
from bench.savings import Savings

SOME = Case({"x": Input((128, 192))})


@pytest.fixture
def process() -> Callable[[str], subprocess.Popen[bytes]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> subprocess.Popen[bytes]:
        # in a session of its own, as a runner is: precedence is given to sessions
        started.append(subprocess.Popen([sys.executable, "-c", code], start_new_session=True))
        return started[-1]

    yield start
    for child in started:
        for pid in processes.tree(child.pid):  # a child of its own would outlive it
            os.kill(pid, signal.SIGKILL)
        child.wait()


def used(pid: int) -> float:
    """Processor time of a process and its children."""
    return processes.cpu_seconds(processes.tree(pid))


def test_work_of_a_runner_that_is_not_asked_shows_and_its_children_count(process) -> None:
    spin = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    for code, honest in (("import time; time.sleep(60)", True), (spin, False)):
        child = process(code)
        time.sleep(0.5)
        conduct = Conduct("candidate", SimpleNamespace(pid=child.pid))
        conduct.begin()
        if honest:
            time.sleep(0.8)
            conduct.end(1)
            continue
        # Half a second of a core is too much, however long it takes where other work has the rest.
        end, deadline = used(child.pid) + 0.5, time.monotonic() + 60
        while used(child.pid) < end and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(Refused, match="asked for nothing"):
            conduct.end(1)
        assert processes.peak_bytes(processes.tree(child.pid)) > 4 << 20


def test_memory_beyond_twice_the_incumbents_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    incumbent, candidate = (
        Conduct(name, SimpleNamespace(pid=1)) for name in ("incumbent", "candidate")
    )
    sizes = {"incumbent": 400 << 20, "candidate": 1000 << 20}
    monkeypatch.setattr(Conduct, "peak_bytes", lambda self: sizes[self.name])
    no_memory_hog(incumbent, candidate)
    sizes["candidate"] = 1100 << 20
    with pytest.raises(Refused, match="1100 MB where the incumbent took 400 MB"):
        no_memory_hog(incumbent, candidate)


def test_more_processors_than_torch_has_threads_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conduct = Conduct("candidate", SimpleNamespace(pid=1), turn_cpu_s=3.8, turn_s=2.0)
    conduct._cpu, conduct._started = 0.0, time.perf_counter()
    monkeypatch.setattr(processes, "tree", lambda pid: [])
    monkeypatch.setattr(processes, "cpu_seconds", lambda pids: 3.8)
    conduct.end(2)
    with pytest.raises(Refused, match=r"1\.9 processors where torch has 1"):
        conduct.end(1)


@pytest.mark.parametrize(
    ("alone_ms", "honest"),
    [(0.7, True), (0.95, True), (1.2, False)],
    ids=("all_of_it", "half_of_it_as_threads_are_woken_first", "nothing"),
)
def test_a_call_asked_alone_has_to_save_its_share(alone_ms: float, honest: bool) -> None:
    noise = np.random.default_rng(0).normal(0, 0.02, (2, 30))
    row = {"incumbent": [1e-3] * 30, "candidate": [0.5e-3] * 30}
    alone = {
        "incumbent": [1e-3 * (1.2 + x) for x in noise[0]],
        "candidate": [1e-3 * (alone_ms + x) for x in noise[1]],
    }
    savings = Savings.of(row, alone)
    assert not savings.unclear
    if honest:
        savings.check(SOME)
        return
    with pytest.raises(Refused, match="asked alone"):
        savings.check(SOME)
