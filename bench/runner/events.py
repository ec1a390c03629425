"""A call's time on the device, taken as public figures of kernels are: to be read beside these, never for a verdict, since the runner tells it.

warm      {op, impl, mode, call}      one call, forward and backward: it builds, compiles and tunes
events    {op, impl, mode, call}      medians of triton.testing.do_bench, in milliseconds      -> {forward, backward?, both?}

CUDA events stand around each call, the L2 cache is flushed before it, and calls are repeated for WINDOW_MS. The flush keeps the queue full: a
call's launches do not show where they take the host less time than the flush takes the device (80 us for 256 MB on an H100). A call is
described by bench/contracts/contract.py, and its tensors are drawn here. `backward` keeps the graph of one forward pass and runs it again and again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.protocol import span
from bench.runner.calls import Calls
from bench.runner.lending import Lent, Refusal

WARM_UP_MS, WINDOW_MS = 25, 200


class Events:
    def __init__(self, lent: Lent, calls: Calls) -> None:
        self.lent, self.calls = lent, calls

    def do_warm(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with _kept_graphs(), _given_back():
            _Call(self, request).both()
        return {}

    def do_events(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self.lent.device.type != "cuda":
            raise Refusal("CUDA events are a GPU's")
        with _kept_graphs(), _given_back():
            return _medians(_Call(self, request))


@contextmanager
def _given_back() -> Iterator[None]:
    """Memory that torch keeps for later goes back to the device, also where the call found the device full: other arms' runners need it."""
    try:
        yield
    finally:
        torch.cuda.empty_cache()


def _kept_graphs() -> AbstractContextManager[Any]:
    """Without this torch.compile reuses memory that backward reads for what it writes, and then refuses to keep the graph for another time."""
    import torch._functorch.config as config

    return config.patch(donated_buffer=False)  # type: ignore[no-any-return]


def _medians(asked: _Call) -> dict[str, float]:
    found = {"forward": _median_ms(asked.forward)}
    if asked.leaves:
        results = asked.forward()
        found["backward"] = _median_ms(partial(asked.backward, results))
        found["both"] = _median_ms(asked.both)
    return found


class _Call:
    """One call on tensors of its own."""

    def __init__(self, events: Events, request: Mapping[str, Any]) -> None:
        call, device = request["call"], events.lent.device.type
        self.function = events.calls.function(request["op"], request["impl"], request["mode"])
        self.scalars = call["scalars"]
        self.inputs = {name: drawn(wanted, device) for name, wanted in call["inputs"].items()}
        self.leaves = [self.inputs[name].requires_grad_() for name in call["wrt"]]
        self.upstream: list[Tensor] = []

    def forward(self) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(bool(self.leaves)):
            results = self.function(**self.inputs, **self.scalars)
        return results if isinstance(results, tuple) else (results,)

    def backward(self, results: Sequence[Tensor]) -> None:
        self.upstream = self.upstream or [torch.randn_like(result) for result in results]
        torch.autograd.grad(results, self.leaves, self.upstream, retain_graph=True)

    def both(self) -> None:
        results = self.forward()
        if self.leaves:
            self.backward(results)


def drawn(wanted: Mapping[str, Any], device: str) -> Tensor:
    """A tensor of random values that lies as asked, drawn on the device: a processor takes a second for what a GPU draws in a millisecond."""
    shape, strides, dtype = wanted["shape"], wanted["strides"], getattr(torch, wanted["dtype"])
    elements = span(shape, strides) + wanted["skew"]
    if dtype.is_floating_point:
        memory = torch.randn(elements, dtype=dtype, device=device)
    else:
        memory = torch.randint(wanted["below"], (elements,), device=device)
    return memory.as_strided(shape, strides, wanted["skew"])


def _median_ms(call: Any) -> float:
    from triton.testing import do_bench

    return float(do_bench(call, warmup=WARM_UP_MS, rep=WINDOW_MS, return_mode="median"))
