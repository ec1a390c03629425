"""What the runner does with an op: calls of it in every mode that a training run knows.

    call        {op, impl, mode, passing, call, hold, threads}   one call, with gradients if asked
    age         {op, impl, call, n, seconds}            call after call, as a training run does; no answer is looked at   -> {calls}
    interleave  {op, impl, calls}                       forward of each, then backward of each in the same order
    accumulate  {op, impl, call}                        the same leaves through the op twice, their gradients summed
    recall      {outputs}                               copy the results of held calls out again
    trace       {op, impl, call}                        names of all operators that one call runs, of imported packages that launch kernels
                                                        without an operator, and of Triton kernels launched   -> {operators, launches}
    register    {op, impl, call}                        check the custom ops that one call runs, by torch's opcheck
    spoil       {op, impl, call}                        one call in which every result of the op's C++ or CUDA library is replaced by NaN

A call is {"inputs": {name: where}, "updates": [names], "scalars": {...}, "outputs": [where], "wrt": [names], "through": [result
numbers], "upstream": [where], "gradients": [where]}; gradients flow back from the results in `through`. Where there are `updates`, the op
overwrites these inputs, and they are its results. "weights": [names] are the inputs that a model holds as Parameters; passed as a copy they come
as such.
How the inputs are passed (`passing`): lent (the judge's buffers, leaves of the graph), copy (a clone in the runner's own memory, as a model passes
results on), alias (a view of the leaf).
Modes: eager, no_grad, inference, autocast, compile (aot_eager: finds graph breaks and missing fakes without paying for code) and inductor.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.protocol import span
from bench.runner.lending import Lent, Refusal

SHAPES = 64  # of one op that a runner may be asked for
# Packages that launch kernels past the dispatcher: all that can be seen of them is that they have been imported.
_PAST_THE_DISPATCHER = ("flash_attn.cute",)
# The other two opchecks would repeat what is checked elsewhere: gradients against float64, and the mode compile.
_OPCHECKS = ("test_schema", "test_faketensor")


class Calls:
    def __init__(self, lent: Lent) -> None:
        self.lent = lent
        self.held: list[list[Tensor]] = []
        self.functions: dict[tuple[str, str], Any] = {}

    # --- what a call is made of ------------------------------------------------------------------------------------------

    def function(self, op: str, impl: str | None, mode: str = "eager") -> Any:
        key = (op, f"{impl}/{mode}")
        if key not in self.functions:
            plain = getattr(__import__(f"kernels.{op}", fromlist=["_"]), op)

            def call(*args: Any, **kwargs: Any) -> Any:
                return plain(*args, **kwargs) if impl is None else plain(*args, impl=impl, **kwargs)

            # Not dynamic: a trial has one shape and one softcap, and with symbols for them torch 2.13 cannot trace what recomputes by checkpoint.
            if mode == "compile":
                call = torch.compile(call, fullgraph=True, dynamic=False, backend="aot_eager")
            elif mode == "inductor":
                # Each shape of a benchmark is a compilation of its own, and torch refuses the ninth by default.
                torch._dynamo.config.recompile_limit = SHAPES
                call = torch.compile(call, fullgraph=True, dynamic=False)
            self.functions[key] = call
        return self.functions[key]

    def arguments(self, call: Mapping[str, Any], passing: str = "lent") -> dict[str, Any]:
        tensors: dict[str, Any] = {
            name: self.lent.read(where) for name, where in call["inputs"].items()
        }
        for name in call["wrt"]:
            tensors[name] = tensors[name].detach().requires_grad_()
        if passing != "lent":
            tensors = {
                n: t.clone() if passing == "copy" else t.view_as(t) for n, t in tensors.items()
            }
        # as a model passes its own
        for name in call.get("weights", ()) if passing == "copy" else ():
            learns = name in call["wrt"] or name in call["updates"]
            tensors[name] = torch.nn.Parameter(tensors[name].detach(), requires_grad=learns)
        return {**tensors, **call["scalars"]}

    def upstream(self, call: Mapping[str, Any]) -> list[Tensor]:
        return [self.lent.read(where) for where in call["upstream"]]

    def forward(
        self, function: Any, arguments: Mapping[str, Any], call: Mapping[str, Any]
    ) -> list[Tensor]:
        # views from before the call: an argument that is given other memory instead has not been updated
        updated = [arguments[name].detach() for name in call["updates"]]
        results = function(**arguments)
        if updated and results is not None:
            raise Refusal(
                f"expected None from an op that updates {', '.join(call['updates'])} in place, got {type(results).__name__}"
            )
        results = updated or (list(results) if isinstance(results, tuple) else [results])
        expected = len(call["outputs"])
        if len(results) != expected:
            raise Refusal(f"expected {expected} result(s), got {len(results)}")
        return results

    def backward(
        self,
        results: Sequence[Tensor],
        arguments: Mapping[str, Any],
        call: Mapping[str, Any],
        upstream: Sequence[Tensor],
    ) -> list[Tensor]:
        if not call["wrt"]:
            return []
        through = [results[i] for i in call["through"]]
        for i, result in zip(call["through"], through, strict=True):
            if not getattr(result, "requires_grad", False):
                raise Refusal(f"result {i} does not require a gradient: the autograd graph is cut")
        wanted = [arguments[name] for name in call["wrt"]]
        gradients = torch.autograd.grad(through, wanted, upstream, allow_unused=True)
        for name, gradient in zip(call["wrt"], gradients, strict=True):
            if gradient is None:
                raise Refusal(f"no gradient reaches {name}: the autograd graph is cut")
        return list(gradients)

    def run(
        self,
        function: Any,
        arguments: Mapping[str, Any],
        call: Mapping[str, Any],
        upstream: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        results = self.forward(function, arguments, call)
        return results, self.backward(results, arguments, call, upstream)

    def whole(self, request: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """One eager call of a request, from its buffers."""
        call = request["call"]
        function = self.function(request["op"], request["impl"])
        with torch.set_grad_enabled(bool(call["wrt"])):
            return self.run(function, self.arguments(call), call, self.upstream(call))

    def answer(
        self,
        call: Mapping[str, Any],
        results: list[Tensor],
        gradients: list[Tensor],
        *,
        exact: bool = True,
    ) -> None:
        self.lent.copy_out(results, call["outputs"], "result", exact=exact)
        self.lent.copy_out(gradients, call["gradients"], "gradient")

    # --- requests --------------------------------------------------------------------------------------------------------

    def do_call(self, request: Mapping[str, Any]) -> dict[str, Any]:
        call, mode = request["call"], request["mode"]
        function = self.function(request["op"], request["impl"], mode)
        arguments, upstream = self.arguments(call, request["passing"]), self.upstream(call)
        with _mode(mode, self.lent.device.type, bool(call["wrt"])), threads(request["threads"]):
            results, gradients = self.run(function, arguments, call, upstream)
        if request["passing"] == "copy":
            self._untouched(call, arguments)
        if not call["updates"]:
            inputs = [value for value in arguments.values() if isinstance(value, Tensor)]
            _own_memory(results, [*inputs, *(t for held in self.held for t in held)])
        self.answer(call, results, gradients, exact=mode != "autocast")
        if request["hold"]:
            self.held.append([*results, *gradients])
        return {}

    def do_interleave(self, request: Mapping[str, Any]) -> dict[str, Any]:
        function = self.function(request["op"], request["impl"])
        under_way = []
        for call in request["calls"]:
            arguments = self.arguments(call)
            under_way.append((call, arguments, self.forward(function, arguments, call)))
        for call, arguments, results in under_way:
            gradients = self.backward(results, arguments, call, self.upstream(call))
            self.answer(call, results, gradients)
        return {}

    def do_accumulate(self, request: Mapping[str, Any]) -> dict[str, Any]:
        call = request["call"]
        function = self.function(request["op"], request["impl"])
        arguments, upstream = self.arguments(call), self.upstream(call)
        runs = [self.forward(function, arguments, call) for _ in range(2)]
        through = [results[i] for results in runs for i in call["through"]]
        # not backward() into .grad: torch 2.13 counts twice there where one gradient reaches two leaves through views
        wanted = [arguments[name] for name in call["wrt"]]
        self.answer(
            call, runs[-1], list(torch.autograd.grad(through, wanted, [*upstream, *upstream]))
        )
        return {}

    def do_age(self, request: Mapping[str, Any]) -> dict[str, Any]:
        call = request["call"]
        function = self.function(request["op"], request["impl"])
        arguments, upstream = self.arguments(call, "copy"), self.upstream(call)
        deadline, calls = time.monotonic() + request["seconds"], 0
        with torch.set_grad_enabled(bool(call["wrt"])):
            while calls < request["n"] and time.monotonic() < deadline:
                self.run(function, arguments, call, upstream)
                calls += 1
        self._untouched(call, arguments)
        return {"calls": calls}

    def _untouched(self, call: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
        """Refuse an argument that was changed in the runner's own copy of it, which the judge does not see."""
        for name, where in call["inputs"].items():
            if name in call["updates"]:
                continue
            now, lent = (_bytes(t) for t in (arguments[name], self.lent.read(where)))
            if not torch.equal(now, lent):
                raise Refusal(f"input {name} was changed by the call; work on a copy")

    def do_recall(self, request: Mapping[str, Any]) -> dict[str, Any]:
        for tensors, outputs in zip(self.held, request["outputs"], strict=True):
            self.lent.copy_out(tensors, outputs, "held result", exact=False)
        self.held.clear()
        return {}

    def do_trace(self, request: Mapping[str, Any]) -> dict[str, Any]:
        from torch.autograd.profiler import profile
        from triton import knobs

        launches: set[str] = set()

        def launched(metadata: Any) -> None:
            launches.add(metadata.get()["name"])

        knobs.runtime.launch_enter_hook.add(launched)
        try:
            with profile(use_cpu=True) as seen:
                self.whole(request)
        finally:
            knobs.runtime.launch_enter_hook.remove(launched)
        loaded = {name for name in _PAST_THE_DISPATCHER if name in sys.modules}
        operators = loaded | {event.name for event in seen.function_events}
        return {"operators": sorted(operators), "launches": sorted(launches)}

    def do_register(self, request: Mapping[str, Any]) -> dict[str, Any]:
        from torch.testing._internal.optests.generate_tests import OpCheckError

        with _CustomOps() as seen:
            self.whole(request)
        for op, (args, kwargs) in seen.calls.items():
            try:
                torch.library.opcheck(op, args, kwargs, test_utils=_OPCHECKS)
            except OpCheckError as error:
                raise Refusal(f"torch.library.opcheck of {op}: {error}") from None
        return {}

    def do_spoil(self, request: Mapping[str, Any]) -> dict[str, Any]:
        from kernels import jit

        jit.spoil = _spoil
        try:
            self.answer(request["call"], *self.whole(request))
        finally:
            jit.spoil = None
        return {}


@contextlib.contextmanager
def _mode(mode: str, device: str, gradients: bool) -> Iterator[None]:
    with (
        torch.autocast(device, torch.bfloat16, enabled=mode == "autocast"),
        torch.inference_mode() if mode == "inference" else torch.set_grad_enabled(gradients),
    ):
        yield


@contextlib.contextmanager
def threads(wanted: int | None) -> Iterator[None]:
    """Another number of threads for a while. Where they are more than the cores, they are interrupted anywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _own_memory(results: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Refuse a result that lies where an input, another result or an earlier result lies."""
    for i, result in enumerate(results):
        for other in [*others, *results[:i]]:
            if _overlap(result, other):
                raise Refusal(
                    f"result {i} shares its memory with an input or another result; return memory of its own"
                )


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether an element of one lies where an element of the other lies; elements of both may alternate in one buffer."""
    if type(a) not in (Tensor, torch.nn.Parameter) or not a.numel() or not b.numel() or a.device != b.device:  # fmt: skip
        return False
    (a0, a1), (b0, b1) = ((t.data_ptr(), t.data_ptr() + _extent(t)) for t in (a, b))
    if a0 >= b1 or b0 >= a1:
        return False
    if a.itemsize != b.itemsize:
        return True
    start, end = min(a0, b0), max(a1, b1)
    taken = torch.zeros((end - start) // a.itemsize, dtype=torch.bool)
    taken.as_strided(a.shape, a.stride(), (a0 - start) // a.itemsize).fill_(True)
    return bool(taken.as_strided(b.shape, b.stride(), (b0 - start) // b.itemsize).any())


def _bytes(t: Tensor) -> Tensor:
    return t.detach().contiguous().reshape(-1).view(torch.uint8)


def _extent(t: Tensor) -> int:
    """Bytes from the beginning of the first element to the end of the last."""
    return t.itemsize * span(t.shape, t.stride())


def _spoil(function: Any, arguments: Sequence[Any], results: Any) -> Any:
    """NaN into every result of a library function, and into the arguments that its schema says it writes."""
    schema = function.default._schema
    written = [
        value
        for value, form in zip(arguments, schema.arguments, strict=False)
        if form.alias_info is not None and form.alias_info.is_write
    ]
    for tensor in [*written, *(results if isinstance(results, tuple) else (results,))]:
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            tensor.fill_(float("nan"))
    return results


class _CustomOps(TorchDispatchMode):
    """Remembers the first call of each operator that is not torch's own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[Any, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace not in ("aten", "prim", "prims", "profiler", "c10d", "_c10d_functional"):
            self.calls.setdefault(func, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))
