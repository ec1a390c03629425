"""A filter of system calls: those that no kernel or training run needs, and through which it could reach what is not its own, fail with EPERM.

It is a deny-list, because torch, OpenMP, CUDA, Triton and a C++ compiler together use most of the rest. Sources: seccomp(2), Docker's default
profile, linux/filter.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator

from bench.sandbox.linux import NEW_NAMESPACES, machine, memory, syscall

# Numbers on x86_64 and aarch64; -1 where there is no such call.
REFUSED = {
    # the network
    "connect": (42, 203),
    # the memory and descriptors of other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "unshare": (272, 97),
    "setns": (308, 268),
    # parts of the kernel where most of its holes are found
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "fanotify_init": (300, 262),
    "memfd_secret": (447, 447),
    "modify_ldt": (154, -1),
    "personality": (135, 92),
    "seccomp": (317, 277),
    # the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, -1),
    "ioperm": (173, -1),
    "vhangup": (153, 58),
    # what would outlive the process, to be found by the next
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
}
# Refused by an argument: call, argument, test, value. Of sockets, UNIX streams remain, which are of no use but in pairs: a
# datagram socket (2, and 3, which Linux makes one) could send to a path without connecting.
_UNIX, _DATAGRAM, _SET_SECCOMP = 1, 2, 22
BY_ARGUMENT = (
    ("socket", (41, 198), 0, "other than", _UNIX),
    ("socket", (41, 198), 1, "with", _DATAGRAM),
    ("socketpair", (53, 199), 1, "with", _DATAGRAM),
    ("clone", (56, 220), 0, "with", sum(NEW_NAMESPACES.values())),
    ("prctl", (157, 167), 0, "equal", _SET_SECCOMP),
)
# glibc falls back to clone, whose flags a filter can read; those of clone3 lie in memory.
CLONE3 = (435, 435)

# Calls with which a process could kill, starve or slow down others of its user, where it can see them: only for itself, which is
# 0 in the argument that takes a pid, and by process (0 and 1) in the one that may also take a user.
ON_OTHERS = (
    ("prlimit64", (302, 261), 0, 0),
    ("sched_setscheduler", (144, 119), 0, 0),
    ("sched_setparam", (142, 118), 0, 0),
    ("sched_setattr", (314, 274), 0, 0),
    ("sched_setaffinity", (203, 122), 0, 0),
    ("setpriority", (141, 140), 0, 0),
    ("setpriority", (141, 140), 1, 0),
    ("ioprio_set", (251, 30), 0, 1),
    ("ioprio_set", (251, 30), 1, 0),
)
SIGNALS = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
}
_TGKILL = (234, 131)
# What Landlock does not watch: owner, mode, times and attributes of files that cannot be opened.
OF_FILES = {
    "chmod": (90, -1),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, -1),
    "lchown": (94, -1),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, -1),
    "utimes": (235, -1),
    "futimesat": (261, -1),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
}

_LOAD, _EQUAL, _GREATER, _HAS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in seccomp_data
_AUDIT = (0xC000003E, 0xC00000B7)
_X32 = 0x40000000  # a second set of numbers on x86_64, unused everywhere
_SET_FILTER = 1
# Without it, kernels before 5.16 switch off speculative store bypass, which slows down what is measured.
_KEEP_SPECULATION = 1 << 2

Instruction = tuple[int, int, int, int]


def install(*, sees_others: bool, signals: bool, sees_files: bool) -> None:
    """Put the filter on this process and its children, for good. no_new_privs must be set.

    sees_others: without a pid namespace; calls that take another process's number are refused as well.
    signals: without one, and without Landlock's scope; no signal can be sent but abort's own.
    sees_files: without a mount namespace; nothing about a file can be changed but its content.
    """
    code = b"".join(struct.pack("=HBBI", *i) for i in program(sees_others, signals, sees_files))
    buffer = memory(code)
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    syscall(REFUSED["seccomp"][machine()], _SET_FILTER, _KEEP_SPECULATION, memory(header))


def refused() -> int:
    """How many system calls are refused, whole or by an argument."""
    whole = [numbers for numbers in REFUSED.values() if numbers[machine()] >= 0]
    return len(whole) + len({name for name, *_ in BY_ARGUMENT})


def program(sees_others: bool, signals: bool, sees_files: bool) -> Iterator[Instruction]:
    """The filter as instructions of BPF: operation, jump if true, jump if false, value."""
    column = machine()
    yield _LOAD, 0, 0, _ARCHITECTURE
    yield _EQUAL, 1, 0, _AUDIT[column]
    yield _RETURN, 0, 0, _KILL
    yield _LOAD, 0, 0, _NUMBER
    if column == 0:
        yield _GREATER, 0, 1, _X32
        yield _RETURN, 0, 0, _ERRNO | errno.ENOSYS
    yield from _refuse([CLONE3[column]], errno.ENOSYS)
    yield from _refuse(numbers[column] for numbers in REFUSED.values())
    for _, numbers, argument, test, value in BY_ARGUMENT:
        yield from _refuse_by(numbers[column], argument, test, value)
    if sees_others:
        for _, numbers, argument, own in ON_OTHERS:
            yield from _refuse_by(numbers[column], argument, "other than", own)
    if signals:
        yield from _refuse(numbers[column] for numbers in SIGNALS.values())
        yield from _refuse_by(_TGKILL[column], 0, "other than", os.getpid())
    if sees_files:
        yield from _refuse(numbers[column] for numbers in OF_FILES.values())
    yield _RETURN, 0, 0, _ALLOW


def _refuse(numbers: Iterable[int], error: int = errno.EPERM) -> Iterator[Instruction]:
    for number in numbers:
        if number >= 0:
            yield _EQUAL, 0, 1, number
            yield _RETURN, 0, 0, _ERRNO | error


def _refuse_by(number: int, argument: int, test: str, value: int) -> Iterator[Instruction]:
    """The low half of the argument is compared: pids, flags and families have 32 bits. Both architectures are little-endian."""
    matches = {"equal": (_EQUAL, 0, 1), "other than": (_EQUAL, 1, 0), "with": (_HAS, 0, 1)}
    operation, if_true, if_false = matches[test]
    yield _EQUAL, 0, 4, number
    yield _LOAD, 0, 0, _ARGUMENTS + 8 * argument
    yield operation, if_true, if_false, value
    yield _RETURN, 0, 0, _ERRNO | errno.EPERM
    yield _LOAD, 0, 0, _NUMBER
