"""The only process that imports candidate code. It fills the judge's buffers and answers plain JSON; it decides nothing.

Requests (`do`), each answered once with {"id", "ok", ...}:

    load      {tree, op?}                        put the tree on the path, import kernels.<op>        -> {implementations}
    call      {op, impl, mode, call, hold}       one call of the op (with gradients if asked)         -> {results: structure}
    recall    {outputs}                          copy the results of held calls out again
    stage     {calls}                            bring the input sets of the next blocks to the device
    block     {op, impl, mode, n, keep}          n calls in a row, one of them copied out: the judge's clock is running
    build     {sources}                          compile csrc sources through kernels/jit.py
    aot       {op, targets}                      compile the op's Triton kernels ahead of time
    setup     {spec, warm_up}                    build model.train.Trainer and warm it up
    train     {tokens, seed, seconds, steps}     the bell: token file comes as a descriptor; progress lines until the answer
    logits    {rows, out}                        map token rows to logits

A call is {"inputs": {name: where}, "scalars": {...}, "outputs": [where], "wrt": [names], "upstream": [where], "gradients": [where]}.
"""

from __future__ import annotations

import mmap
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.protocol import Channel, view

MAX_ERROR = 6000
LAST_FRAMES = 4  # of a traceback: those of the candidate, not ours


class Refusal(Exception):
    """The candidate's answer has the wrong structure; the judge sees the message."""


class Runner:
    def __init__(self, channel: Channel, arena: mmap.mmap, device: str) -> None:
        self.channel = channel
        self.arena = arena
        self.device = torch.device(device)
        self.held: list[list[Tensor]] = []
        self.staged: list[tuple[Mapping[str, Any], dict[str, Any], list[Tensor]]] = []
        self.functions: dict[tuple[str, str], Any] = {}
        self.trainer: Any = None

    def serve(self) -> None:
        """Answer requests until the judge closes the connection."""
        while True:
            request, fd = self.channel.receive()
            answer: dict[str, Any] = {"id": request["id"], "ok": True}
            try:
                handler = getattr(self, "do_" + request["do"])
                answer.update(handler(request) if fd is None else handler(request, fd))
            except Refusal as refusal:
                answer.update(ok=False, kind="structure", error=str(refusal))
            except Exception as error:
                # whatever candidate code raises is an answer, not our failure
                text = "".join(traceback.format_exception(error, limit=-LAST_FRAMES))
                answer.update(ok=False, kind=type(error).__name__, error=text[-MAX_ERROR:])
            self.channel.send(answer)

    # --- kernels ---------------------------------------------------------------------------------------------------------

    def do_load(self, request: Mapping[str, Any]) -> dict[str, Any]:
        sys.path.insert(0, request["tree"])
        if "op" not in request:
            return {}
        module = __import__(f"kernels.{request['op']}", fromlist=["_"])
        if not callable(getattr(module, request["op"], None)):
            raise Refusal(f"kernels/{request['op']}.py exports no function {request['op']}")
        return {"implementations": list(getattr(module, "IMPLEMENTATIONS", {}))}

    def function(self, op: str, impl: str | None, mode: str = "eager") -> Any:
        key = (op, f"{impl}/{mode}")
        if key not in self.functions:
            plain = getattr(__import__(f"kernels.{op}", fromlist=["_"]), op)

            def call(*args: Any, **kwargs: Any) -> Any:
                return plain(*args, **kwargs) if impl is None else plain(*args, impl=impl, **kwargs)

            if mode == "compile":
                # aot_eager: finds graph breaks and missing fakes without paying for code generation
                call = torch.compile(call, fullgraph=True, backend="aot_eager")
            elif mode == "inductor":
                call = torch.compile(call, fullgraph=True)
            self.functions[key] = call
        return self.functions[key]

    def arguments(self, call: Mapping[str, Any]) -> dict[str, Any]:
        tensors: dict[str, Any] = {
            name: view(self.arena, where).to(self.device) for name, where in call["inputs"].items()
        }
        for name in call["wrt"]:
            tensors[name] = tensors[name].detach().requires_grad_()
        return {**tensors, **call["scalars"]}

    def run(
        self,
        function: Any,
        arguments: Mapping[str, Any],
        call: Mapping[str, Any],
        upstream: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        results = function(**arguments)
        results = list(results) if isinstance(results, tuple) else [results]
        if not call["wrt"]:
            return results, []
        wanted = [arguments[name] for name in call["wrt"]]
        gradients = torch.autograd.grad(results, wanted, upstream, allow_unused=True)
        for name, gradient in zip(call["wrt"], gradients, strict=True):
            if gradient is None:
                raise Refusal(f"no gradient reaches {name}: the autograd graph is cut")
        return results, list(gradients)

    def upstream(self, call: Mapping[str, Any]) -> list[Tensor]:
        return [view(self.arena, where).to(self.device) for where in call["upstream"]]

    def do_call(self, request: Mapping[str, Any]) -> dict[str, Any]:
        call = request["call"]
        mode = request["mode"]
        function = self.function(request["op"], request["impl"], mode)
        arguments, upstream = self.arguments(call), self.upstream(call)
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=mode == "autocast"),
            torch.set_grad_enabled(bool(call["wrt"])),
        ):
            results, gradients = self.run(function, arguments, call, upstream)
        self.copy_out(results, call["outputs"], "result", exact=mode != "autocast")
        self.copy_out(gradients, call["gradients"], "gradient")
        if request["hold"]:
            self.held.append([*results, *gradients])
        return {}

    def do_recall(self, request: Mapping[str, Any]) -> dict[str, Any]:
        for tensors, outputs in zip(self.held, request["outputs"], strict=True):
            self.copy_out(tensors, outputs, "held result", exact=False)
        self.held.clear()
        return {}

    def copy_out(
        self,
        tensors: list[Tensor],
        outputs: list[Mapping[str, Any]],
        what: str,
        *,
        exact: bool = True,
    ) -> None:
        if len(tensors) != len(outputs):
            raise Refusal(f"expected {len(outputs)} {what}(s), got {len(tensors)}")
        for i, (tensor, where) in enumerate(zip(tensors, outputs, strict=True)):
            if type(tensor) is not Tensor and type(tensor) is not torch.nn.Parameter:
                raise Refusal(
                    f"{what} {i}: expected a plain torch.Tensor, got {type(tensor).__name__}"
                )
            if list(tensor.shape) != where["shape"]:
                raise Refusal(
                    f"{what} {i}: expected shape {where['shape']}, got {list(tensor.shape)}"
                )
            if exact and str(tensor.dtype) != f"torch.{where['dtype']}":
                raise Refusal(
                    f"{what} {i}: expected dtype {where['dtype']}, got {str(tensor.dtype)[6:]}"
                )
            if tensor.device.type != self.device.type:
                raise Refusal(
                    f"{what} {i}: expected a {self.device.type} tensor, got {tensor.device.type}"
                )
            view(self.arena, where).copy_(tensor.detach())

    def do_block(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """`n` calls, rotating over the input sets; the results of call number `keep` are copied into the judge's buffers."""
        function = self.function(request["op"], request["impl"], request["mode"])
        sets = self.staged
        n, keep = request["n"], request["keep"]
        with torch.set_grad_enabled(bool(sets[0][0]["wrt"])):
            for i in range(n):
                call, arguments, upstream = sets[i % len(sets)]
                results, gradients = self.run(function, arguments, call, upstream)
                if i == keep:
                    self.copy_out(
                        [*results, *gradients], [*call["outputs"], *call["gradients"]], "result"
                    )
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return {}

    def do_stage(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Bring the input sets of the next block to the device, before the clock starts."""
        self.staged = [
            (call, self.arguments(call), self.upstream(call)) for call in request["calls"]
        ]
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return {}

    # --- builds ----------------------------------------------------------------------------------------------------------

    def do_build(self, request: Mapping[str, Any]) -> dict[str, Any]:
        from kernels import jit

        seconds = {}
        for source in request["sources"]:
            started = time.monotonic()
            try:
                jit.build(Path(source))
            except jit.BuildError as error:
                raise Refusal(str(error)) from None
            seconds[Path(source).name] = round(time.monotonic() - started, 1)
        return {"seconds": seconds}

    def do_aot(self, request: Mapping[str, Any]) -> dict[str, Any]:
        from bench import aot

        module = __import__(f"kernels.{request['op']}", fromlist=["_"])
        return {"kernels": aot.compile_all(getattr(module, "AOT", ()), request["targets"])}

    # --- the trial -------------------------------------------------------------------------------------------------------

    def do_setup(self, request: Mapping[str, Any]) -> dict[str, Any]:
        from model.train import Trainer

        self.trainer = Trainer(request["spec"])
        self.trainer.warm_up(view(self.arena, request["warm_up"]))
        return {"describe": self.trainer.describe()}

    def do_train(self, request: Mapping[str, Any], fd: int) -> dict[str, Any]:
        shard = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            # torch notes that the buffer is read-only: that is the point
            warnings.simplefilter("ignore", UserWarning)
            tokens = torch.frombuffer(shard, dtype=getattr(torch, request["dtype"]))

        def report(progress: Mapping[str, Any]) -> None:
            self.channel.send({"id": request["id"], "progress": dict(progress)})

        return {
            "trained": self.trainer.train(
                tokens, request["seed"], request["seconds"], report, request["steps"]
            )
        }

    def do_logits(self, request: Mapping[str, Any]) -> dict[str, Any]:
        logits = self.trainer.logits(view(self.arena, request["rows"]).to(self.device))
        self.copy_out([logits], [request["out"]], "logits")
        return {}


def main() -> None:
    """`python -m bench.runner SOCKET_FD ARENA_FD DEVICE`, started by bench/sandbox.py."""
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    arena = mmap.mmap(int(sys.argv[2]), 0)
    Runner(channel, arena, sys.argv[3]).serve()


if __name__ == "__main__":
    main()
