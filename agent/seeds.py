"""Seeds that have chosen nothing: derived from their purpose, so that a resumed run finds the same ones, and never those on which proposals are selected."""

from __future__ import annotations

import hashlib

SELECTING = 1 << 20  # selection counts up from --seed and stays below
FIRST = 1_000_000  # the largest --seed
_BITS = 31


def fresh(count: int, *purpose: object) -> tuple[int, ...]:
    """`count` seeds: always the same for one purpose, others for another."""

    def draw(place: int) -> int:
        digest = hashlib.sha256(repr((*purpose, place)).encode()).digest()
        return int.from_bytes(digest[:8], "big") % ((1 << _BITS) - SELECTING) + SELECTING

    return tuple(map(draw, range(count)))
