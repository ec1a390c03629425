"""Calls of ops in a training run, kept with what they were given and what came of them.

record    {spec, ops, seed, steps, dtype}    train, the shard as a descriptor, and keep each op's last calls     -> {calls}
recorded  {op, call, out}                    copy tensors of a kept call out

`record` is for bench/capture.py. In a trial (training.py) each op's calls at a few moments are kept, which nobody knows beforehand; bench/witness.py
reads them. `ops` names for each op the arguments that it overwrites.
"""

from __future__ import annotations

import functools
import inspect
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.runner import shards
from bench.runner.lending import Lent, Refusal

KEPT = 4  # last calls of each op, of a `record`
# After its moment an op is called up to so many times more before a call is kept: the nine calls of adamw in a step follow each other at once,
# and the first of them would be kept nearly always.
SKIPPED = 12
MOST_BYTES = 1 << 30  # of the arguments of a call that is kept

# Bound before any candidate is imported.
_now, _draw = time.monotonic, random.SystemRandom()


@dataclass
class Kept:
    """One call. `tensors`: "x" as it came, "result 0", "upstream 0" (what came back to that result) and "gradient x" (what went back from it)."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, Any] = field(default_factory=dict)
    requires: list[str] = field(default_factory=list)  # inputs that a gradient was wanted of
    seconds: float = 0.0  # since the beginning of the training

    def described(self) -> dict[str, Any]:
        """As JSON: tensors as [dtype, shape]."""
        tensors = {name: [str(t.dtype)[6:], list(t.shape)] for name, t in self.tensors.items()}
        return {
            "tensors": tensors,
            "scalars": self.scalars,
            "requires": self.requires,
            "seconds": self.seconds,
        }


class Recorder:
    def __init__(self, lent: Lent) -> None:
        self.lent = lent
        self.calls: dict[str, deque[Kept]] = {}
        self.due: Callable[[str], bool] = lambda op: False
        self.began = 0.0

    def do_record(self, request: Mapping[str, Any], fd: int) -> dict[str, Any]:
        self.watch(request["ops"], most=KEPT)
        from model.train import Trainer

        tokens = shards.mapped(fd, request["dtype"])
        trainer = Trainer(request["spec"])
        self.due = lambda op: True
        trainer.train(tokens, request["seed"], float("inf"), lambda _: None, request["steps"])
        return {"calls": self.end()}

    def do_recorded(self, request: Mapping[str, Any]) -> dict[str, Any]:
        tensors, out = self.calls[request["op"]][request["call"]].tensors, request["out"]
        self.lent.copy_out([tensors[name] for name in out], list(out.values()), "recorded tensor")
        return {}

    def watch(self, ops: Mapping[str, list[str]], most: int | None = None) -> None:
        """Put a recording function in each op's place, before the model imports the op. `most` calls of it are kept, the last ones."""
        for op, updates in ops.items():
            module = __import__(f"kernels.{op}", fromlist=["_"])
            self.calls[op] = deque(maxlen=most)
            setattr(module, op, self._recording(op, getattr(module, op), updates))

    def begin(self, seconds: float, moments: Mapping[str, int]) -> None:
        """A training of so many seconds begins, in which so many calls of these ops are kept."""
        self.began = _now()
        ahead = {
            op: sorted(self.began + _draw.random() * seconds for _ in range(count))
            for op, count in moments.items()
        }
        skip = dict.fromkeys(moments, 0)

        def due(op: str) -> bool:
            if skip.get(op):
                skip[op] -= 1
                return not skip[op]
            if not ahead.get(op) or _now() < ahead[op][0]:
                return False
            del ahead[op][0]
            skip[op] = _draw.randrange(SKIPPED)
            return not skip[op]

        self.due = due

    def end(self) -> dict[str, list[dict[str, Any]]]:
        """No more calls are kept; those that were, described."""
        self.due = lambda op: False
        return {op: [call.described() for call in kept] for op, kept in self.calls.items()}

    def _recording(self, op: str, function: Any, updates: list[str]) -> Any:
        form = inspect.signature(function)

        @functools.wraps(function)
        def recording(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return function(*args, **kwargs)
            if not self.due(op):
                seen = _viewed if torch.is_grad_enabled() and not updates else (lambda value: value)
                return function(*map(seen, args), **{n: seen(v) for n, v in kwargs.items()})
            bound = form.bind(*args, **kwargs)
            given = {name: v for name, v in bound.arguments.items() if isinstance(v, Tensor)}
            if sum(t.numel() * t.itemsize for t in given.values()) > MOST_BYTES:
                return function(*args, **kwargs)
            kept = Kept(seconds=_now() - self.began)
            kept.scalars = {n: v for n, v in bound.arguments.items() if n not in given and n != "impl"}  # fmt: skip
            kept.tensors = {name: t.detach().clone() for name, t in given.items()}
            for name, t in given.items():
                if torch.is_grad_enabled() and t.requires_grad and not updates:
                    # a view of its own: what flows back to it is this call's gradient alone
                    bound.arguments[name] = view = t.view_as(t)
                    view.register_hook(_keeping(kept, f"gradient {name}"))  # type: ignore[no-untyped-call]
                    kept.requires.append(name)
            results = function(*bound.args, **bound.kwargs)
            kept.tensors |= {
                f"result {i}": given[name].detach().clone() for i, name in enumerate(updates)
            }
            self.calls[op].append(kept)
            if updates:
                return results
            several = isinstance(results, tuple)
            came = [_watched(kept, i, r) for i, r in enumerate(results if several else (results,))]
            return tuple(came) if several else came[0]

        return recording


def _viewed(value: Any) -> Any:
    """A view also where a call is not kept: what made a tensor, and its type, may not tell which calls are."""
    return value.view_as(value) if isinstance(value, Tensor) and value.requires_grad else value


def _watched(kept: Kept, number: int, result: Tensor) -> Tensor:
    """A result, kept; where gradients will come, a view of it, since plain torch may go on with the result itself within the op."""
    if not isinstance(result, Tensor):
        raise Refusal(f"expected a tensor as result {number} of an op, got {type(result).__name__}")
    kept.tensors[f"result {number}"] = result.detach().clone()
    if not result.requires_grad:
        return result
    view = result.view_as(result)
    view.register_hook(_keeping(kept, f"upstream {number}"))  # type: ignore[no-untyped-call]
    return view


def _keeping(kept: Kept, name: str) -> Callable[[Tensor], None]:
    def keep(gradient: Tensor) -> None:
        kept.tensors[name] = gradient.detach().clone()

    return keep
