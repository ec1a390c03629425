"""The wire between judge and runner: one line of JSON a message, over a socket pair; tensors lie in memory that both map.

The judge owns that memory, lends it once (as a descriptor, of a sealed memfd or of a GPU's memory), and says where each tensor lies; the runner
only ever receives offsets, shapes and strides. Answers are plain JSON of bounded length that repeat the request's nonce; an answer to no
request breaks the protocol. Nothing is ever unpickled. This file is read on both sides, so it holds the format alone: no references, no tolerances.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor

MAX_LINE = 1 << 20
MARK = 32  # bytes by which the runner shows that it sees the memory it was lent


class ProtocolError(RuntimeError):
    """The other side broke the format, or is gone."""


class Channel:
    """Messages over one end of a socket pair; a message may carry one file descriptor."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._buffer = b""

    def send(
        self, message: Mapping[str, Any], fd: int | None = None, timeout: float | None = None
    ) -> None:
        """Raises TimeoutError where the other side does not take it in time."""
        self._socket.settimeout(timeout)
        data = json.dumps(message).encode() + b"\n"
        if fd is not None:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            sent = self._socket.sendmsg([data], rights)
            data = data[sent:]
        self._socket.sendall(data)

    def receive(self, timeout: float | None = None) -> tuple[dict[str, Any], int | None]:
        """The next message, and the descriptor that it carried. Raises TimeoutError if it is not whole in time, ProtocolError if it is malformed;
        then no descriptor stays open."""
        fds: list[int] = []
        with ExitStack() as unless_read:
            unless_read.callback(_close, fds)
            message = _parsed(self._line(timeout, fds))
            unless_read.pop_all()
        return message, fds[0] if fds else None

    def _line(self, timeout: float | None, fds: list[int]) -> bytes:
        """The next line; a descriptor that comes with it is added to `fds`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            if len(self._buffer) > MAX_LINE:
                raise ProtocolError(f"a message is longer than {MAX_LINE} bytes")
            data, received, _, _ = socket.recv_fds(self._socket, 1 << 16, 1)
            fds += received
            if len(fds) > 1:
                raise ProtocolError("a message carries more than one descriptor")
            if not data:
                raise ProtocolError("the other side closed the connection")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def pending(self) -> bool:
        """Whether anything has arrived that nobody has read: between two requests, an answer to none."""
        self._socket.settimeout(0.0)
        try:
            return bool(self._buffer) or bool(self._socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False

    def close(self) -> None:
        self._socket.close()


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a message is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise ProtocolError("a message is not a JSON object")
    return message


def describe(
    dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> dict[str, Any]:
    """Where a tensor lies in the arena; offset in bytes, strides in elements."""
    return {"dtype": dtype, "shape": list(shape), "strides": list(strides), "offset": offset}


class Region(Protocol):
    """Memory in which tensors lie."""

    def bytes(self, start: int, end: int) -> Tensor:
        """Its bytes from `start` to `end` as uint8, without a copy and with nothing else in the storage. Raises ValueError beyond its ends."""
        ...


class Mapped:
    """A Region of shared memory, mapped from its descriptor."""

    def __init__(self, fd: int) -> None:
        self.memory = mmap.mmap(fd, 0)

    def bytes(self, start: int, end: int) -> Tensor:
        if not 0 <= start <= end <= len(self.memory):
            raise ValueError(f"bytes {start} to {end} of a memory of {len(self.memory)}")
        if start == end:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self.memory, dtype=torch.uint8, count=end - start, offset=start)


def span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements of storage from the first of a tensor to behind its last."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def extent(where: Mapping[str, Any]) -> tuple[int, int]:
    """The bytes that the tensor at `where` spans: first, and behind the last."""
    start: int = where["offset"]
    itemsize = getattr(torch, where["dtype"]).itemsize
    return start, start + span(where["shape"], where["strides"]) * itemsize


def view(region: Region, where: Mapping[str, Any]) -> Tensor:
    """The tensor that lies at `where`, without a copy."""
    flat = region.bytes(*extent(where)).view(getattr(torch, where["dtype"]))
    return flat.as_strided(where["shape"], where["strides"])
