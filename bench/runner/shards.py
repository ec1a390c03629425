"""The training shard as a model gets it: the judge's sealed memory, mapped for reading."""

from __future__ import annotations

import mmap
import warnings

import torch
from torch import Tensor


def mapped(fd: int, dtype: str) -> Tensor:
    """(tokens,) of `dtype`, as numpy names it: the whole of a descriptor that bench/shard.py sealed. Not to be written to."""
    # private: shared mappings of sealed memory are refused by Linux before 6.7
    shard = mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    with warnings.catch_warnings():
        # torch notes that the buffer is read-only: that is the point
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(shard, dtype=getattr(torch, dtype))
