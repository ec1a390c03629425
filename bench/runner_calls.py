"""What the runner does with an op: one call, and results that are held and read again.

    call      {op, impl, mode, call, hold}       one call of the op (with gradients if asked)
    recall    {outputs}                          copy the results of held calls out again

A call is {"inputs": {name: where}, "scalars": {...}, "outputs": [where], "wrt": [names], "upstream": [where], "gradients": [where]}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.lending import Lent, Refusal


class Calls:
    def __init__(self, lent: Lent) -> None:
        self.lent = lent
        self.held: list[list[Tensor]] = []
        self.functions: dict[tuple[str, str], Any] = {}

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
            name: self.lent.read(where) for name, where in call["inputs"].items()
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
        return [self.lent.read(where) for where in call["upstream"]]

    def do_call(self, request: Mapping[str, Any]) -> dict[str, Any]:
        call = request["call"]
        mode = request["mode"]
        function = self.function(request["op"], request["impl"], mode)
        arguments, upstream = self.arguments(call), self.upstream(call)
        with (
            torch.autocast(self.lent.device.type, torch.bfloat16, enabled=mode == "autocast"),
            torch.set_grad_enabled(bool(call["wrt"])),
        ):
            results, gradients = self.run(function, arguments, call, upstream)
        self.lent.copy_out(results, call["outputs"], "result", exact=mode != "autocast")
        self.lent.copy_out(gradients, call["gradients"], "gradient")
        if request["hold"]:
            self.held.append([*results, *gradients])
        return {}

    def do_recall(self, request: Mapping[str, Any]) -> dict[str, Any]:
        for tensors, outputs in zip(self.held, request["outputs"], strict=True):
            self.lent.copy_out(tensors, outputs, "held result", exact=False)
        self.held.clear()
        return {}
