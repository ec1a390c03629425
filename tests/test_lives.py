"""A runner that goes on as new processes: each imports the candidate anew, and one that dies is a crash of the runner."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.conduct import Conduct
from bench.judge import Judge, Refused
from bench.sandbox import linux, processes

KEEPS = """import torch
torch.manual_seed(5)


def rms_norm(x, weight=None, eps=1e-6):
    return x
"""


@pytest.fixture
def runner(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Conduct]:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "rms_norm.py").write_text(request.param)
    with Judge(tmp_path) as judge:
        yield Conduct("candidate", judge)


@pytest.mark.parametrize("runner", [KEEPS], indirect=True)
def test_each_life_is_one_more_process_that_has_not_seen_the_candidate(runner: Conduct) -> None:
    runner.judge.ask("stage", calls=[])
    before = set(processes.tree(runner.judge.pid))
    lived: set[int] = set()
    for _ in range(3):
        runner.live()
        (child,) = set(processes.tree(runner.judge.pid)) - before
        runner.load("rms_norm")
        runner.begin()
        with pytest.raises(Refused, match="global random generator"):
            runner.unchanged()  # as the import left it: the next process finds it as it was, and changes it again
        runner.leave()
        lived.add(child)  # and gone when the next one answers: there is one at a time
    assert len(lived) == 3


@pytest.mark.parametrize("code", [0, 9])
@pytest.mark.parametrize("runner", [""], indirect=True)
def test_a_process_that_ends_itself_is_a_crash_at_once(runner: Conduct, code: int) -> None:
    (runner.judge.tree / "kernels" / "rms_norm.py").write_text(f"import os\nos._exit({code})\n")
    runner.live()
    started = time.monotonic()
    with pytest.raises(Refused) as refused:
        runner.load("rms_norm")
    assert refused.value.kind == "crash"
    assert time.monotonic() - started < 60


def works(runner: Conduct, seconds: float) -> None:
    """Wait until it has used so much processor time, which takes longer where other work has the cores."""
    end, deadline = runner.judge.cpu_seconds() + seconds, time.monotonic() + 60
    while runner.judge.cpu_seconds() < end and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.parametrize("runner", [KEEPS], indirect=True)
def test_what_one_process_did_unasked_is_in_the_books_of_all(runner: Conduct) -> None:
    spin = (
        KEEPS
        + "import threading\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)], daemon=True).start()\n"
    )
    (runner.judge.tree / "kernels" / "rms_norm.py").write_text(spin)
    for _ in range(2):
        runner.live()
        runner.load("rms_norm")
        runner.begin()
        works(runner, 0.3)
        runner.leave()
    assert runner.idle_cpu_s > 0.5
    runner.live()
    runner.begin()
    with pytest.raises(Refused, match="asked for nothing"):
        runner.end(1)


@pytest.mark.parametrize("runner", [KEEPS], indirect=True)
def test_a_process_that_one_life_leaves_behind_is_in_the_books_of_the_next(runner: Conduct) -> None:
    file = runner.judge.tree / "kernels" / "rms_norm.py"
    file.write_text(f"{KEEPS}\nimport os\nif os.fork() == 0:\n    while True:\n        pass\n")
    runner.live()
    runner.load("rms_norm")
    runner.begin()
    runner.leave()
    file.write_text(KEEPS)
    runner.live()
    runner.load("rms_norm")
    runner.begin()
    works(runner, 0.5)
    with pytest.raises(Refused, match="asked for nothing"):
        runner.end(1)


def test_all_runners_have_their_memory_at_the_same_addresses_however_long_the_name_of_a_tree(
    tmp_path: Path,
) -> None:
    seen = []
    for name in ("tree", "a tree of a much longer name"):
        (tmp_path / name / "kernels").mkdir(parents=True)
        with Judge(tmp_path / name) as judge:
            judge.ask("stage", calls=[])
            answering = processes.tree(judge.pid)[-1]
            if not processes.fixed_addresses(answering):
                pytest.skip("this kernel does not let a process ask for that")
            maps = Path(f"/proc/{answering}/maps").read_text().splitlines()
            stack = Path(f"/proc/{answering}/stat").read_text().split()[27]
            seen.append([stack, *(line.split()[0] for line in maps if line.endswith(".so"))])
    assert len(seen[0]) > 10
    # Names live in Python's memory: where one more megabyte of it is needed just before a library is loaded, that one lies elsewhere (5 lines of 220).
    moved = sum(one != other for one, other in zip(*seen, strict=True))
    assert moved <= 0.05 * len(seen[0])
    here = Path("/proc/self/personality").read_text()
    assert not int(here, 16) & linux.FIXED_ADDRESSES, "the judge's own children have them too"
