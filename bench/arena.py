"""The memory that judge and runner share, as the judge lays tensors out in it."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.contracts import Case, Input
from bench.mirror import Memory, Mirror
from bench.protocol import Mapped, describe, span, view

ARENA_BYTES = 4 << 30  # sparse: only the pages that are touched exist
ALIGN = 64
GAP = 256  # bytes between tensors at least: a red zone

Where = dict[str, Any]


class Arena:
    """Memory that judge and runner share; the judge places tensors in it one after another and forgets them with `reset`.

    It is shared memory, which both map; or, with a mirror, the judge's image of memory on a device. There a view holds what was in that
    memory when the view was asked for: after a request, ask for it again.
    """

    def __init__(self, size: int = ARENA_BYTES) -> None:
        self.fd = os.memfd_create("lab-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self._mapped = Mapped(self.fd)
        self.memory = self._mapped.memory
        self.mirror: Mirror | None = None
        self.size = size
        self.used = 0

    def reset(self) -> None:
        self.used = 0

    def bytes(self, start: int, end: int) -> Tensor:
        """The memory itself, from byte to byte."""
        if self.mirror is not None:
            self.mirror.need(start, end)
        return self._mapped.bytes(start, end)

    def written(self, start: int, end: int) -> None:
        """Bytes were written through `memory` itself, and not through a view."""
        if self.mirror is not None:
            self.mirror.written(start, end)

    def vacate(self, start: int, end: int) -> None:
        """Give back the whole pages of shared memory in this range; their contents are lost, and new pages come when they are next touched."""
        first, last = -(-start // mmap.PAGESIZE), end // mmap.PAGESIZE
        if first < last:
            self.memory.madvise(
                mmap.MADV_REMOVE, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE
            )

    def reflect(self, memory: Memory) -> None:
        """Become the image of a memory on a device, from now on."""
        self.mirror = Mirror(memory, self._mapped)

    def hand_over(self) -> None:
        """A request goes out; the runner sees what was written."""
        if self.mirror is not None:
            self.mirror.send()

    def place(
        self,
        dtype: str,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None = None,
        skew: int = 0,
    ) -> Where:
        """Room for a tensor; `skew` elements past an aligned address."""
        strides = strides or torch.empty(shape, device="meta").stride()
        itemsize = getattr(torch, dtype).itemsize
        start = self.used + skew * itemsize
        self.used = -(-(start + span(shape, strides) * itemsize + GAP) // ALIGN) * ALIGN
        if self.used > self.size:
            raise MemoryError(
                f"a request of more than {self.size >> 20} MiB of tensors, which is all that judge and runner share: take smaller shapes"
            )
        return describe(dtype, shape, strides, start)

    def place_input(self, wanted: Input) -> Where:
        return self.place(
            wanted.dtype, wanted.shape, wanted.strides(), skew=1 if wanted.layout == "offset" else 0
        )

    def view(self, where: Where) -> Tensor:
        return view(self, where)

    def close(self) -> None:
        os.close(self.fd)  # the mapping goes with the last tensor that views it


def place_call(
    arena: Arena,
    case: Case,
    results: Mapping[str, Input],
    wrt: Sequence[str],
    *,
    layout: str = "contiguous",
    through: Sequence[int] | None = None,
    updates: Sequence[str],
) -> dict[str, Any]:
    """Lay out one call in the arena, unfilled: room for results and gradients first, behind it what is lent.

    `layout` is how the gradients from upstream lie (contiguous, transposed, or expanded from one value); gradients flow back from the
    results numbered in `through`, by default from all. `updates` are the inputs that the call overwrites.
    """
    outputs = [arena.place(r.dtype, r.shape) for r in results.values()]
    gradients = [arena.place(case.inputs[name].dtype, case.inputs[name].shape) for name in wrt]
    flows = list(range(len(outputs)) if through is None else through) if wrt else []
    shapes = [tuple(outputs[i]["shape"]) for i in flows]
    return {
        "inputs": {name: arena.place_input(i) for name, i in case.inputs.items()},
        "updates": list(updates),
        "scalars": dict(case.scalars),
        "outputs": outputs,
        "wrt": list(wrt),
        "through": flows,
        "upstream": [
            arena.place(outputs[i]["dtype"], shape, _strides(shape, layout))
            for i, shape in zip(flows, shapes, strict=True)
        ],
        "gradients": gradients,
    }


def _strides(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    if layout == "expanded":
        return (0,) * len(shape)
    backwards = torch.empty(shape[::-1], device="meta").permute(*range(len(shape))[::-1])
    return (backwards if layout == "transposed" else torch.empty(shape, device="meta")).stride()
