"""A few calls of an op without a judge at the other end: what runs under compute-sanitizer (bench/sanitizer.py), which starts its own process.

    python -m bench.runner.rehearsal PLAN

PLAN is JSON: {tree, op, device, calls, word}; a call is {inputs: {name: {dtype, shape, strides, skew, below}}, scalars, wrt}. Every tensor is an
allocation of its own, no longer than what it spans, and nothing is written between its rows: so a read past a row or past the end is seen.
`word` is printed when all calls are done.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.protocol import span


def main() -> None:
    gc.enable()  # bench/sandbox/confine.py has turned it off for the imports
    plan = json.loads(sys.argv[1])
    sys.path.insert(0, plan["tree"])
    function = getattr(__import__(f"kernels.{plan['op']}", fromlist=["_"]), plan["op"])
    torch.manual_seed(0)
    for call in plan["calls"]:
        rehearse(function, call, plan["device"])
    if plan["device"] == "cuda":
        torch.cuda.synchronize()
    print(plan["word"], flush=True)


def rehearse(function: Any, call: Mapping[str, Any], device: str) -> None:
    """One call forward, and backward where there is something to differentiate."""
    inputs = {name: drawn(wanted, device) for name, wanted in call["inputs"].items()}
    leaves = [inputs[name].requires_grad_() for name in call["wrt"]]
    with torch.set_grad_enabled(bool(leaves)):
        results = function(**inputs, **call["scalars"])
    results = results if isinstance(results, tuple) else (results,)
    if leaves:
        torch.autograd.grad(results, leaves, [torch.ones_like(r) for r in results])


def drawn(wanted: Mapping[str, Any], device: str) -> Tensor:
    """A tensor that lies as asked, with nothing written between its rows: drawn on the CPU, and copied."""
    dtype, shape, strides = getattr(torch, wanted["dtype"]), wanted["shape"], wanted["strides"]
    memory = torch.empty(span(shape, strides) + wanted["skew"], dtype=dtype, device=device)
    tensor = memory.as_strided(shape, strides, wanted["skew"])
    apart = tensor[:1] if strides[:1] == [0] else tensor  # an expanded tensor is written once
    if dtype.is_floating_point:
        apart.copy_(torch.randn(apart.shape))
    else:
        apart.copy_(torch.randint(0, wanted["below"], apart.shape))
    return tensor


if __name__ == "__main__":
    main()
