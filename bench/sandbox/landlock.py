"""Landlock: the kernel's own allow-list of files, which a process puts on itself and cannot take off. Needs no privilege; Linux 5.19.

It takes ABI 2: before, no file could be moved to another folder, as the caches of Triton and of our own builds do. What else the running kernel
knows decides how much is handled: TCP from ABI 4, devices' ioctl from 5, abstract UNIX sockets and signals from 6.
Paths that are not named cannot be opened; whether they exist can still be seen, and UNIX sockets that have a path can still be reached
(seccomp stops that). Source: linux/landlock.h, Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable

from bench.sandbox.linux import memory, syscall

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on every architecture
_VERSION, _PATH_BENEATH = 1, 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_BLOCK = 1 << 6, 1 << 11
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_RIGHTS = {1: (1 << 13) - 1, 2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}  # new with each ABI
MOVES_SINCE = 2
_TCP = 0b11  # bind, connect
SIGNALS_SINCE = 6
_SCOPES = 0b11  # abstract UNIX sockets, signals

READ = READ_FILE | READ_DIR
RUN = READ | EXECUTE
# A runner makes no device nodes, and starts no program that it wrote itself.
WRITE = ((1 << 16) - 1) & ~(EXECUTE | MAKE_CHAR | MAKE_BLOCK)
DEVICE = READ_FILE | WRITE_FILE | READ_DIR | IOCTL_DEV


def abi() -> int:
    """Version of Landlock in this kernel. Raises OSError where it is not built in or not switched on."""
    return syscall(_CREATE, None, 0, _VERSION)


def features(version: int) -> str:
    """In words: `files, TCP, signals and abstract sockets`."""
    known = ((1, "files"), (4, "TCP"), (SIGNALS_SINCE, "signals and abstract sockets"))
    return ", ".join(name for since, name in known if version >= since)


def restrict(allowed: Iterable[tuple[str, int]]) -> None:
    """From here on only these paths, with what is below them, can be opened, each for its rights. no_new_privs must be set.

    Paths that do not exist are left out. No TCP, no abstract socket and no signal leaves the process and its children.
    """
    version = abi()
    if version < MOVES_SINCE:
        raise OSError(f"this kernel's ABI {version} lets no file be moved to another folder")
    handled = 0
    for since, rights in _RIGHTS.items():
        handled |= rights if version >= since else 0
    attributes = struct.pack(
        "=QQQ", handled, _TCP if version >= 4 else 0, _SCOPES if version >= SIGNALS_SINCE else 0
    )
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = syscall(_CREATE, memory(attributes), size, 0)
    try:
        for path, rights in allowed:
            _allow(ruleset, path, rights & handled)
        syscall(_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, place)
        syscall(_ADD, ruleset, _PATH_BENEATH, memory(rule), 0)
    finally:
        os.close(place)
