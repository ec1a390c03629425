"""What the operating system says of a process and everything that it started: the judge's own look, which no answer can change."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import zlib
from collections.abc import Iterable
from pathlib import Path

from bench.sandbox import linux

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_SCHED = 2  # CPUCLOCK_SCHED
# With the machine's name: the first namespace has the same number everywhere, and machines may share a folder.
_NAMESPACE = f"{os.stat('/proc/self/ns/pid').st_ino}.{zlib.crc32(os.uname().nodename.encode()):08x}"


def tree(root: int) -> list[int]:
    """Ids of a process and its descendants, as they are now, by the parent that each process in /proc names: about 1 ms for a hundred.

    What a candidate uses is counted over these: the kernel's lists of children (`descendants`) may lack one while another ends.
    """
    started: dict[int, list[int]] = {}
    for entry in os.listdir(_PROC):
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields:
                started.setdefault(int(fields[1]), []).append(int(entry))
    found = [root]
    for pid in found:
        found += started.get(pid, [])
    return found


def descendants(root: int) -> list[int]:
    """As `tree`, but without the process itself and from the kernel's lists of children: 0.1 ms, and possible where /proc may not be listed."""
    found: list[int] = []
    queue = [root]
    while queue:
        for pid in children(queue.pop()):
            found.append(pid)
            queue.append(pid)
    return found


def lists_children() -> bool:
    """Whether this kernel keeps the lists that `descendants` reads."""
    return (_PROC / "self" / "task" / str(os.getpid()) / "children").exists()


def mark() -> str:
    """How names of this process's folders and groups begin. Beside its number stands its namespace: containers may share /tmp, and have equal numbers."""
    return f"lab-{os.getpid()}.{_NAMESPACE}-"


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder that bears this process's name: if the process is killed, the next sandbox removes it."""
    return tempfile.TemporaryDirectory(prefix=mark())


def is_left_behind(folder: Path) -> bool:
    """Whether a folder bears the mark of a process of this namespace that has ended."""
    number, _, namespace = folder.name.split("-")[1].partition(".")
    if namespace != _NAMESPACE or not number.isdigit():
        return False
    # a zombie has ended too
    return not (_PROC / number).exists() or _stat(int(number))[:1] == ["Z"]


def children(pid: int) -> list[int]:
    """The children of all its threads; none of a process that ends meanwhile."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in (_PROC / str(pid) / "task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, (task / "children").read_text().split())
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time of these processes, of threads that have ended and of children that were waited for; in steps of 10 ms."""
    ticks = 0
    for pid in pids:
        fields = _stat(pid)
        # utime, stime, cutime, cstime (proc(5), fields 14 to 17; the command's name, field 2, is cut off)
        ticks += sum(map(int, fields[11:15]))
    return ticks * TICK_S


def thread_seconds(pids: Iterable[int]) -> float:
    """Processor time of all threads of these processes, to the microsecond, without children of theirs; 0 for one that is gone."""
    found = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            # The clock of another process, as clock_getcpuclockid(3) makes it of a pid.
            found += time.clock_gettime((~pid << 3) | _SCHED)
    return found


def threads(pids: Iterable[int]) -> dict[int, tuple[int, int]]:
    """For each thread of these processes the time on a core, and the time for which it was ready to run and waited for one, in ns; 0 where the
    kernel does not count them. While a thread runs, its first figure is as old as the last tick (4 ms)."""
    found: dict[int, tuple[int, int]] = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found |= {int(task.name): _used(task) for task in (_PROC / str(pid) / "task").iterdir()}
    return found


def waited_here() -> int:
    """Nanoseconds for which the calling thread was ready to run and waited for a core; 0 where the kernel does not count them."""
    return _used(_PROC / "thread-self")[1]


def _used(task: Path) -> tuple[int, int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        on_core, waited, _ = (task / "schedstat").read_text().split()
        return int(on_core), int(waited)
    return 0, 0


def fixed_addresses(pid: int) -> bool:
    """Whether its memory lies at the same addresses as that of every other such process; False where that cannot be seen."""
    with contextlib.suppress(OSError):
        return bool(int((_PROC / str(pid) / "personality").read_text(), 16) & linux.FIXED_ADDRESSES)
    return False


def peak_bytes(pids: Iterable[int]) -> int:
    """Largest memory so far of each process, summed, without the pages that it shares with the judge."""
    return sum(1024 * (s.get("VmHWM", 0) - s.get("RssShmem", 0)) for s in map(_status, pids))


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third (state) on; none if the process is gone, or another user's that may not be read (hidepid=1)."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
    return text[text.rindex(")") + 2 :].split()


def _status(pid: int) -> dict[str, int]:
    """The kB figures of /proc/PID/status."""
    try:
        text = (_PROC / str(pid) / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    lines = (line.split(":", 1) for line in text.splitlines() if line.endswith(" kB"))
    return {name: int(value.split()[0]) for name, value in lines}
