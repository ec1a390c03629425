"""A runner that begins again: requests are answered by a child that has seen nothing of the candidate, then by another.

live      {}     from here on a child answers, forked from this process before anything of the candidate's was imported
leave     {}     that child ends, and this process answers again

All children of a process would have code and data at the same addresses, and be fast or slow together; so each begins by taking memory of a random
size, behind which its own lies.

Processes of one kernel differ by more than blocks of one process show (bench/ratio.py), and to start a process takes 3 s, nearly all of it torch's
own import: a fork takes 0.02. Third-party packages that the kernels import, or that the first call of a custom op imports, are imported before the
fork as well. No thread of OpenMP's may run at the fork, as the child would lack it: a runner that has only imported has none. OpenBLAS's threads,
which numpy brings, end before a fork.
"""

from __future__ import annotations

import importlib
import importlib.util
import mmap
import os
import secrets
from typing import Any

# Imported by kernels (0.2 s), and by torch on the first call of an op that has a fake kernel (0.4 s, most of it SymPy).
_AHEAD = ("triton.language", "torch.fx.experimental.symbolic_shapes")
LEFT = 64  # how a child that was told to leave exits; any other end is a crash of the runner
MOVED_BYTES = 4 << 20  # at most
_moved: list[Any] = []  # what keeps the rest of a child's memory where it is


def answered_by_a_child() -> bool:
    """Fork. False in the child, which goes on; True in this process, once the child has left. If the child dies, this process ends too."""
    for name in _AHEAD:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != LEFT:
            os._exit(1)
    else:
        _move()
    return bool(child)


def _move() -> None:
    """Let libraries and data of this process begin elsewhere than those of its siblings."""
    _moved.append(mmap.mmap(-1, 1 + secrets.randbelow(MOVED_BYTES)))
    _moved.append(bytearray(secrets.randbelow(MOVED_BYTES)))
