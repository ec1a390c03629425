"""What the runner does for bench/step_profile.py: say where a training step spends its time. Advice for a researcher, never a verdict.

within      {op, impl, call, times}                            so many calls of an op, forward and backward, under torch.profiler -> {rows}
profile     {spec, ops, seed, tokens, lengths}             train so many steps under torch.profiler, run by run; the last two lengths
                                                           once more without it                 -> {runs, plain, implementations, threads}

A run is {"seconds", "ops": {op: row}, "rest": {name: row}, "calls": {op: [[arguments, count]]}, "data": [us, calls], "python_us"}; a row is
[us, us of them in the backward pass, calls]. The time of an op is that of all that it calls, and of its backward pass; `rest` is what lies
outside the ops, each by its own time. On a GPU both are the device's time. `calls` are those that Python sees: none inside torch.compile. `data`
is how long the loop waited for its batches, `python_us` the host's own time in Python that torch has a name for: around kernels, in autograd
functions, in the optimizer. `plain` is seconds alone.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from bench.runner.calls import Calls
from bench.runner.lending import Lent

MAX_ROWS = 300  # of the rest, the longest first
# The profiler's records lie between the blocks that a step frees, so that the next step gets other memory. Where nobody has touched that memory
# yet, the first product written there pays for its pages: a loss of 27 ms then takes 72. So this many bytes are touched beforehand.
TOUCHED = 1 << 29
_SCOPE = "op "  # how an op's calls are named in the profile
_DATA = "data loader"
_BACKWARD = "autograd::engine::evaluate_function"


class Profiling:
    def __init__(self, lent: Lent, calls: Calls) -> None:
        self.lent, self.calls = lent, calls
        self.counts: dict[str, Counter[str]] = {}

    def do_within(self, request: Mapping[str, Any]) -> dict[str, Any]:
        call = request["call"]
        function = self.calls.function(request["op"], request["impl"])
        arguments, upstream = self.calls.arguments(call, "copy"), self.calls.upstream(call)

        def run(times: int) -> None:
            for _ in range(times):
                self.calls.run(function, arguments, call, upstream)

        with torch.set_grad_enabled(bool(call["wrt"])):
            run(2)  # builds, and touches memory
            events = self._profiled(lambda: run(request["times"]))
        _, rows = split(events, [], self.lent.device.type == "cuda")
        return {"rows": dict(sorted(rows.items(), key=lambda row: -row[1][0])[:MAX_ROWS])}

    def do_profile(self, request: Mapping[str, Any]) -> dict[str, Any]:
        for op in request["ops"]:
            self._watch(op)
        from model import train

        watch_data(train)
        trainer = train.Trainer(request["spec"])
        tokens = self.lent.read(request["tokens"]).cpu()
        trainer.warm_up(tokens)
        seed, lengths = request["seed"], request["lengths"]
        if self.lent.device.type == "cpu":
            torch.ones(TOUCHED, dtype=torch.uint8)
        return {
            "runs": [self._run(trainer, tokens, seed, n) for n in lengths],
            "plain": [_timed(trainer, tokens, seed, n) for n in lengths[-2:]],
            "implementations": trainer.describe()["implementations"],
            "threads": torch.get_num_threads(),
        }

    def _run(self, trainer: Any, tokens: Tensor, seed: int, steps: int) -> dict[str, Any]:
        for counts in self.counts.values():
            counts.clear()
        took: list[float] = []
        events = self._profiled(lambda: took.append(_timed(trainer, tokens, seed, steps)))
        ops, rest = split(events, list(self.counts), self.lent.device.type == "cuda")
        longest = sorted(rest.items(), key=lambda row: -row[1][0])[:MAX_ROWS]
        return {
            "seconds": took[0],
            "ops": ops,
            "rest": dict(longest),
            "calls": {
                op: [[json.loads(form), count] for form, count in counts.items()]
                for op, counts in self.counts.items()
            },
            "data": waited(events),
            "python_us": sum(e.self_cpu_time_total for e in events if is_python(e.name)),
        }

    def _profiled(self, work: Callable[[], None]) -> list[FunctionEvent]:
        on_gpu = self.lent.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities) as profiler:
            work()
            if on_gpu:
                torch.cuda.synchronize()
        return [e for e in profiler.events() or () if e.device_type.name == "CPU"]

    def _watch(self, op: str) -> None:
        """Put a function that names its calls in the op's place, before the model imports the op."""
        module = __import__(f"kernels.{op}", fromlist=["_"])
        function = getattr(module, op)
        signature = inspect.signature(function)
        counts = self.counts[op] = Counter()

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return function(*args, **kwargs)
            counts[_form(signature.bind(*args, **kwargs).arguments)] += 1
            # Not record_function: what is launched past torch's dispatcher, as by Triton, is linked to scopes of functions, never to a user's.
            with torch._C._profiler._RecordFunctionFast(_SCOPE + op):
                return function(*args, **kwargs)

        setattr(module, op, watched)


def split(
    events: Iterable[FunctionEvent], ops: list[str], on_gpu: bool
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Time [us], how much of it backward, and calls of each op, and of everything else by name; together all the time of the events,
    none twice."""
    events = list(events)
    of_ops: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0])
    rest: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0])
    forward = _forward_ops(events, ops)
    open_ends = [(event, False) for event in events if event.cpu_parent is None]
    while open_ends:
        event, backward = open_ends.pop()
        backward = backward or event.name.startswith(_BACKWARD)
        named = _op_named(event.name, ops)
        op = named or (forward.get(event.sequence_nr) if event.name.startswith(_BACKWARD) else None)
        if op is not None or event.name == _DATA:
            row = rest[_DATA] if op is None else of_ops[op]
            taken = event.device_time_total if on_gpu else event.cpu_time_total
            # the second of an op's custom ops, which torch.compile leaves without a node of autograd
            backward = backward or event.name.endswith("_backward")
            row[2] += op is None or (named is not None and not event.name.endswith("backward"))
        else:
            row, taken = rest[event.name], _own_time(event, on_gpu)
            row[2] += 1
            open_ends += ((child, backward) for child in event.cpu_children)
        row[0] += taken
        row[1] += backward * taken
    return dict(of_ops), dict(rest)


def _timed(trainer: Any, tokens: Tensor, seed: int, steps: int) -> float:
    """Seconds of one training run of so many steps."""
    started = time.monotonic()
    trainer.train(tokens, seed, float("inf"), lambda _: None, steps)
    return time.monotonic() - started


def watch_data(module: Any) -> None:
    """Name in the profile what the training loop draws with `next`. What another thread draws ahead is not waited for."""
    loop = threading.get_ident()

    def drawn(*args: Any) -> Any:
        if threading.get_ident() != loop:
            return next(*args)
        with record_function(_DATA):
            return next(*args)

    module.next = drawn


def is_python(name: str) -> bool:
    """Whether an event's own time is Python's: an op's call, an autograd function, a step of an optimizer; neither an operator nor a node in C++."""
    if name.startswith((_SCOPE, "kernels::")):
        return True
    return "::" not in name and name != _DATA and not re.search(r"Backward\d+$", name)


def waited(events: Iterable[FunctionEvent]) -> list[float]:
    """Time [us] that the loop spent on drawing, and how often it drew."""
    times = [event.cpu_time_total for event in events if event.name == _DATA]
    return [sum(times), len(times)]


def _own_time(event: FunctionEvent, on_gpu: bool) -> float:
    return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)


def _op_named(name: str, ops: list[str]) -> str | None:
    """The op that an event belongs to by its name: a watched call, or one of its custom ops, which is all that torch.compile leaves."""
    for op in ops:
        if name == _SCOPE + op or name == f"kernels::{op}" or name.startswith(f"kernels::{op}_"):
            return op
    return None


def _forward_ops(events: list[FunctionEvent], ops: list[str]) -> dict[int, str]:
    """Sequence number of autograd -> the op whose call made the node; of the calls that carry a number, the last has made it."""
    made: dict[int, tuple[float, str | None]] = {}
    for event in events:
        names = [e.name for e in _outwards(event)]
        if event.sequence_nr < 0 or any(name.startswith(_BACKWARD) for name in names):
            continue
        outermost = next((op for name in reversed(names) if (op := _op_named(name, ops))), None)
        started = event.time_range.start
        if started >= made.get(event.sequence_nr, (started, None))[0]:
            made[event.sequence_nr] = (started, outermost)
    return {number: op for number, (_, op) in made.items() if op is not None}


def _outwards(event: FunctionEvent | None) -> Iterator[FunctionEvent]:
    """The event, and those that it lies in."""
    while event is not None:
        yield event
        event = event.cpu_parent


def _form(arguments: Mapping[str, Any]) -> str:
    """The arguments of a call as JSON: tensors as [dtype, shape, whether a gradient flows], numbers as they are; `impl` is no part of the op."""
    grad = torch.is_grad_enabled()
    return json.dumps(
        {
            name: [str(v.dtype)[6:], list(v.shape), grad and v.requires_grad]
            if isinstance(v, Tensor)
            else v
            for name, v in arguments.items()
            if name != "impl"
        },
        default=str,
    )
