"""Processes that are timed come before other work, where the user may say so."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from quick_compile import quick

from bench import conduct, rounds
from bench.contracts import contract
from bench.sandbox import precedence, processes
from bench.timing import runners_of

ROOT = Path(__file__).resolve().parent.parent
NOBODY = 65534


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, as a runner is."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        yield process
        process.kill()


def test_a_process_comes_first_or_the_user_may_not_say_so(sleeper: subprocess.Popen[bytes]) -> None:
    before = os.getpriority(os.PRIO_PROCESS, sleeper.pid)
    taken = precedence.take([sleeper.pid])
    now = os.getpriority(os.PRIO_PROCESS, sleeper.pid)
    assert now == (precedence.HIGHEST if taken else before)
    group = Path(f"/proc/{sleeper.pid}/autogroup")
    if taken and group.exists():
        assert group.read_text().split()[-1] == str(precedence.HIGHEST)


def test_a_process_that_has_ended_is_passed_over(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()
    assert precedence.take([sleeper.pid])


@pytest.mark.parametrize(
    ("refusal", "taken"), [(errno.EINVAL, True), (errno.EAGAIN, False), (errno.EROFS, False)]
)
def test_a_kernel_that_refuses_the_group_is_no_crash(
    sleeper: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    refusal: int,
    taken: bool,
) -> None:
    """EINVAL is what a process that no session was made for gets: there nice alone decides."""

    def refuse(path: Path, text: str) -> int:
        raise OSError(refusal, os.strerror(refusal), str(path))

    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(os, "setpriority", lambda *_: None)
    assert precedence.take([sleeper.pid]) is taken


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_the_right_is_told_so_and_nothing_breaks() -> None:
    child = os.fork()
    if child == 0:
        status = 2
        try:
            os.setuid(NOBODY)
            status = int(precedence.take([os.getpid()]))
        finally:
            os._exit(status)  # never a second pytest
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("cores", "order"),
    [
        (("0,2", "1,3"), [0, 1, 2, 3]),
        (("0-1", "2-3"), [0, 2, 1, 3]),
        (("0", "1", "2", "3"), [0, 1, 2, 3]),
        ((), [0, 1, 2, 3]),  # a kernel that does not say
    ],
)
def test_threads_get_a_core_each_before_two_share_one(
    tmp_path: Path, cores: tuple[str, ...], order: list[int]
) -> None:
    for core in cores:
        first, last = int(core[0]), int(core[-1])
        for number in (first, last):
            folder = tmp_path / f"cpu{number}" / "topology"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "thread_siblings_list").write_text(f"{core}\n")
    assert precedence.apart(range(4), tmp_path) == order


def test_the_oldest_of_the_threads_that_worked_longest_gets_the_first_core(
    sleeper: subprocess.Popen[bytes],
) -> None:
    gone = 2**22 + 1  # is passed over
    assert precedence.spread({gone: 3, sleeper.pid: 2})
    assert os.sched_getaffinity(sleeper.pid) == {precedence.apart(os.sched_getaffinity(0))[0]}


def worked(pids: list[int]) -> dict[int, int]:
    return {thread: on_core for thread, (on_core, _) in processes.threads(pids).items()}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("mode", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_threads_of_a_call_have_cores_of_their_own_whatever_worked_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str
) -> None:
    """numpy's import leaves a thread that once had the second core for itself."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # of the runner
    monkeypatch.setattr(rounds, "WARM_UP_S", 0.1)
    # torch.compile takes seconds where nothing else runs
    monkeypatch.setattr(conduct, "COLD_LIMIT_S", 250.0)
    monkeypatch.setattr(rounds, "CALL_TIMEOUT_S", 250.0)
    asked, rng = contract("rms_norm"), random.Random(0)
    (case,) = (case for case in asked.trial["cpu"] if case.calls)
    tree = ROOT if mode == "eager" else quick(tmp_path, "rms_norm")
    arms = [rounds.Arm("one", tree, "torch", mode)]
    with runners_of("rms_norm", arms, "cpu") as runners:
        (prepared,) = rounds.prepare(asked, [case], arms, runners, rng)
        rounds.ready([prepared], runners)
        runners[0].give_cores()  # nothing was asked since, and nothing moves
        pids = processes.tree(runners[0].judge.pid)
        before = worked(pids)
        for _ in range(3):
            prepared.round()
        now = worked(pids)
        affinity = {thread: os.sched_getaffinity(thread) for thread in now}
    first, second = sorted(now, key=lambda thread: before[thread] - now[thread])[:2]
    assert now[second] > before[second]
    assert runners[0].spread
    assert affinity[first] != affinity[second]
