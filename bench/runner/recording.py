"""What the runner does for bench/capture.py: a short training run of which the arguments of the ops are kept.

record    {spec, ops, seed, steps, dtype}    train, the shard as a descriptor, and keep each op's last calls     -> {calls}
recorded  {op, call, name, out}              copy one kept tensor out
"""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.runner import shards
from bench.runner.lending import Lent

KEPT = 4  # last calls of each op


class Recorder:
    def __init__(self, lent: Lent) -> None:
        self.lent = lent
        self.calls: dict[str, deque[dict[str, Any]]] = {}

    def do_record(self, request: Mapping[str, Any], fd: int) -> dict[str, Any]:
        for op in request["ops"]:
            self._watch(op)
        from model.train import Trainer

        tokens = shards.mapped(fd, request["dtype"])
        trainer = Trainer(request["spec"])
        trainer.train(tokens, request["seed"], float("inf"), lambda _: None, request["steps"])
        return {
            "calls": {op: [_described(call) for call in kept] for op, kept in self.calls.items()}
        }

    def do_recorded(self, request: Mapping[str, Any]) -> dict[str, Any]:
        tensor = self.calls[request["op"]][request["call"]][request["name"]]
        self.lent.copy_out([tensor], [request["out"]], "recorded tensor")
        return {}

    def _watch(self, op: str) -> None:
        """Put a recording function in the op's place, before the model imports the op."""
        module = __import__(f"kernels.{op}", fromlist=["_"])
        function, kept = getattr(module, op), deque[dict[str, Any]](maxlen=KEPT)
        form = inspect.signature(function)

        @functools.wraps(function)
        def recording(*args: Any, **kwargs: Any) -> Any:
            bound = form.bind(*args, **kwargs).arguments
            kept.append(
                {n: v.detach().clone() if isinstance(v, Tensor) else v for n, v in bound.items()}
            )
            return function(*args, **kwargs)

        self.calls[op] = kept
        setattr(module, op, recording)


def _described(call: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors as [dtype, shape], other arguments as they are; `impl` is not part of the op."""
    return {
        name: [str(value.dtype)[6:], list(value.shape)] if isinstance(value, Tensor) else value
        for name, value in call.items()
        if name != "impl"
    }
