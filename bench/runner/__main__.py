"""The only process that imports candidate code. It fills the judge's buffers and answers plain JSON; it decides nothing.

A request says what to `do`, and is answered once with {"nonce", "ok", ...}:

    lending.py      the shared memory           lend
    lives.py        processes of the runner     live, leave
    calls.py        calls of an op              call, age, interleave, accumulate, recall, trace, register, spoil
    blocks.py       blocks that are timed       stage, block
    events.py       time on a GPU, for advice   warm, events
    training.py     a trial                     setup, train, weights, release, restore, logits
    recording.py    calls of a training run     record, recorded
    keeping.py      what was compiled           pack, unpack
    profiling.py    where time goes             within, profile
    inspecting.py   what compilers say          inspect, remarks

and here

    load      {tree, op?}        put the tree on the path, import kernels.<op>                       -> {implementations, default}
    state     {}                 what of the process's state has changed since before the import     -> {changed}
    build     {sources}          compile csrc sources through kernels/jit.py                         -> {seconds, objects}
    aot       {op, targets}      compile the op's Triton kernels ahead of time                       -> {kernels}
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.protocol import Channel
from bench.runner import lives
from bench.runner.blocks import Blocks
from bench.runner.calls import Calls
from bench.runner.events import Events
from bench.runner.inspecting import Inspecting
from bench.runner.keeping import Keeping
from bench.runner.lending import Lent, Refusal
from bench.runner.profiling import Profiling
from bench.runner.recording import Recorder
from bench.runner.state import snapshot
from bench.runner.training import Training

MAX_ERROR = 6000
LAST_FRAMES = 4  # of a traceback: the candidate's, not ours


class Runner:
    def __init__(self, channel: Channel, device: str) -> None:
        self.lent = lent = Lent(device)
        self.channel = channel
        self.device = lent.device
        self.before: dict[str, Any] = {}
        calls = Calls(lent)
        recorder = Recorder(lent)
        self.handlers = (
            self,
            lent,
            calls,
            Blocks(lent, calls),
            Events(lent, calls),
            Training(lent, channel.send, recorder),
            recorder,
            Keeping(),
            Profiling(lent, calls),
            Inspecting(),
        )

    def serve(self) -> None:
        """Answer requests until the judge closes the connection."""
        while True:
            request, fd = self.channel.receive()
            if request["do"] == "live" and lives.answered_by_a_child():
                continue
            answer: dict[str, Any] = {"nonce": request["nonce"], "ok": True}
            try:
                handler = self.handler(request["do"])
                answer.update(handler(request) if fd is None else handler(request, fd))
                self.lent.synchronize()
            except Refusal as refusal:
                answer.update(ok=False, kind="structure", error=str(refusal))
            except Exception as error:
                # whatever candidate code raises is an answer, not our failure
                text = "".join(traceback.format_exception(error, limit=-LAST_FRAMES))
                answer.update(ok=False, kind=type(error).__name__, error=text[-MAX_ERROR:])
            self.reply(answer)
            if request["do"] == "leave":
                os._exit(lives.LEFT)  # what the candidate registered to be run at exit is not run

    def reply(self, answer: Mapping[str, Any]) -> None:
        """Send an answer. What the candidate has put into it may be no JSON: then that is the answer."""
        try:
            self.channel.send(answer)
        except (TypeError, ValueError, RecursionError) as error:
            said = f"expected plain numbers, texts, lists and dicts in the answer: {error}"
            self.channel.send(
                {"nonce": answer["nonce"], "ok": False, "kind": "structure", "error": said}
            )

    def handler(self, do: str) -> Callable[..., dict[str, Any]]:
        name = f"do_{do}"
        for each in self.handlers:
            if hasattr(each, name):
                found: Callable[..., dict[str, Any]] = getattr(each, name)
                return found
        raise ValueError(f"the runner knows no request {do!r}")

    def do_live(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def do_leave(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def do_load(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self.device.type == "cuda":
            # Else it would start between two snapshots.
            torch.cuda.init()  # type: ignore[no-untyped-call]
        self.before = snapshot()
        sys.path.insert(0, request["tree"])
        if "op" not in request:
            return {}
        # All of them, as a model does: so which are imported tells a kernel nothing.
        for path in sorted(Path(request["tree"], "kernels").glob("*.py")):
            if path.stem != "__init__":  # the package: by that name it would run a second time
                __import__(f"kernels.{path.stem}")
        module = __import__(f"kernels.{request['op']}", fromlist=["_"])
        if not callable(getattr(module, request["op"], None)):
            raise Refusal(f"kernels/{request['op']}.py exports no function {request['op']}")
        known = getattr(module, "IMPLEMENTATIONS", {})
        if not known:
            return {"implementations": [], "default": None}
        from kernels import choose

        return {"implementations": list(known), "default": choose(known, None, self.device)}

    def do_state(self, request: Mapping[str, Any]) -> dict[str, Any]:
        now = snapshot()
        return {
            "changed": [
                f"{what}: {self.before[what]} became {now[what]}"
                for what in now
                if now[what] != self.before[what]
            ]
        }

    def do_build(self, request: Mapping[str, Any]) -> dict[str, Any]:
        from kernels import jit

        seconds, objects = {}, {}
        for source in request["sources"]:
            started, name = time.monotonic(), Path(source).name
            try:
                objects[name] = str(jit.build(Path(source)))
            except jit.BuildError as error:
                raise Refusal(str(error)) from None
            seconds[name] = round(time.monotonic() - started, 1)
        return {"seconds": seconds, "objects": objects}

    def do_aot(self, request: Mapping[str, Any]) -> dict[str, Any]:
        from bench import aot

        module = __import__(f"kernels.{request['op']}", fromlist=["_"])
        return {"kernels": aot.compile_all(getattr(module, "AOT", ()), request["targets"])}


def main() -> None:
    """`python -m bench.runner SOCKET_FD DEVICE`, started by bench/sandbox/__init__.py."""
    gc.enable()  # bench/sandbox/confine.py has turned it off for the imports
    Runner(Channel(socket.socket(fileno=int(sys.argv[1]))), sys.argv[2]).serve()


if __name__ == "__main__":
    main()
