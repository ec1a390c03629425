"""Our own small launcher for machines without bubblewrap: new namespaces, and a root that holds only what is named.

And a reaper for machines that have neither. Both fork: the caller goes on as a child, and the parent stays behind to end everything when that
child ends.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bench.sandbox import linux, processes

_NOSUID, _NODEV, _NOEXEC, _BIND, _RECURSIVE, _PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_PIVOT_ROOT, _MOUNT_SETATTR = (155, 41), 442
_ATTRIBUTE_READ_ONLY, _AT_FDCWD, _AT_RECURSIVE = 1, -100, 0x8000
_SET_FLAGS, _UP = 0x8914, 1  # SIOCSIFFLAGS, IFF_UP
NODES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
SHARED = "/dev/shm"


def enter(
    root: Path,
    readable: Sequence[str],
    writable: Sequence[str],
    devices: Sequence[str],
    private: Mapping[str, int],
) -> None:
    """Go on as process 2 of new namespaces that hold these paths and nothing else; `private` are empty folders, with their size in bytes.

    root: an empty folder to build the new root on. Raises OSError where the kernel, a container or AppArmor refuses.
    """
    user, group = os.geteuid(), os.getegid()
    parent = os.getppid()
    linux.unshare(sum(linux.NEW_NAMESPACES.values()))
    # with the judge ends this, and with this all that is inside
    linux.prctl(linux.SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise OSError("the judge is gone")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _raise_loopback()
    _leave_behind(_wait)  # a pid namespace begins with the next child
    linux.prctl(linux.SET_PDEATHSIG, signal.SIGKILL)
    _build(root, readable, writable, devices, private)
    _leave_behind(_wait)  # the first process of a pid namespace: when it ends, so do all the others


def _raise_loopback() -> None:
    """A network namespace begins with it down; compute-sanitizer speaks with its child over it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", _UP))


def watch_descendants() -> None:
    """Go on as a child of a process that outlives it, adopts what it leaves, and kills that. For machines without pid namespaces."""
    parent = os.getppid()
    linux.prctl(linux.SET_CHILD_SUBREAPER, 1)
    linux.prctl(linux.SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGTERM, _stop)
    if os.getppid() != parent:
        raise OSError("the judge is gone")
    _leave_behind(_wait_and_sweep)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave_behind(parent: Callable[[int], int]) -> None:
    """Fork; the child returns, the parent runs `parent` with the child's pid and ends with its result."""
    child = os.fork()
    if child:
        os._exit(parent(child))


def _wait(child: int) -> int:
    """Reap until the child has ended; its exit status, as a shell gives it."""
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _wait_and_sweep(child: int) -> int:
    try:
        status = _wait(child)
    except _Stopped:
        status = 128 + signal.SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while left := processes.tree(os.getpid())[1:]:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            break
        time.sleep(0.002)
    return status


class _Stopped(Exception):
    pass


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise _Stopped


def _build(
    root: Path,
    readable: Sequence[str],
    writable: Sequence[str],
    devices: Sequence[str],
    private: Mapping[str, int],
) -> None:
    linux.mount("none", "/", flags=_RECURSIVE | _PRIVATE)
    linux.mount("tmpfs", str(root), "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    _private(f"{root}/dev", 1 << 20)
    # Before what is readable: the scratch folder and the tree may lie there.
    if SHARED in private:
        _private(f"{root}{SHARED}", private[SHARED])
    for path in readable:
        if os.path.exists(path):
            _bind(root, path)
            _read_only(f"{root}{path}")
    for path in (*NODES, *devices):
        _bind(root, path)
    os.symlink("/proc/self/fd", f"{root}/dev/fd")
    for path, size in private.items():
        if path != SHARED:
            _private(f"{root}{path}", size)
    for path in writable:
        _bind(root, path)
    os.makedirs(f"{root}/proc", exist_ok=True)
    linux.mount("proc", f"{root}/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    # Inside, uid 0 may be the real one, to whom these files belong.
    linux.mount("/proc/sys", f"{root}/proc/sys", flags=_BIND | _RECURSIVE)
    _read_only(f"{root}/proc/sys")
    _read_only(f"{root}/dev", recursive=False)
    os.chdir(root)
    here = linux.text(".")
    linux.syscall(_PIVOT_ROOT[linux.machine()], here, here)
    linux.detach(".")
    os.chdir("/")
    _read_only("/", recursive=False)


def _bind(root: Path, path: str) -> None:
    target = Path(f"{root}{path}")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.isdir(path):
            target.mkdir()
        else:
            target.touch()
    linux.mount(path, str(target), flags=_BIND | _RECURSIVE)


def _private(target: str, size: int) -> None:
    os.makedirs(target, exist_ok=True)
    linux.mount("tmpfs", target, "tmpfs", _NOSUID | _NODEV, f"size={size},mode=755")


def _read_only(target: str, recursive: bool = True) -> None:
    attributes = struct.pack("=QQQQ", _ATTRIBUTE_READ_ONLY, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    linux.syscall(
        _MOUNT_SETATTR,
        _AT_FDCWD,
        linux.text(target),
        flags,
        linux.memory(attributes),
        len(attributes),
    )
