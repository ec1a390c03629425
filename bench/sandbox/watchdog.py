"""A thread of the judge that bounds, for one sandbox, what the kernel does not bound there. It looks, and kills.

It bounds the output; where there is no cgroup, memory and processes; and what the sandbox may write on a disk: its scratch folder, the cache. It is
needed because rlimits count a single process or file, and RLIMIT_NPROC counts nothing for root.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.sandbox import processes
from bench.sandbox.limits import Limits

EVERY_S = 0.1  # a look takes 0.07 ms of a core with a cgroup, and 0.2 ms without one
DISK_EVERY = 5  # looks; walking a folder takes longer
# In a row, in which the machine lacks memory: a virtual machine's may still be growing when it is asked for.
LACKING_LOOKS = 10
MOST_FILES = 200_000  # that a walk counts before it gives up
# Begins the one excess that is not the sandbox's fault: what the sandbox itself writes has a limit of its own.
FULL = "the disk had less than"
RESERVE_BYTES = 256 << 20  # of the machine's memory and of its disk, for the judge itself


class Watchdog:
    """Watches until `stop`; `excess` says what it killed for, empty if nothing."""

    def __init__(
        self,
        process: int,
        limits: Limits,
        kill: Callable[[], None],
        *,
        log: Path,
        counted: Callable[[], str] | None,
        folders: Sequence[Path],
    ) -> None:
        """counted: asks a cgroup which limit was met; without one, memory and processes are counted here.
        folders: what may grow by `limits.disk` together.
        """
        self.excess = ""
        self._process, self._limits, self._kill = process, limits, kill
        self._log, self._counted, self._folders = log, counted, folders
        self._before = _size(folders)
        self._lacking = 0  # looks in a row
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        looks = 0
        try:
            while not self.excess and not self._over.wait(EVERY_S):
                looks += 1
                self.excess = self._look(disk=looks % DISK_EVERY == 0)
        finally:
            # also where a look failed: nothing runs unwatched
            if self.excess or not self._over.is_set():
                self.excess = self.excess or "its watchdog failed"
                self._kill()

    def _look(self, *, disk: bool) -> str:
        """Which limit is passed, in words."""
        if self._log.stat().st_size > self._limits.output:
            return f"it printed more than {_megabytes(self._limits.output)}"
        if self._counted is not None:
            if excess := self._counted():
                return excess
        else:
            running = processes.descendants(self._process)
            if len(running) > self._limits.processes:
                return f"it ran more than {self._limits.processes} processes"
            if sum(map(_private_memory, running)) > self._limits.memory:
                return f"it used more than {_megabytes(self._limits.memory)} of memory"
            self._lacking = self._lacking + 1 if _available() < RESERVE_BYTES else 0
            if self._lacking == LACKING_LOOKS:
                return f"the machine had less than {_megabytes(RESERVE_BYTES)} of memory left"
        if disk and self._folders:
            if _size(self._folders) - self._before > self._limits.disk:
                return f"it wrote more than {_megabytes(self._limits.disk)} of files"
            for folder in self._folders:  # which may lie on different disks
                space = os.statvfs(folder)
                if space.f_bavail * space.f_frsize < RESERVE_BYTES:
                    return f"{FULL} {_megabytes(RESERVE_BYTES)} left at {folder}"
        return ""


def _private_memory(process: int) -> int:
    """Bytes of memory that belong to a process alone; what it shares with the judge does not count."""
    try:
        with open(f"/proc/{process}/status") as status:
            return next((int(s.split()[1]) << 10 for s in status if s.startswith("RssAnon")), 0)
    except OSError:
        return 0  # it ended while we looked


def _available() -> int:
    with open("/proc/meminfo") as info:
        return next(int(line.split()[1]) << 10 for line in info if line.startswith("MemAvailable"))


def _size(folders: Sequence[Path]) -> int:
    """Bytes below the folders; more than any limit if there are too many files to count."""
    total = files = 0
    for folder in folders:
        for path, _, names in os.walk(folder):
            files += len(names)
            if files > MOST_FILES:
                return 1 << 62
            for name in names:
                try:
                    total += os.lstat(os.path.join(path, name)).st_blocks << 9
                except OSError:
                    continue  # removed while we looked
    return total


def _megabytes(count: int) -> str:
    return f"{count >> 20} MiB"
