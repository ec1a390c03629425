"""What one sandbox may use. Generous for honest work: the bounds are there so that the machine and the judge survive a candidate."""

from __future__ import annotations

import os
from dataclasses import dataclass

from bench.sandbox import cgroup

GIB = 1 << 30


@dataclass(frozen=True)
class Limits:
    """Bytes, but for `processes`, which counts threads too where a cgroup does the counting."""

    memory: int = 16 * GIB  # of all processes together
    data: int = 16 * GIB  # private memory that one process may reserve
    processes: int = 4096
    file: int = GIB  # one file
    # Files in its folder; with a root of its own in each of three: scratch, /dev/shm, /compiled.
    disk: int = 4 * GIB
    output: int = 64 << 20  # what it prints

    def rlimits(self) -> dict[str, int]:
        """For one process, by their names in the module `resource`."""
        return {
            "RLIMIT_CORE": 0,
            "RLIMIT_FSIZE": self.file,
            # DATA and not AS: CUDA reserves address space by the hundred gigabytes without using it.
            "RLIMIT_DATA": self.data,
            # Counts all processes of the user, and none for root.
            "RLIMIT_NPROC": self.processes,
        }


def default(device: str) -> Limits:
    """For a device: at most three quarters of the memory of the machine or container and, on a CPU, a quarter of it for the files of each folder in memory."""
    _, bound = cgroup.allowance()
    whole = int(min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), bound))
    if device != "cuda":
        return Limits(memory=min(16 * GIB, whole * 3 // 4), disk=min(4 * GIB, whole // 4))
    # A virtual machine with a GPU may be given its memory by and by: what it has now is no bound below 32 GiB.
    return Limits(memory=min(128 * GIB, max(whole * 3 // 4, 32 * GIB)), data=128 * GIB)
