"""The judge's end of the wire: start a runner, lend it buffers, ask, and believe nothing but what lies in the buffers.

    with Judge(tree, device="cpu") as judge:
        judge.ask("load", op="rms_norm", tree=str(judge.tree))
        ...

`ask` returns the answer to one request. It raises `Refused`, with words fit to be shown, where the candidate failed, and OSError where the
disk is full. The time limit is the judge's.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from bench import ROOT, device_memory, sandbox
from bench.arena import ARENA_BYTES, Arena
from bench.mirror import Memory
from bench.protocol import MARK, Channel, ProtocolError
from bench.sandbox import processes, watchdog
from bench.sandbox.limits import Limits

START_S = 120.0  # until a runner has started and imported torch
CACHE = ROOT / ".lab" / "cache"
COMPILED = CACHE.parent / "compiled"  # of bench/compiled.py: no runner sees it

Progress = Callable[[dict[str, Any]], None]  # hears of each step of a long request


class Refused(Exception):
    """The candidate failed, or what it answered does not hold. `kind` names the reason in a word or two, the message says it in full.

    timeout, crash    no answer in time, or none at all
    structure         an answer of the wrong form
    machine           this machine cannot measure: no candidate's fault
    a class name      the exception that the candidate raised
    any other         what the check that refused calls it: wrong, stale or future of the correctness gate, background or noise of the timer,
                      late or leak of a trial (bench/trial_result.py lists a trial's)
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


_TRACEBACK = "Traceback (most recent call last):"


def error_line(error: Exception) -> str:
    """The error itself, in one line: without the traceback above it, and without torch's advice or a compiler's listing below it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if not lines:
        return getattr(error, "kind", type(error).__name__)
    above = [i for i, line in enumerate(lines) if line.endswith(_TRACEBACK)]
    if not above:
        # A Refused may end with the runner's log, whose last line says most; torch's own errors begin with what is wrong.
        return lines[-1 if isinstance(error, Refused) else 0]
    said = [line for line in lines[above[-1] + 1 :] if not line.startswith(" ")] or lines[-1:]
    # "kernels.jit.BuildError: x.cpp could not be built:" says little without the compiler's first complaint.
    return " ".join(said[: 2 if said[0].endswith(":") else 1])


class Answer(dict[str, Any]):
    """What a runner answers. If it lacks a field, that is the runner's fault, not the judge's."""

    def __missing__(self, field: str) -> Any:
        raise Refused("structure", f"the runner's answer has no {field!r}")


class Judge:
    """One runner process on one tree. Context manager: leaving it kills the runner and everything it started.

    cache_writable: what the runner builds goes into CACHE, which it else can only read. poison, limits, layers: as in sandbox.start.
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
        if device == "cuda":
            # Runners may want what an earlier judgement's float64 left with torch's allocator: up to 26 GB.
            torch.cuda.empty_cache()
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
        except BaseException:
            self._channel.close()
            self.arena.close()
            raise
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

    def ask(
        self,
        do: str,
        *,
        timeout: float = 120.0,
        fd: int | None = None,
        progress: Progress | None = None,
        **request: Any,
    ) -> dict[str, Any]:
        """Send one request and wait for its answer. Raises Refused on an error answer, a time-out, a crash or a malformed line.

        timeout: seconds until the answer, which progress does not extend. fd: a descriptor that the runner gets with the request.
        """
        if not self.lends:
            self.lends = self._lend()
        self.arena.hand_over()
        return self._exchange(do, timeout, fd, progress, request)

    def _lend(self) -> str:
        """Give the runner, which has loaded nothing of the candidate's yet, the memory for tensors. Returns in words how these travel."""
        why = ""
        if self._memory is not None:
            try:
                self._lend_on_device(self._memory)
                return self._memory.words
            except device_memory.Unavailable as unavailable:
                why = f", and the runner copies: no {self._memory.words} here: {unavailable}"
                self._memory.close()  # gigabytes of the device that nobody would use
                self._memory = None
        self._exchange("lend", START_S, self.arena.fd, None, {"bytes": self.arena.size})
        return f"shared memory{why}"

    def _lend_on_device(self, memory: Memory) -> None:
        """Raises Unavailable where the judge cannot export it, the runner cannot open it, or what it opens is something else."""
        offer, fd = memory.offer()
        mark = secrets.token_bytes(MARK)
        memory.write(0, torch.tensor(list(mark), dtype=torch.uint8))
        memory.synchronize()
        try:
            answer = self._exchange("lend", START_S, fd, None, offer)
        except Refused as refused:
            if refused.kind != device_memory.Unavailable.__name__:
                raise
            raise device_memory.Unavailable(f"in the sandbox, {error_line(refused)}") from None
        if answer.get("seen") != mark.hex():
            raise device_memory.Unavailable("what the runner opened is another memory")
        self.arena.reflect(memory)

    def _exchange(
        self,
        do: str,
        timeout: float,
        fd: int | None,
        progress: Progress | None,
        request: Mapping[str, Any],
    ) -> dict[str, Any]:
        nonce = secrets.token_hex(8)
        deadline = time.monotonic() + timeout
        with self._on_the_wire(do, timeout):
            if self._channel.pending():
                raise ProtocolError("the runner spoke without being asked")
            self._channel.send({"nonce": nonce, "do": do, **request}, fd, timeout)
        while True:  # progress lines do not extend the time limit
            with self._on_the_wire(do, timeout):
                answer = self._answer(nonce, deadline)
            if "progress" not in answer:
                break
            if progress is not None and isinstance(answer["progress"], dict):
                progress(answer["progress"])
        if answer.get("ok") is not True:
            kind = str(answer.get("kind", "error"))
            # no runner speaks for the machine, whatever a candidate calls its exceptions
            raise Refused("crash" if kind == "machine" else kind, str(answer.get("error", "")))
        return Answer(answer)

    def _answer(self, nonce: str, deadline: float) -> dict[str, Any]:
        """The next message to this request."""
        answer, stray = self._channel.receive(deadline - time.monotonic())
        if stray is not None:
            os.close(stray)
            raise ProtocolError("an answer carried a file descriptor")
        if answer.get("nonce") != nonce:
            raise ProtocolError(
                f"expected an answer with this request's nonce, got {answer.get('nonce')!r}"
            )
        return answer

    @contextmanager
    def _on_the_wire(self, do: str, timeout: float) -> Iterator[None]:
        """What fails in here, the runner has failed at: a Refused that says how, or OSError where the disk is full."""
        try:
            yield
        except TimeoutError:
            raise Refused("timeout", f"no answer to '{do}' within {timeout:.3g} s") from None
        except (ProtocolError, OSError) as error:
            if (excess := self._sandbox.excess()).startswith(watchdog.FULL):
                raise OSError(errno.ENOSPC, f"{excess}: free space there") from None
            raise Refused(
                "crash",
                f"the runner died or broke the protocol during '{do}': {error}\n{self._sandbox.tail()}".strip(),
            ) from None

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
        if self._memory is not None:
            self._memory.close()


def lending(device: str) -> str:
    """In words, how tensors travel to the runners of a device on this machine. It is tried, which takes as long as a runner takes to start."""
    with (
        processes.scratch() as tree,
        Judge(Path(tree), device=device, memory=device_memory.lendable(device)) as judge,
    ):
        judge.ask("recall", outputs=[])
        return judge.lends
