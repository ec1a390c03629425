"""The judge's image of memory that lies on a device: bytes are fetched when they are looked at, and sent when a request goes out.

So all that the judge does with lent tensors it does on the CPU, in one way for every device, and nothing travels while a clock runs: a
block that is timed is asked after its inputs have been sent, and its results are fetched when somebody looks.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from bench.protocol import Mapped


class Memory(Protocol):
    """Device memory of the judge's that a runner opens."""

    words: str  # how it travels, for reports
    size: int  # bytes

    def offer(self) -> tuple[dict[str, Any], int | None]:
        """What a runner opens it by, as plain JSON, and a descriptor where one is needed. Raises Unavailable where this machine refuses."""
        ...

    def write(self, start: int, values: Tensor) -> None:
        """Bytes from `start` on become `values` (uint8)."""
        ...

    def read(self, start: int, into: Tensor) -> None:
        """Fill `into` (uint8) with the bytes from `start` on."""
        ...

    def synchronize(self) -> None:
        """Return when all that was written can be seen by others."""
        ...

    def close(self) -> None: ...


class Spans:
    """A set of bytes, as ranges that do not overlap, in order."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, int]] = []

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of start..end is not in the set."""
        found = []
        for low, high in self.parts:
            if low < end and high > start:
                if low > start:
                    found.append((start, low))
                start = high
        return found + [(start, end)] if start < end else found

    def add(self, start: int, end: int) -> None:
        self.parts = sorted([*self.parts, *self.gaps(start, end)])


class Mirror:
    """An image of a memory. `own` are the bytes that the image has held right since the last request; what the others hold, the runner decides."""

    def __init__(self, memory: Memory, image: Mapped) -> None:
        self.memory = memory
        self.image = image
        self.own = Spans()

    def need(self, start: int, end: int) -> None:
        """The judge is going to look at these bytes, or to write some of them."""
        for gap in self.own.gaps(start, end):
            self.memory.read(gap[0], self.image.bytes(*gap))
        self.own.add(start, end)

    def written(self, start: int, end: int) -> None:
        """The judge has written these bytes, or holds what was there before the last request to be right."""
        self.own.add(start, end)

    def send(self) -> None:
        """A request goes out: from now on all bytes are the runner's."""
        for start, end in self.own.parts:
            self.memory.write(start, self.image.bytes(start, end))
        if self.own.parts:
            self.memory.synchronize()
        self.own = Spans()
