"""A control group for one sandbox, where this process may make one: memory and processes are bounded, and everything in it is killed at once.

Works with version 2 (below the nearest ancestor that may be divided) and version 1 (below the process's own place in each hierarchy). No daemon is
asked and nothing is installed. Source: the kernel's admin-guide, cgroup-v1 and cgroup-v2.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.sandbox import processes

_CONTROLLERS = ("memory", "pids")
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class Place:
    """Where groups can be made: one folder (version 2), or one for each controller (version 1)."""

    version: int
    parents: tuple[Path, ...]


@dataclass(frozen=True)
class Group:
    """One group, in each folder that makes it up. A process joins by writing 0 to every file of `joins`."""

    version: int
    folders: tuple[Path, ...]

    @property
    def joins(self) -> list[str]:
        return [str(folder / "cgroup.procs") for folder in self.folders]

    def kill(self) -> None:
        """End every process of the group; returns when none is left, or after some seconds."""
        deadline = time.monotonic() + _PATIENCE_S
        while self._processes() and time.monotonic() < deadline:
            if (kill := self.folders[0] / "cgroup.kill").exists():  # version 2 since Linux 5.14
                kill.write_text("1")
            else:
                for pid in self._processes():
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
            time.sleep(0.002)

    def excess(self) -> str:
        """Which limit was met, in words; empty if none was."""
        for folder in self.folders:
            events = {**_counts(folder / "memory.events"), **_counts(folder / "memory.oom_control")}
            if events.get("oom_kill"):
                return "it used more memory than its cgroup allows"
            if _counts(folder / "pids.events").get("max"):
                return "it ran more processes than its cgroup allows"
        return ""

    def remove(self) -> None:
        for folder in self.folders:
            try:
                folder.rmdir()
            except OSError:
                continue  # never made, or a process is still ending: the next sweep takes it

    def _processes(self) -> set[int]:
        found: set[int] = set()
        for join in self.joins:
            try:
                found |= {int(pid) for pid in Path(join).read_text().split()}
            except OSError:
                continue
        return found - {0}


def make(place: Place, name: str, *, memory: int, processes: int) -> Group:
    """A new, empty group. Raises OSError where it cannot be made."""
    group = Group(place.version, tuple(parent / name for parent in place.parents))
    try:
        for folder in group.folders:
            folder.mkdir()
            for file, value in _limits(place.version, memory, processes).items():
                if (folder / file).exists():
                    (folder / file).write_text(str(value))
    except OSError:
        group.remove()
        raise
    return group


def find() -> Place:
    """Where this process can make groups. Raises OSError with the reason if nowhere."""
    mounts = dict(_mounts())
    own = dict(_own())
    if "" in own and "" in mounts:
        reasons = []
        for folder in _upwards(mounts[""], own[""]):
            reason = _divisible(folder)
            if not reason:
                return Place(2, (folder,))
            reasons.append(reason)
        if not all(controller in own for controller in _CONTROLLERS):
            raise OSError(reasons[0])
    missing = [c for c in _CONTROLLERS if c not in own or c not in mounts]
    if missing:
        raise OSError(f"no {' and no '.join(missing)} controller is mounted in /sys/fs/cgroup")
    folders = tuple(next(_upwards(mounts[c], own[c])) for c in _CONTROLLERS)
    for folder in folders:
        if not os.access(folder, os.W_OK):
            raise OSError(f"{folder} is not writable")
    return Place(1, folders)


def allowance() -> tuple[float, float]:
    """(cores, bytes of memory) that the groups around this process leave to it, infinite where none sets a bound.

    What a container may use shows here alone: inside, the numbers of cores and of pages are the machine's.
    """
    try:
        mounts, own = dict(_mounts()), list(_own())
    except FileNotFoundError:  # a kernel without control groups
        return math.inf, math.inf
    cores = memory = math.inf
    for controller, path in own:
        for folder in _upwards(mounts[controller], path) if controller in mounts else ():
            cores, memory = min(cores, _cores(folder)), min(memory, _bytes(folder))
    return cores, memory


def _cores(folder: Path) -> float:
    """Time on the cores in a period, over the period. Without a bound version 2 says `max`, and version 1 -1."""
    told = _words(folder, "cpu.max") or _words(folder, "cpu.cfs_quota_us", "cpu.cfs_period_us")
    bounded = len(told) == 2 and told[0].isdigit()
    return int(told[0]) / int(told[1]) if bounded else math.inf


def _bytes(folder: Path) -> float:
    told = _words(folder, "memory.max") or _words(folder, "memory.limit_in_bytes")
    return int(told[0]) if told and told[0].isdigit() else math.inf


def _words(folder: Path, *names: str) -> list[str]:
    """What these files hold; nothing of one that is not there."""
    found: list[str] = []
    for name in names:
        try:
            found += (folder / name).read_text().split()
        except OSError:
            continue
    return found


def sweep(place: Place) -> None:
    """Remove the groups of judges that were killed, with whatever still runs in them."""
    for folder in place.parents:
        for left in folder.glob("lab-*-*"):
            if processes.is_left_behind(left):
                group = Group(place.version, (left,))
                group.kill()
                group.remove()


def _limits(version: int, memory: int, processes: int) -> dict[str, int]:
    if version == 2:
        return {
            "memory.max": memory,
            "memory.swap.max": 0,
            "memory.oom.group": 1,
            "pids.max": processes,
        }
    return {
        "memory.limit_in_bytes": memory,
        "memory.memsw.limit_in_bytes": memory,
        "pids.max": processes,
    }


def _own() -> Iterator[tuple[str, str]]:
    """This process's place by controller; that of version 2 under the empty name."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def _mounts() -> Iterator[tuple[str, tuple[Path, str]]]:
    """By controller: where its hierarchy is mounted, and which part of it."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        part, point = before.split(" ")[3:5]
        kind, _, options = after.split(" ")[:3]  # the source, between them, may be empty
        if kind == "cgroup2":
            yield "", (Path(point), part)
        elif kind == "cgroup":
            for option in options.split(","):
                yield option, (Path(point), part)


def _upwards(mounted: tuple[Path, str], path: str) -> Iterator[Path]:
    """Folders from the process's own to the top of the mount."""
    point, part = mounted
    inside = path.removeprefix(part).strip("/") if part != "/" else path.strip("/")
    folder = point / inside
    if ".." in folder.parts or not folder.is_dir():
        folder = point
    while folder != point:
        yield folder
        folder = folder.parent
    yield point


def _divisible(folder: Path) -> str:
    """Why no bounded group can be made below a folder of version 2; empty if one can."""
    if not os.access(folder, os.W_OK) or not os.access(folder / "cgroup.procs", os.W_OK):
        return f"{folder} is not writable"
    control = folder / "cgroup.subtree_control"
    missing = [c for c in _CONTROLLERS if c not in control.read_text().split()]
    if not missing:
        return ""
    try:
        control.write_text(" ".join(f"+{c}" for c in missing))
    except OSError as error:
        return f"{folder} does not hand on {' and '.join(missing)}: {error.strerror}"
    return ""


def _counts(file: Path) -> dict[str, int]:
    try:
        rows = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
