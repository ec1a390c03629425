"""What Linux has and Python has no function for: a few system calls by ctypes, which raise OSError where the kernel refuses."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

SET_PDEATHSIG, SET_NO_NEW_PRIVS, SET_CHILD_SUBREAPER = 1, 38, 36
_CAPBSET_READ, _CAPBSET_DROP, _CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL = 23, 24, 47, 4
_CAPABILITY_VERSION = 0x20080522
_LAST_CAPABILITY = 63
FIXED_ADDRESSES = 0x0040000  # of a process's personality (personality(2))

NEW_NAMESPACES = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "network": 0x40000000,
}

_libc = ctypes.CDLL(None, use_errno=True)


def machine() -> int:
    """Column of a table of system call numbers: 0 for x86_64, 1 for aarch64."""
    known = {"x86_64": 0, "aarch64": 1}
    name = os.uname().machine
    if name not in known:
        raise OSError(f"system call numbers are known for {' and '.join(known)}, not for {name}")
    return known[name]


def syscall(number: int, *arguments: int | ctypes.Array[ctypes.c_char] | None) -> int:
    """A raw system call; buffers are passed by address."""
    passed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *passed))


def memory(content: bytes) -> ctypes.Array[ctypes.c_char]:
    """A copy of the bytes to pass by address."""
    return ctypes.create_string_buffer(content, len(content))


def text(path: str) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(os.fsencode(path))


def prctl(option: int, value: int) -> int:
    numbers = (ctypes.c_ulong(n) for n in (value, 0, 0, 0))
    return _checked(_libc.prctl(option, *numbers))


@contextlib.contextmanager
def fixed_addresses() -> Iterator[None]:
    """Processes that this thread starts in the block have their memory at the same addresses, if the kernel lets a process ask for that."""
    before = _libc.personality(ctypes.c_ulong(0xFFFFFFFF))  # which asks
    _libc.personality(ctypes.c_ulong(before | FIXED_ADDRESSES))
    try:
        yield
    finally:
        _libc.personality(ctypes.c_ulong(before))


def unshare(flags: int) -> None:
    _checked(_libc.unshare(flags))


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    texts = [os.fsencode(text) for text in (source, target, kind, options)]
    _checked(_libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]))


def detach(target: str) -> None:
    """Unmount lazily, so that what is still open there goes on."""
    _checked(_libc.umount2(os.fsencode(target), 2))


def drop_capabilities() -> None:
    """Give up every capability, for this process and all that it will execute."""
    prctl(_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL)
    if effective_capabilities():
        for number in range(_LAST_CAPABILITY + 1):
            try:
                held = prctl(_CAPBSET_READ, number)
            except OSError:
                break  # this kernel knows no such number, nor any after it
            if held:
                prctl(_CAPBSET_DROP, number)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)()))


def effective_capabilities() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith("CapEff"))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
