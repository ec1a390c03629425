"""How many threads the judge itself works with, for the length of a block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

MUCH_FLOPS = 1e9  # forward; in float64, a tenth of a second of one core


def one_thread() -> AbstractContextManager[None]:
    """The judge's own thread pool sleeps in the block.

    Its threads would spin where a runner works, and wait for each other where the cores are busy: beside one busy process on two cores the
    correctness gate of newton_schulz took 73 s with two threads and 10 with one, that of rms_norm 17 and 6.
    """
    return _threads(1)


def cores_for(flops: float) -> AbstractContextManager[None]:
    """All cores in the block, where so much is computed that the threads' waiting for each other does not count beside it."""
    return _threads(_cores() if flops > MUCH_FLOPS else torch.get_num_threads())


def _cores() -> int:
    """Those of this process, or as many as $OMP_NUM_THREADS says: who sets it needs the others."""
    said, cores = os.environ.get("OMP_NUM_THREADS", ""), len(os.sched_getaffinity(0))
    return min(int(said), cores) if said.isdigit() and int(said) else cores


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
