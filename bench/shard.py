"""The training shard as a runner gets it: sealed memory, every token under another number.

To a model that starts from nothing a token's number means nothing. So each seed has a secret permutation of the vocabulary (bos keeps its place),
by which the judge rewrites the shard and every row that it asks for. What was learned elsewhere (a checkpoint, a table in the source, the
validation text itself) then speaks another language. In one process of the judge a seed always has the same numbers, so that paired runs and the
parity probe see the same data.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 24  # tokens rewritten at once
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_KEY = secrets.token_bytes(32)


def numbers(vocab_size: int, bos: int, seed: int) -> NDArray[np.int64]:
    """(vocab_size,): the number that each token has in trials of this seed."""
    drawn = hashlib.blake2b(seed.to_bytes(8, "little", signed=True), key=_KEY).digest()
    generator = np.random.default_rng(int.from_bytes(drawn, "little"))
    found = np.arange(vocab_size)
    others = np.delete(found, bos)
    found[others] = generator.permutation(others)
    return found


def sealed(tokens: NDArray[Any], number: NDArray[np.int64]) -> int:
    """A descriptor of memory that holds the renumbered tokens, in their own dtype, and that nobody can write to or resize."""
    fd = os.memfd_create("train", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as shard:
        for start in range(0, len(tokens), CHUNK):
            shard.write(number[tokens[start : start + CHUNK]].astype(tokens.dtype).tobytes())
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd
