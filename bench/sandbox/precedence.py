"""Precedence over whatever else a machine does, and a core for each thread, for processes that are being timed.

Beside four busy processes on two cores a loop of 60 ms takes 130 to 160 ms of wall clock, whatever its nice value: where the kernel groups the
processes of a session (autogroup, sched(7)) it shares the cores out between sessions first. With the highest precedence of both kinds it
takes 60 to 72. A user needs CAP_SYS_NICE for that; without it the timer has only what it subtracts (bench/rounds.py).

A kernel's two threads are woken some thousand times a second. Now and then the second wakes on the core of the first and stays there for
milliseconds: a call of rms_norm then takes 1.3 ms instead of 0.35, and in one process most blocks were like that. With a core for each
thread, the paired ratios of blocks scatter by 9 % instead of 18 (results/HISTORY.md). Which threads are a kernel's is told by what they did
in its calls: a thread that had worked at the import of numpy once got the second core to itself, and every call took twice its time.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

HIGHEST = -20


def take(pids: Iterable[int]) -> bool:
    """Give these processes, with the threads that they have and will start, precedence over all others; False where the kernel refuses.

    A process that has ended meanwhile is passed over.
    """
    for pid in pids:
        try:
            _take(Path("/proc") / str(pid))
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError:  # EPERM, EACCES, EAGAIN (no CAP_SYS_ADMIN) or EROFS
            return False
    return True


def spread(worked: Mapping[int, int]) -> bool:
    """Put each of these threads on one core, and those that worked longest (ns) on different ones; False where the kernel refuses.

    Of those the oldest gets the first core, so that processes of one kernel lie alike: other work prefers one core to the other.
    """
    cores = apart(os.sched_getaffinity(0))
    busiest = sorted(worked, key=lambda thread: -worked[thread])
    in_turn = [*sorted(busiest[: len(cores)]), *busiest[len(cores) :]]
    for thread, core in zip(in_turn, itertools.cycle(cores), strict=False):
        try:
            os.sched_setaffinity(thread, {core})
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:
            return False
    return True


def apart(processors: Iterable[int], system: Path = Path("/sys/devices/system/cpu")) -> list[int]:
    """The processors in an order that names one hardware thread of each core before the second of any, as far as the kernel tells."""

    def order(number: int) -> tuple[int, int]:
        core = system / f"cpu{number}" / "topology" / "thread_siblings_list"
        first = int(re.split("[-,]", core.read_text())[0]) if core.exists() else number
        return number - first, number

    return sorted(processors, key=order)


def _take(process: Path) -> None:
    for thread in os.listdir(process / "task"):
        os.setpriority(os.PRIO_PROCESS, int(thread), HIGHEST)
    group = process / "autogroup"
    try:
        if group.exists():
            group.write_text(str(HIGHEST))
    except OSError as error:
        # EINVAL: no session was made for the process; it stands alone beside the groups, by its nice value.
        if error.errno != errno.EINVAL:
            raise
