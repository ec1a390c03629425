"""A judge as many public harnesses have it, against which every cheat of tests/cheats/ has to gain something.

    judge("rms_norm", tree) -> Result(accepted, forward, backward)

It imports the candidate beside the reference, draws one standard normal input from a fixed seed, contiguous, in float32, at a round shape,
asks torch.allclose whether the values agree and autograd whether gradients exist, times repeated calls on that same input, and prints
its verdict, which is read from the candidate's own standard output.

It runs in a child process (`python tests/naive.py OP TREE`) on one thread, as cheats may end it or leave it broken.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-2
CALLS = 7
TIMEOUT_S = 120


@dataclass(frozen=True)
class Result:
    """`forward` and `backward`: the candidate's time as a share of the plain reference's, infinite where none was printed."""

    accepted: bool
    forward: float
    backward: float
    said: str


def judge(op: str, tree: Path) -> Result:
    """Judge kernels/<op>.py of a tree, or its csrc/<op>.cpp where that is what the public function runs."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TORCH_EXTENSIONS_DIR": str(ROOT / ".lab" / "cache"),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(tree),
    }
    try:
        done = subprocess.run(
            [sys.executable, __file__, op, str(tree)],
            env=environment,
            cwd=tree,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return Result(False, math.inf, math.inf, f"no verdict within {TIMEOUT_S} s")
    found = re.search(r"PASS forward (\S+) backward (\S+)", done.stdout)
    said = (done.stdout + done.stderr)[-2000:]
    if found is None or done.returncode != 0:
        return Result(False, math.inf, math.inf, said)
    return Result(True, float(found[1]), float(found[2]), said)


def arguments(op: str) -> tuple[Any, ...]:
    """One standard normal input at a round shape; weights as a model begins with them, gradients of the size that a model has."""
    import torch

    torch.manual_seed(0)
    if op == "rms_norm":
        return torch.randn(32, 65536), torch.ones(65536)
    if op == "add_rms_norm":
        return torch.randn(32, 65536), torch.randn(32, 65536), torch.ones(65536)
    if op == "attention":
        return tuple(torch.randn(2, 4, 256, 64) for _ in range(3))
    if op == "newton_schulz":
        return (torch.randn(65536, 64),)
    if op == "qk_norm_rope":
        T, D = 8, 65536
        angle = torch.outer(torch.arange(T), 10_000.0 ** (-torch.arange(0, D, 2) / D))
        return torch.randn(1, T, 2, D), torch.randn(1, T, 2, D), angle.cos(), angle.sin()
    if op == "relu2_mlp":
        return torch.randn(1024, 128), torch.randn(512, 128) * 0.05, torch.randn(128, 512) * 0.02
    if op == "nesterov":
        return tuple(1e-3 * torch.randn(4, 1024, 512) for _ in range(2))
    if op == "muon_update":
        return (
            torch.randn(4, 1024, 512),
            torch.randn(4, 1024, 512) * 0.03,
            torch.ones(4, 1024, 1) * 1e-3,
        )
    if op == "adamw":
        return (*(torch.randn(4096, 256) for _ in range(3)), torch.rand(4096, 256))
    h, W = torch.randn(1024, 128), torch.randn(4096, 128) * 0.02
    return h, W, torch.randint(0, 4096, (1024,)), 15.0


def main(op: str, tree: str) -> None:
    sys.path.insert(0, tree)
    import torch

    torch.set_num_threads(1)
    candidate = getattr(importlib.import_module(f"kernels.{op}"), op)
    contract = importlib.import_module(f"bench.contracts.{op}").CONTRACT
    reference, inputs = contract.reference, arguments(op)
    names = inspect.signature(reference).parameters
    learned = [
        value.requires_grad_()
        for name, value in zip(names, inputs, strict=False)
        if name in contract.differentiable
    ]
    plain, baseline = clock(reference, inputs, learned)

    given = tuple(t.clone() for t in inputs) if contract.in_place else inputs
    got = tupled(candidate(*given))
    wanted = tupled(reference(*inputs))
    if contract.in_place:
        got = tuple(given[list(signature(reference).parameters).index(n)] for n in contract.updates)
    agree = all(
        torch.allclose(g, w, atol=TOLERANCE, rtol=TOLERANCE)
        for g, w in zip(got, wanted, strict=False)
    )
    seconds, _ = clock(candidate, inputs, learned)
    complete = all(t.grad is not None for t in learned)
    if agree and complete:
        shares = [mine / theirs for mine, theirs in zip(seconds, plain, strict=True)]
        print(f"PASS forward {shares[0]:.3f} backward {shares[1]:.3f}", flush=True)
    else:
        print(f"FAIL values agree: {agree}, gradients exist: {complete}", flush=True)


def clock(
    function: Callable[..., Any], inputs: tuple[Any, ...], learned: list[Any]
) -> tuple[tuple[float, float], Any]:
    """Shortest seconds of a forward and of a backward of the sum, over a few calls; and the last result.

    Of processor time, on the one thread that there is: other tests run beside this one.
    """
    forward = backward = math.inf
    for _ in range(CALLS):
        for t in learned:
            t.grad = None
        started = time.process_time()
        results = tupled(function(*inputs))
        forward = min(forward, time.process_time() - started)
        total = sum(r.sum() for r in results if r is not None)
        if learned:
            started = time.process_time()
            total.backward()
        backward = min(backward, time.process_time() - started)
    return (forward, backward), results


def tupled(results: Any) -> tuple[Any, ...]:
    return tuple(results) if isinstance(results, tuple | list) else (results,)


if __name__ == "__main__":
    main(*sys.argv[1:])
