"""What the runner does while the judge's clock runs: blocks of calls on input sets that lie ready.

stage     {calls}                            bring the input sets of the next blocks to the device
block     {op, impl, mode, n, keep}          n calls in a row, one of them copied out
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.lending import Lent
from bench.runner_calls import Calls


class Blocks:
    def __init__(self, lent: Lent, calls: Calls) -> None:
        self.lent = lent
        self.calls = calls
        self.staged: list[tuple[Mapping[str, Any], dict[str, Any], list[Tensor]]] = []

    def do_block(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """`n` calls, rotating over the input sets; the results of call number `keep` are copied into the judge's buffers."""
        function = self.calls.function(request["op"], request["impl"], request["mode"])
        sets = self.staged
        n, keep = request["n"], request["keep"]
        with torch.set_grad_enabled(bool(sets[0][0]["wrt"])):
            for i in range(n):
                call, arguments, upstream = sets[i % len(sets)]
                results, gradients = self.calls.run(function, arguments, call, upstream)
                if i == keep:
                    self.lent.copy_out(
                        [*results, *gradients], [*call["outputs"], *call["gradients"]], "result"
                    )
        if self.lent.device.type == "cuda":
            torch.cuda.synchronize()
        return {}

    def do_stage(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Bring the input sets of the next block to the device, before the clock starts."""
        self.staged = [
            (call, self.calls.arguments(call), self.calls.upstream(call))
            for call in request["calls"]
        ]
        if self.lent.device.type == "cuda":
            torch.cuda.synchronize()
        return {}
