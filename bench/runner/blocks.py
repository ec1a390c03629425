"""What the runner does while the judge's clock runs: blocks of calls on input sets that lie ready.

stage     {calls}                                       bring input sets to the device
block     {op, impl, mode, sets, keep, backward}        one call on each of these sets in turn, one of them copied out

On a GPU the calls of a block are launched one after another and waited for once, after the last. While the device takes longer for a call than the
host for its launches, the queue is full, and only the launches of the first call show. The shortest call of the trial's shapes there,
muon_update's, moves 94 MB: 31 us at 3.02 TB/s, beside some 10 us of the host's for each of two launches. Where the host is slower (a small matrix
in Newton-Schulz's many products) its launches are timed, for all arms alike, as a step that is not captured in a graph pays for them: an arm that
captures a graph itself gains what it really gains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.runner.calls import Calls, threads
from bench.runner.lending import Lent


class Blocks:
    def __init__(self, lent: Lent, calls: Calls) -> None:
        self.lent = lent
        self.calls = calls
        self.staged: list[tuple[Mapping[str, Any], dict[str, Any], list[Tensor]]] = []

    def do_block(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The results of call number `keep` of the block are copied at once, but into the judge's buffers only after the last call: a kernel that
        watched these buffers would else know which calls nobody will look at."""
        function = self.calls.function(request["op"], request["impl"], request["mode"])
        keep, backward = request["keep"], request["backward"]
        kept: list[list[Tensor]] = []
        with torch.set_grad_enabled(bool(self.staged[request["sets"][0]][0]["wrt"])):
            for i, number in enumerate(request["sets"]):
                call, arguments, upstream = self.staged[number]
                if backward:
                    results, gradients = self.calls.run(function, arguments, call, upstream)
                else:
                    results, gradients = self.calls.forward(function, arguments, call), []
                if i == keep:
                    kept.append(self.lent.taken(results, call["outputs"], "result"))
                    if backward:
                        kept.append(self.lent.taken(gradients, call["gradients"], "gradient"))
        call, _, _ = self.staged[request["sets"][keep]]
        for tensors, where in zip(kept, (call["outputs"], call["gradients"]), strict=False):
            self.lent.copy_out(tensors, where, "result")
        return {}

    def do_stage(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Before the clock starts. Every page is touched, so that no timed call waits for one (1.5 MB: 0.1 ms); by one thread, since all
        runners do it at once."""
        self.staged = [
            (call, self.calls.arguments(call), self.calls.upstream(call))
            for call in request["calls"]
        ]
        with torch.no_grad(), threads(1):
            for _, arguments, upstream in self.staged:
                for value in (*arguments.values(), *upstream):
                    if isinstance(value, Tensor):
                        value.sum()
        return {}
