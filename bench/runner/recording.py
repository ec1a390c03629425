"""Calls of ops in a training run, kept with what they were given and what came of them.

record    {spec, ops, seed, steps, dtype}    train, the shard as a descriptor, and keep each op's last calls     -> {calls}
recorded  {op, call, out}                    copy tensors of a kept call out

`record` is for bench/capture.py. In a trial (training.py) each op's calls at a few moments are kept, which nobody knows beforehand; bench/witness.py
reads them. `ops` names for each op the arguments that it overwrites.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import mmap
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.runner import shards
from bench.runner.lending import Lent, Refusal

_BACK = ("upstream ", "gradient ")
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
KEPT = 4  # last calls of each op, of a `record`
# After its moment an op is called up to so many times more before a call is kept: the nine calls of adamw in a step follow each other at once,
# and the first of them would be kept nearly always.
SKIPPED = 12
MOST_BYTES = 1 << 30  # of the arguments of a call that is kept

# Bound before any candidate is imported.
_now, _draw = time.monotonic, random.SystemRandom()
_alias = torch.ops.aten.alias.default  # a view whose backward hands on the very tensor that came


@dataclass
class Kept:
    """One call. `tensors`: "x" as it came, "result 0", "upstream 0" (what came back to that result) and "gradient x" (what went back from it)."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, Any] = field(default_factory=dict)
    requires: list[str] = field(default_factory=list)  # inputs that a gradient was wanted of
    cut: list[str] = field(default_factory=list)  # those of them that no result leads back to
    passed: set[str] = field(default_factory=set)  # what a backward pass has come by
    twice: bool = False
    autocast: str = ""  # the dtype, under autocast
    seconds: float = 0.0  # since the beginning of the training

    def keep(self, name: str) -> Callable[[tuple[Tensor | None, ...]], None]:
        """A hook that keeps the gradient which comes by."""

        def came(gradients: tuple[Tensor | None, ...]) -> None:
            if name in self.passed:
                # a second pass, as of a penalty or another loss: of this call the values alone are held to float64
                self.twice = True
                self.tensors = {n: t for n, t in self.tensors.items() if not n.startswith(_BACK)}
            self.passed.add(name)
            if gradients[0] is not None and not self.twice:
                self.tensors[name] = _private(gradients[0])

        return came

    def described(self) -> dict[str, Any]:
        """As JSON: tensors as [dtype, shape]. `none`: inputs to which None came in place of a gradient."""
        tensors = {name: [str(t.dtype)[6:], list(t.shape)] for name, t in self.tensors.items()}
        none = [
            n for n in self.requires if (g := f"gradient {n}") in self.passed and g not in tensors
        ]
        return {
            "tensors": tensors,
            "scalars": self.scalars,
            "requires": self.requires,
            "cut": self.cut,
            "none": [] if self.twice else none,
            "autocast": self.autocast,
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
        names = [name for name, p in form.parameters.items() if p.kind in _BY_PLACE]

        @functools.wraps(function)
        def recording(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return function(*args, **kwargs)
            learns = torch.is_grad_enabled() and not updates
            if not self.due(op):
                seen = _aliased if learns else _as_it_is
                return function(*map(seen, args), **{n: seen(v) for n, v in kwargs.items()})
            bound = form.bind(*args, **kwargs)
            given = {name: v for name, v in bound.arguments.items() if isinstance(v, Tensor)}
            if sum(t.nbytes for t in given.values()) > MOST_BYTES:
                return function(*args, **kwargs)
            kept = self._kept(given, bound.arguments)
            views, nodes = {}, {}
            for name, t in given.items():
                if learns and t.requires_grad:
                    # what flows back to a view of its own is this call's gradient alone
                    views[name] = view = _alias(t)
                    nodes[name] = view.grad_fn
                    view.grad_fn.register_prehook(kept.keep(f"gradient {name}"))
            # in the form in which the model calls, which a decorator could tell
            results = function(
                *(
                    views.get(name, a)
                    for name, a in itertools.zip_longest(names[: len(args)], args)
                ),
                **{name: views.get(name, value) for name, value in kwargs.items()},
            )
            kept.tensors |= {f"result {i}": _private(given[name]) for i, name in enumerate(updates)}
            self.calls[op].append(kept)
            if updates:
                return results
            several = isinstance(results, tuple)
            came = [_watched(kept, i, r) for i, r in enumerate(results if several else (results,))]
            reached = _reached(came, set(nodes.values()))
            kept.requires = list(nodes)
            kept.cut = [name for name, node in nodes.items() if node not in reached]
            return tuple(came) if several else came[0]

        return recording

    def _kept(self, given: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Kept:
        """A call as it begins."""
        kept = Kept(seconds=_now() - self.began)
        scalars = {n: v for n, v in arguments.items() if n not in given and n != "impl"}
        # a scalar of numpy's is no JSON
        kept.scalars = {n: v.item() if hasattr(v, "item") else v for n, v in scalars.items()}
        kept.tensors = {name: _private(t) for name, t in given.items()}
        if torch.is_autocast_enabled(self.lent.device.type):
            kept.autocast = str(torch.get_autocast_dtype(self.lent.device.type))[6:]
        return kept


def _as_it_is(value: Any) -> Any:
    return value


def _aliased(value: Any) -> Any:
    """A view also where a call is not kept: what made a tensor, and its type, may not tell which calls are."""
    return _alias(value) if isinstance(value, Tensor) and value.requires_grad else value


def _private(t: Tensor) -> Tensor:
    """A copy, on a CPU outside of torch's allocator, whose next address would tell a kernel of it."""
    if not t.is_cpu or not t.numel():
        return t.detach().clone()
    memory = mmap.mmap(-1, t.nbytes)
    return torch.frombuffer(memory, dtype=t.dtype).view(t.shape).copy_(t.detach())


def _watched(kept: Kept, number: int, result: Tensor) -> Tensor:
    """A result, kept; where gradients will come, a view of it, since plain torch may go on with the result itself within the op."""
    if not isinstance(result, Tensor):
        raise Refusal(f"expected a tensor as result {number} of an op, got {type(result).__name__}")
    kept.tensors[f"result {number}"] = _private(result)
    if not result.requires_grad:
        return result
    view: Tensor = _alias(result)
    assert view.grad_fn is not None
    view.grad_fn.register_prehook(kept.keep(f"upstream {number}"))
    return view


def _reached(results: Sequence[Tensor], wanted: set[Any]) -> set[Any]:
    """Those of the wanted nodes of the graph that a result leads back to."""
    found, seen = set(), set()
    queue = [result.grad_fn for result in results if result.grad_fn is not None]
    while queue:
        node = queue.pop()
        if node in wanted:
            found.add(node)
        elif node not in seen:
            seen.add(node)
            queue += [following for following, _ in node.next_functions if following is not None]
    return found
