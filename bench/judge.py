"""The judge's end of the wire: start a runner, lend it buffers, ask, and believe nothing but what lies in the buffers.

    with Judge(tree, device="cpu") as judge:
        judge.ask("load", op="rms_norm")
        ...

`ask` returns the answer of one request or raises `Refused` (the candidate failed) with words fit to be shown. The time limit is the judge's.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from bench import device_memory, sandbox
from bench.contracts import Case, Input
from bench.mirror import Memory, Mirror
from bench.protocol import MARK, Channel, Mapped, ProtocolError, describe, view
from bench.sandbox import processes
from bench.sandbox.limits import Limits

ARENA_BYTES = 4 << 30  # sparse: only the pages that are touched exist
ALIGN = 64
GAP = 256  # bytes between tensors at least: a red zone
START_S = 120.0  # until a runner has started and imported torch
CACHE = Path(__file__).resolve().parent.parent / ".lab" / "cache"

Where = dict[str, Any]


class Refused(Exception):
    """The candidate did not answer as asked: `kind` is structure, timeout, crash, or the name of the exception it raised."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


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

    def reflect(self, memory: Memory) -> None:
        """From now on be the image of a memory on a device."""
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
        span = (
            0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        )
        itemsize = getattr(torch, dtype).itemsize
        start = self.used + skew * itemsize
        self.used = -(-(start + span * itemsize + GAP) // ALIGN) * ALIGN
        if self.used > self.size:
            raise MemoryError(f"the arena of {self.size >> 20} MiB is too small for this request")
        return describe(dtype, shape, strides, start)

    def place_input(self, wanted: Input) -> Where:
        return self.place(
            wanted.dtype, wanted.shape, wanted.strides(), skew=1 if wanted.layout == "offset" else 0
        )

    def view(self, where: Where) -> Tensor:
        return view(self, where)

    def close(self) -> None:
        os.close(self.fd)  # the mapping goes with the last tensor that views it
        if self.mirror is not None:
            self.mirror.memory.close()


class Judge:
    """One runner process on one tree. Context manager: leaving it kills the runner and everything it started.

    memory: device memory in which tensors are lent; by default, and where this machine or its sandbox refuses, they are lent in shared
    memory and the runner copies them to its device. `lends` says which, and why.
    """

    def __init__(
        self,
        tree: Path,
        *,
        device: str = "cpu",
        cache_writable: bool = False,
        poison: bool = False,
        limits: Limits | None = None,
        layers: Collection[str] | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.tree = tree.resolve()
        self.device = device
        self.arena = Arena(ARENA_BYTES if memory is None else memory.size)
        self.lends = ""  # in words, once a first request has been asked
        self._memory = memory
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        try:
            self._sandbox = sandbox.start(
                "runner",
                [str(theirs.fileno()), device],
                tree=self.tree,
                cache=CACHE,
                cache_writable=cache_writable,
                pass_fds=(theirs.fileno(),),
                device=device,
                poison=poison,
                limits=limits,
                layers=layers,
            )
        finally:
            theirs.close()

    @property
    def isolation(self) -> str:
        return self._sandbox.isolation

    @property
    def pid(self) -> int:
        """The root of the runner's process tree, as the judge's own namespace numbers it."""
        return self._sandbox.process.pid

    def cpu_seconds(self) -> float:
        """Processor time that the runner and all its descendants have used, in steps of 10 ms."""
        return processes.cpu_seconds(processes.tree(self.pid))

    def log(self) -> str:
        """The last that the runner printed; for people, never for a decision."""
        return self._sandbox.tail()

    def ask(
        self,
        do: str,
        *,
        timeout: float = 120.0,
        fd: int | None = None,
        progress: Callable[[dict[str, Any]], None] | None = None,
        **request: Any,
    ) -> dict[str, Any]:
        """Send one request and wait for its answer. Raises Refused on an error answer, a time-out, a crash or a malformed line."""
        if not self.lends:
            self.lends = self._lend()
        self.arena.hand_over()
        return self._exchange(do, timeout, fd, progress, request)

    def _lend(self) -> str:
        """Give the runner, which has loaded nothing of the candidate's yet, the memory in which tensors will lie. In words, how."""
        why = ""
        if self._memory is not None:
            try:
                self._lend_on_device(self._memory)
                return self._memory.words
            except device_memory.Unavailable as unavailable:
                self._memory.close()
                why = f", and the runner copies: no {self._memory.words} here: {unavailable}"
        lent = {"memory": "shared", "bytes": self.arena.size}
        self._exchange("lend", START_S, self.arena.fd, None, lent)
        return f"shared memory{why}"

    def _lend_on_device(self, memory: Memory) -> None:
        """Raises Unavailable where the judge cannot export it, the runner cannot open it, or what it opens is something else."""
        offer, fd = memory.offer()
        mark = secrets.token_bytes(MARK)
        memory.write(0, torch.tensor(list(mark), dtype=torch.uint8))
        memory.settle()
        try:
            answer = self._exchange("lend", START_S, fd, None, offer)
        except Refused as refused:
            if refused.kind != device_memory.Unavailable.__name__:
                raise
            reason = str(refused).strip().splitlines()[-1]
            raise device_memory.Unavailable(f"in the sandbox, {reason}") from None
        if answer.get("seen") != mark.hex():
            raise device_memory.Unavailable("what the runner opened is another memory")
        self.arena.reflect(memory)

    def _exchange(
        self,
        do: str,
        timeout: float,
        fd: int | None,
        progress: Callable[[dict[str, Any]], None] | None,
        request: Mapping[str, Any],
    ) -> dict[str, Any]:
        nonce = secrets.token_hex(8)
        deadline = time.monotonic() + timeout
        try:
            if self._channel.pending():
                raise ProtocolError("the runner spoke without being asked")
            self._channel.send({"nonce": nonce, "do": do, **request}, fd)
            while True:
                answer, stray = self._channel.receive(max(0.001, deadline - time.monotonic()))
                if stray is not None:
                    os.close(stray)
                    raise ProtocolError("an answer carried a file descriptor")
                if answer.get("nonce") != nonce:
                    raise ProtocolError(
                        f"expected an answer with this request's nonce, got {answer.get('nonce')!r}"
                    )
                if "progress" not in answer:
                    break
                if progress is not None and isinstance(answer["progress"], dict):
                    progress(answer["progress"])
        except TimeoutError:
            raise Refused("timeout", f"no answer to '{do}' within {timeout:.0f} s") from None
        except (ProtocolError, OSError) as error:
            raise Refused(
                "crash",
                f"the runner died or broke the protocol during '{do}': {error}\n{self.log()}".strip(),
            ) from None
        if answer.get("ok") is not True:
            raise Refused(str(answer.get("kind", "error")), str(answer.get("error", "")))
        return answer

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sandbox.stop()
        self._channel.close()
        self.arena.close()


def place_call(
    arena: Arena,
    case: Case,
    results: Mapping[str, Tensor],
    wrt: Sequence[str],
    *,
    upstream: str = "contiguous",
    through: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Lay out one call in the arena, nothing filled yet: room for results and gradients first, behind it what is lent.

    `upstream` is how its gradients lie (contiguous, transposed, or expanded from one value); they flow back from the results
    numbered in `through`, by default from all.
    """
    outputs = [arena.place(str(r.dtype)[6:], tuple(r.shape)) for r in results.values()]
    wrt = [name for name in wrt if name in case.inputs]
    gradients = [arena.place(case.inputs[name].dtype, case.inputs[name].shape) for name in wrt]
    flows = list(range(len(outputs)) if through is None else through) if wrt else []
    shapes = [tuple(outputs[i]["shape"]) for i in flows]
    return {
        "inputs": {name: arena.place_input(i) for name, i in case.inputs.items()},
        "scalars": dict(case.scalars),
        "outputs": outputs,
        "wrt": wrt,
        "through": flows,
        "upstream": [
            arena.place(outputs[i]["dtype"], shape, _strides(shape, upstream))
            for i, shape in zip(flows, shapes, strict=True)
        ],
        "gradients": gradients,
    }


def _strides(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    if layout == "expanded":
        return (0,) * len(shape)
    backwards = torch.empty(shape[::-1], device="meta").permute(*range(len(shape))[::-1])
    return (backwards if layout == "transposed" else torch.empty(shape, device="meta")).stride()
