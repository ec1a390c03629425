"""What the runner does in a trial: set up the model's Trainer, train when the bell rings, map rows to logits.

setup     {spec, warm_up}                    build model.train.Trainer and warm it up
train     {tokens, seed, seconds, steps}     the bell: the token file comes as a descriptor; progress lines until the answer
logits    {rows, out}                        map token rows to logits
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from bench.lending import Lent


class Training:
    def __init__(self, lent: Lent, send: Callable[[Mapping[str, Any]], None]) -> None:
        self.lent = lent
        self.send = send
        self.trainer: Any = None

    def do_setup(self, request: Mapping[str, Any]) -> dict[str, Any]:
        from model.train import Trainer

        self.trainer = Trainer(request["spec"])
        self.trainer.warm_up(self.lent.read(request["warm_up"]).cpu())
        return {"describe": self.trainer.describe()}

    def do_train(self, request: Mapping[str, Any], fd: int) -> dict[str, Any]:
        shard = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            # torch notes that the buffer is read-only: that is the point
            warnings.simplefilter("ignore", UserWarning)
            tokens = torch.frombuffer(shard, dtype=getattr(torch, request["dtype"]))

        def report(progress: Mapping[str, Any]) -> None:
            self.send({"nonce": request["nonce"], "progress": dict(progress)})

        return {
            "trained": self.trainer.train(
                tokens, request["seed"], request["seconds"], report, request["steps"]
            )
        }

    def do_logits(self, request: Mapping[str, Any]) -> dict[str, Any]:
        logits = self.trainer.logits(self.lent.read(request["rows"]))
        self.lent.copy_out([logits], [request["out"]], "logits")
        return {}
