"""Triton's kernels on cases that the correctness gate would draw, in Triton's interpreter: `python tests/drawn.py OP,OP CASES SEED`.

Where there is no GPU this is as near as one gets to the gate: its contracts draw shapes, strides, dtypes and values, its comparer says how far from
float64 a result and a gradient may be. What no kernel may read is NaN.
"""

from __future__ import annotations

import importlib
import itertools
import random
import sys
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from bench.comparison import Standard
from bench.contracts import Case, Input, contract

LARGEST = 40_000  # elements of a case's inputs: the interpreter takes a second for 100,000


def rounded(cast: Any) -> Any:
    """A cast from float32 to bfloat16 that rounds to nearest even, as every device does; the interpreter cuts off, and errs by twice as much."""

    def cast_impl(builder: Any, source: Any, to: Any) -> Any:
        if (source.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return cast(builder, source, to)
        bits = torch.from_numpy(np.array(source.data, np.float32)).bfloat16().view(torch.int16)
        return interpreter.TensorHandle(bits.numpy().view(np.uint16), tl.bfloat16)

    return cast_impl


def laid(wanted: Input, values: Tensor) -> Tensor:
    """The values as the input lies, NaN around and between them."""
    dtype = getattr(torch, wanted.dtype)
    room = torch.full((wanted.span() + 8,), float("nan") if dtype.is_floating_point else -1).to(
        dtype
    )
    lies = room.as_strided(wanted.shape, wanted.strides(), int(wanted.layout == "offset"))
    rows = 1 if lies.ndim and lies.stride(0) == 0 else len(lies)
    lies[:rows].copy_(values[:rows])
    return lies


def check(op: str, case: Case, generator: torch.Generator) -> None:
    """Results and gradients of one case. Raises AssertionError with what is wrong."""
    asked, function = contract(op), getattr(importlib.import_module(f"kernels.{op}"), op)
    lies = {name: laid(each, each.values(generator)) for name, each in case.inputs.items()}
    before = {name: t.clone() for name, t in lies.items()}
    wrt = asked.wrt(case)
    given = {name: t.requires_grad_() if name in wrt else t for name, t in lies.items()}
    found = function(**given, **case.scalars, impl="triton")
    if asked.updates:
        found = tuple(lies[name] for name in asked.results)
    found = found if isinstance(found, tuple) else (found,)
    answer = dict(zip(asked.results, (t.detach() for t in found), strict=True))
    upstream = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in found]
    if wrt:
        gradients = torch.autograd.grad(found, [given[name] for name in wrt], upstream)
        answer |= {f"d{name}": g for name, g in zip(wrt, gradients, strict=True)}
    standard = Standard(asked, case, before, upstream, wrt, device="cpu")
    wrong, _ = standard.examine(answer)
    assert not wrong, f"{op}, {case.label()}: {wrong}"


def main(ops: str, cases: int, seed: int) -> None:
    interpreter.InterpreterBuilder.cast_impl = rounded(interpreter.InterpreterBuilder.cast_impl)
    torch.set_num_threads(1)
    for op in ops.split(","):
        check_drawn(op, cases, seed)


def check_drawn(op: str, cases: int, seed: int) -> None:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    drawn = itertools.chain(contract(op).corners(rng), iter(lambda: contract(op).draw(rng), None))
    small = (c for c in drawn if sum(each.span() for each in c.inputs.values()) <= LARGEST)
    for case in itertools.islice(small, cases):
        check(op, case, generator)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
