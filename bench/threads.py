"""How many threads the judge works with, for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """The judge's own thread pool sleeps in the block.

    Its threads would spin where a runner works, and wait for each other where the cores are busy: beside one busy process on two cores the
    correctness gate of newton_schulz took 73 s with two threads and 10 with one, that of rms_norm 17 and 6.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
