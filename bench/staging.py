"""Input sets of timed calls, changed before every block so that no call sees contents that another has seen.

A pool of random values is drawn once per tensor of a case. Before a block every set that it will use gets values from the pool in CHANGED
bytes of every PAGE, somewhere else in the page each time, and one set is replaced whole: this takes 0.7 ms for 64 sets of the trial's
norms, where drawing them afresh takes 400. With an eighth of the values changed a stale answer is wrong by half of its norm, beyond any
tolerance, and no page, head or matrix of 4 KB is left as it was for a memo to find.

Arms that are filled and changed from the same seeds have the same inputs, so that their answers can be compared. For that, what a call
overwrites is replaced whole before every block.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.arena import Arena, place_call
from bench.contracts import Case, Contract, Input
from bench.protocol import extent

PAGE = 4096
CHANGED = 512
MAX_SETS = 64
# So a large case has fewer sets, which no cache holds all the same. On a GPU two sets of a norm are half a millisecond, less than asking for them.
STAGED_BYTES = {"cpu": 512 << 20, "cuda": 2 << 30}

LARGE = 1 << 24  # elements: normal values are drawn one after the other

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Contents:
    """Pools of values for the tensors of a case: its inputs and, where gradients flow, what comes from upstream.

    `share`: how many cases are staged beside each other.
    """

    def __init__(
        self,
        asked: Contract,
        case: Case,
        rng: random.Random,
        *,
        share: int = 1,
        device: str = "cpu",
    ) -> None:
        generator = torch.Generator().manual_seed(rng.getrandbits(48))
        self.asked, self.case, self.most_bytes = asked, case, STAGED_BYTES[device] // share
        self.results = asked.shapes(case)
        self.wrt = asked.wrt(case)
        upstream = list(self.results.values()) if self.wrt else []
        tensors = [*case.inputs.values(), *upstream]
        self.pools = [_pool(wanted, generator) for wanted in tensors]
        self.itemsizes = [getattr(torch, wanted.dtype).itemsize for wanted in tensors]
        self.overwritten = [name in asked.updates for name in case.inputs] + [False] * len(upstream)
        self.set_bytes = sum(
            i.span() * size for i, size in zip(tensors, self.itemsizes, strict=True)
        )

    def sets(self) -> int:
        """The most calls that a block can have."""
        return int(max(2, min(MAX_SETS, self.most_bytes // self.set_bytes)))


def _pool(wanted: Input, generator: torch.Generator) -> Bytes:
    """Twice the bytes that the tensor spans, so that a piece as long as it can begin anywhere; of a large one the same twice."""
    dtype = getattr(torch, wanted.dtype)
    draws = 1 if wanted.span() > LARGE else 2
    drawn = [wanted.values(generator).to(dtype).flatten() for _ in range(draws)]
    while sum(len(values) for values in drawn) < 2 * wanted.span():
        drawn.append(drawn[0])
    pool: Bytes = torch.cat(drawn).view(torch.uint8).numpy()
    return pool


class Stage:
    """The sets of one arm, placed behind what its arena holds. All share one place for results: a block copies out the results of one call."""

    def __init__(self, contents: Contents, arena: Arena) -> None:
        self.contents, self.arena = contents, arena
        placed = [
            place_call(
                arena, contents.case, contents.results, contents.wrt, updates=contents.asked.updates
            )
            for _ in range(contents.sets())
        ]
        shared = {name: placed[0][name] for name in ("outputs", "gradients")}
        self.calls: list[dict[str, Any]] = [{**call, **shared} for call in placed]
        self._lent = [_lent(call) for call in placed]
        self._memory = np.frombuffer(arena.memory, np.uint8)
        self._before: dict[str, Tensor] = {}

    def vacate(self, sets: Sequence[int]) -> None:
        """Give back the memory of these sets, which then have no contents, and of the results."""
        for i in sets:
            self.arena.vacate(*self._lent[i])
        for where in self._results():
            self.arena.vacate(*extent(where))

    def refill(self, number: int, seed: int) -> None:
        """Fill one set anew."""
        self._replace(self.calls[number], random.Random(seed))
        self.arena.written(*self._lent[number])

    def change(self, sets: Sequence[int], seed: int) -> None:
        """New contents for these sets, the same for the same seed."""
        rng = random.Random(seed)
        for i in sets:
            tensors = self._tensors(self.calls[i])
            for each, overwritten in zip(tensors, self.contents.overwritten, strict=True):
                (_renew if overwritten else _change)(*each, rng)
            self.arena.written(*self._lent[i])
        self._replace(self.calls[rng.choice(sets)], rng)

    def remember(self, number: int) -> None:
        """Copy what a call on this set will overwrite, for `inputs`."""
        self._before = {}
        views, _ = self.inputs(number)
        self._before = {name: views[name].clone() for name in self.contents.asked.updates}

    def poison(self) -> None:
        """NaN where the results will lie."""
        for where in self._results():
            self.arena.written(*extent(where))
            self.arena.view(where).fill_(float("nan"))

    def answer(self) -> dict[str, Tensor]:
        """Views of the results and gradients of the last block's kept call."""
        call = self.calls[0]
        names = [*self.contents.asked.results, *(f"d{name}" for name in call["wrt"])]
        return {
            name: self.arena.view(where) for name, where in zip(names, self._results(), strict=True)
        }

    def inputs(self, number: int) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Views of a set's inputs and of what comes from upstream; what a call overwrites is given as it was when last remembered."""
        call = self.calls[number]
        views = {name: self.arena.view(where) for name, where in call["inputs"].items()}
        return (views | self._before, [self.arena.view(where) for where in call["upstream"]])

    def _results(self) -> list[dict[str, Any]]:
        return [*self.calls[0]["outputs"], *self.calls[0]["gradients"]]

    def _tensors(self, call: Mapping[str, Any]) -> list[tuple[Bytes, Bytes, int]]:
        """(bytes in the arena, pool, itemsize) of each tensor of a set."""
        found = []
        places = [*call["inputs"].values(), *call["upstream"]]
        for where, pool, itemsize in zip(
            places, self.contents.pools, self.contents.itemsizes, strict=True
        ):
            found.append((self._memory[slice(*extent(where))], pool, itemsize))
        return found

    def _replace(self, call: Mapping[str, Any], rng: random.Random) -> None:
        for each in self._tensors(call):
            _renew(*each, rng)


def fill(stages: Sequence[Stage], sets: Sequence[int], rng: random.Random) -> None:
    """Fill these sets anew, with the same contents in all stages.

    The stages take memory by turns: of equal kernels whose arms were filled one after the other, the last was 0.9 % faster than the first
    (rms_norm, 36 comparisons, half of them in the other order).
    """
    for number in sets:
        seed = rng.getrandbits(48)
        for stage in rng.sample(stages, len(stages)):
            stage.refill(number, seed)


def _lent(call: Mapping[str, Any]) -> tuple[int, int]:
    """First and end of the bytes of a set's inputs, which lie behind each other."""
    spans = [extent(where) for where in (*call["inputs"].values(), *call["upstream"])]
    return min(start for start, _ in spans), max(end for _, end in spans)


def _renew(tensor: Bytes, pool: Bytes, itemsize: int, rng: random.Random) -> None:
    """Replace all bytes."""
    start = _start(pool, len(tensor), itemsize, rng)
    tensor[:] = pool[start : start + len(tensor)]


def _change(tensor: Bytes, pool: Bytes, itemsize: int, rng: random.Random) -> None:
    """Replace CHANGED bytes of every whole page, and all bytes behind the last whole page."""
    pages = len(tensor) // PAGE
    first = rng.randrange(PAGE // CHANGED) * CHANGED
    start = _start(pool, len(tensor), itemsize, rng)
    body = tensor[: pages * PAGE].reshape(pages, PAGE)
    body[:, first : first + CHANGED] = pool[start : start + pages * CHANGED].reshape(pages, CHANGED)
    rest = tensor[pages * PAGE :]
    rest[:] = pool[start : start + len(rest)]


def _start(pool: Bytes, length: int, itemsize: int, rng: random.Random) -> int:
    return rng.randrange((len(pool) - length) // itemsize + 1) * itemsize
