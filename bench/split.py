"""Which document trains, which selects (val) and which tests, and what is too alike to be held out.

The split is by document. Documents are ordered by origin, size class and hash of their text; every k-th goes to val and the ones
halfway between to test. So every document has the same chance, each genre and each length has its share, and the order in which
documents come does not matter. On the embedded corpus val's size has a standard deviation of 18 KB over draws of the hash;
if each document were drawn by its own hash it would be 92 KB, of 400 KB, because half of the text is in 437 documents of 32 KB.
A source that comes with a split (bench/corpus.py) keeps it.

A held-out document a fifth of whose shingles also stand in train is dropped; so is a test document as close to val. Train keeps
its text, or a quoted paragraph would cost it a chapter. On the embedded corpus 2 of 437 held-out documents go (recipes, 1.7 KB of
768 KB), and the share of held-out text that also stands in train falls from 0.15 % to 0.09 %.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bench.corpus import SPLITS, DataError

TRAIN, VAL, TEST = range(3)
HELD_OUT = 62  # one document of 62 for val, one for test: 1.6 %, 0.4 MB of the embedded corpus
# At most about this much in each, because scoring it costs every trial time.
HELD_OUT_BYTES = 3_000_000
LARGEST = 4 * HELD_OUT_BYTES  # where documents are long, or the split came with the text
ALIKE = 0.2  # a held-out document is dropped if this share of its shingles is seen elsewhere

_LEVELS = 6  # a shingle is 2^6 = 64 letters, about 13 English words
_KEPT = np.uint64(61)  # shingles whose hash is below 2^61 are compared: one in 8
_draw = np.random.default_rng(13)
_LETTER_HASH = _draw.integers(0, 2**64, 256, dtype=np.uint64)
_MULTIPLIERS = _draw.integers(0, 2**63, _LEVELS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_FOLD = np.array(
    [b if b > 127 or chr(b).isalnum() else 0 for b in bytes(range(256)).lower()], np.uint8
)


def assign(
    origin: NDArray[np.uint64], size: NDArray[np.int64], digest: NDArray[np.uint64]
) -> NDArray[np.int8]:
    """TRAIN, VAL or TEST for each of N documents, from the hash of its origin, its bytes, its hash."""
    if len(size) < len(SPLITS):
        raise DataError(
            f"{len(size)} different documents came; train, val and test need one each, at least 3"
        )
    step = min(max(HELD_OUT, int(size.sum()) // HELD_OUT_BYTES), len(size))
    order = np.lexsort((digest, np.frexp(size)[1], origin))
    split = np.full(len(size), TRAIN, np.int8)
    split[order[::step]] = VAL
    split[order[step // 2 :: step]] = TEST
    return _scorable(split, size, "cut its longest documents")


def given(splits: Sequence[str], size: NDArray[np.int64]) -> NDArray[np.int8]:
    """As `assign`, for documents whose files name the split."""
    named = np.array([SPLITS.index(name) for name in splits], np.int8)
    return _scorable(named, size, "take fewer files")


def _scorable(split: NDArray[np.int8], size: NDArray[np.int64], mend: str) -> NDArray[np.int8]:
    """The split as it is. Raises DataError where scoring it would take too long."""
    for held_out in (VAL, TEST):
        if (found := int(size[split == held_out].sum())) > LARGEST:
            raise DataError(
                f"{found:,} bytes of {SPLITS[held_out]}: expected at most {LARGEST:,}, as every trial scores them; {mend}"
            )
    return split


def shingles(text: bytes) -> NDArray[np.uint64]:
    """Sorted hashes of one in 8 of the runs of 64 letters and digits, case and the rest ignored."""
    letters = _FOLD[np.frombuffer(text, np.uint8)]
    hashes = _LETTER_HASH[letters[letters > 0]]
    for level in range(_LEVELS):  # a run of 2n letters is two runs of n
        run = 1 << level
        hashes = hashes[:-run] * _MULTIPLIERS[level] + hashes[run:]
    return np.unique(hashes[hashes >> _KEPT == 0])


def alike(
    split: NDArray[np.int8], text: Callable[[int], bytes], progress: Callable[[float], None]
) -> list[int]:
    """Indices of val documents too alike to train, and of test ones too alike to either.

    `split` (N,) as from `assign`; `text(i)` gives document i; `progress` hears the fraction done.
    """
    held = {i: shingles(text(i)) for i in np.flatnonzero(split != TRAIN).tolist()}
    if not held:
        return []
    known = np.unique(np.concatenate(list(held.values())))
    seen = np.zeros(len(known), np.bool_)

    def mark(hashes: NDArray[np.uint64]) -> None:
        at = np.searchsorted(known[:-1], hashes)
        seen[at[known[at] == hashes]] = True

    def too_alike(held_out: int) -> list[int]:
        pairs = ((i, hashes) for i, hashes in held.items() if split[i] == held_out and len(hashes))
        return [i for i, h in pairs if seen[np.searchsorted(known, h)].mean() >= ALIKE]

    if not len(known):
        return []
    train = np.flatnonzero(split == TRAIN)
    for done, i in enumerate(train.tolist()):
        mark(shingles(text(i)))
        progress(done / len(train))
    dropped = too_alike(VAL)
    for i in np.setdiff1d(np.flatnonzero(split == VAL), dropped):
        mark(held[int(i)])
    return dropped + too_alike(TEST)
