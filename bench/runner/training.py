"""What the runner does in a trial: set up the model's Trainer, train when the bell rings, give its weights away, map rows to logits.

setup     {spec, ops, warm_up}               build model.train.Trainer and, where random tokens are lent, warm it up  -> {describe, bytes}
train     {seed, seconds, steps, moments, dtype}    the bell: the shard comes as a descriptor; progress lines until the answer, which describes
                                             calls of ops at so many moments (recording.py)
weights   {out}                              the model's state as one run of bytes
release   {}                                 give back memory that the GPU's allocator holds and nobody uses
restore   {weights}                          the other way round: the state of a model that another runner has trained
logits    {rows, out, training}              map token rows to logits; training: the model's mode, null leaves it
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.runner import shards
from bench.runner.lending import Lent, Refusal
from bench.runner.recording import Recorder


class Training:
    def __init__(
        self, lent: Lent, send: Callable[[Mapping[str, Any]], None], recorder: Recorder
    ) -> None:
        self.lent = lent
        self.send = send
        self.recorder = recorder
        self.trainer: Any = None
        self.launches: Counter[str] = Counter()
        self.counted: _Counted

    def do_setup(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self.lent.device.type == "cuda":
            # before anything compiles: the launchers of torch.compile look for hooks when they are made
            self._count_launches()
        self.recorder.watch(request["ops"])
        from model.train import Trainer

        self.trainer = Trainer(request["spec"])
        if request["warm_up"] is None:
            return {"bytes": self._bytes()}
        # before the warm-up: what torch.compile made of a table it makes again when the table has changed
        self.counted = _Counted()
        self.trainer.warm_up(self.lent.read(request["warm_up"]).cpu())
        return {"describe": self.trainer.describe(), "bytes": self._bytes()}

    def do_train(self, request: Mapping[str, Any], fd: int) -> dict[str, Any]:
        tokens = shards.mapped(fd, request["dtype"])

        def report(progress: Mapping[str, Any]) -> None:
            self.send({"nonce": request["nonce"], "progress": dict(progress)})

        self.counted.begin()
        self.recorder.begin(request["seconds"], request["moments"])
        trained = self.trainer.train(
            tokens, request["seed"], request["seconds"], report, request["steps"]
        )
        calls = self.counted.end()
        return {
            "trained": trained,
            "calls": dict(calls),
            "launches": dict(self.launches),
            "kept": self.recorder.end(),
        }

    def do_weights(self, request: Mapping[str, Any]) -> dict[str, Any]:
        raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in self._state()]
        self.lent.copy_out([torch.cat(raw)], [request["out"]], "weights")
        return {}

    def do_release(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Give back what the GPU's allocator holds: the process that scores needs room beside this one."""
        if self.lent.device.type == "cuda":
            torch.cuda.empty_cache()
        return {}

    def do_restore(self, request: Mapping[str, Any]) -> dict[str, Any]:
        weights, at = self.lent.read(request["weights"]), 0
        for t in self._state():
            end = at + t.nbytes
            t.copy_(weights[at:end].clone().view(t.dtype).view(t.shape))
            at = end
        return {}

    def do_logits(self, request: Mapping[str, Any]) -> dict[str, Any]:
        model, training = self.trainer.model, request["training"]
        modes = {module: module.training for module in model.modules()}
        if training is not None:
            model.train(training)
        with torch.set_grad_enabled(bool(training)):
            logits = self.trainer.logits(self.lent.read(request["rows"]))
        for module, mode in modes.items():
            module.training = mode
        self.lent.copy_out([logits], [request["out"]], "logits")
        return {}

    def _state(self) -> list[Tensor]:
        """Every tensor of the model's state, by name."""
        model = getattr(self.trainer, "model", None)
        state = dict(model.state_dict()) if isinstance(model, torch.nn.Module) else {}
        if not state or not all(isinstance(t, Tensor) for t in state.values()):
            raise Refusal(
                "model/train.py: expected Trainer.model to be the torch.nn.Module whose state_dict() holds, as tensors, all that is "
                f"learned; got {type(model).__name__} with {len(state)} entries"
            )
        return [t.detach() for _, t in sorted(state.items())]

    def _bytes(self) -> int:
        return sum(t.nbytes for t in self._state())

    def _count_launches(self) -> None:
        from triton import knobs

        def launched(metadata: Any) -> None:
            self.launches[metadata.get()["name"]] += 1

        knobs.runtime.launch_enter_hook.add(launched)


class _Counted:
    """Calls of each implementation, as "op/impl", and into each op's library, as "op", between `begin` and `end`.

    Both, because an implementation may need its library for some shapes only, and inside torch.compile only the library is seen.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.before: Counter[str] = Counter()
        tables = [
            (name.removeprefix("kernels."), module.IMPLEMENTATIONS)
            for name, module in list(sys.modules.items())
            if name.startswith("kernels.") and hasattr(module, "IMPLEMENTATIONS")
        ]
        self.originals = [(table, dict(table)) for _, table in tables]
        for op, table in tables:
            table.update({impl: self._counting(f, f"{op}/{impl}") for impl, f in table.items()})

    def begin(self) -> None:
        self.counts.clear()
        self.before = self._library()

    def end(self) -> Counter[str]:
        """The counts; from here on nothing is counted."""
        for table, original in self.originals:
            table.update(original)
        return self.counts + (self._library() - self.before)

    def _library(self) -> Counter[str]:
        jit = sys.modules.get("kernels.jit")
        return Counter(jit.calls) if jit else Counter()

    def _counting(self, function: Any, key: str) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling():
                self.counts[key] += 1
            return function(*args, **kwargs)

        return call
