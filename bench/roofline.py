"""What this machine can do at most, measured once and kept: memory bandwidth and matrix product, per dtype, with all threads.

% of limit is always of these figures, never of a data sheet. They are kept in .lab/ceilings.json under the processor's or GPU's name, thread
count and torch version; delete the file to measure again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from bench import ROOT, hardware

if TYPE_CHECKING:
    from bench.contracts import Case, Contract

FILE = ROOT / ".lab" / "ceilings.json"
COPY_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}
MATRIX = {"cpu": 1536, "cuda": 8192}
SAMPLES = 25
# An honest kernel may be so many times as fast as the ceilings: caches bring data two or three times as fast as the copy of 256 MB does, and
# symmetric products on a Gram matrix save two of three products of Newton-Schulz.
BEYOND = 4.0


def ceilings(device: str, *, again: bool = False) -> dict[str, float]:
    """{"bytes_per_s", "flops_float32", "flops_bfloat16"}: best sustained figures of this machine. `again`: measure, and keep the best of both."""
    import torch

    key = f"{hardware.name(device)} torch {torch.__version__}"
    known: dict[str, Any] = json.loads(FILE.read_text()) if FILE.is_file() else {}
    if again or key not in known:
        fresh = _measure(device)
        known[key] = {name: max(rate, known.get(key, fresh)[name]) for name, rate in fresh.items()}
        FILE.parent.mkdir(parents=True, exist_ok=True)
        scratch = FILE.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(known, indent=1))
        os.replace(scratch, FILE)
    found: dict[str, float] = known[key]
    return found


def peak_flops(device: str) -> float:
    """The ceiling that MFU is counted against: the faster of float32 and bfloat16."""
    found = ceilings(device)
    return max(found["flops_float32"], found["flops_bfloat16"])


def bound_seconds(bytes_moved: float, flops: float, dtype: str, device: str) -> float:
    """Least time for this traffic and arithmetic here: the longer of the two. Half precision may be multiplied in float32 where that is faster."""
    found = ceilings(device)
    rate = found["flops_float32"]
    if dtype in ("bfloat16", "float16"):
        rate = max(rate, found["flops_bfloat16"])
    return max(bytes_moved / found["bytes_per_s"], flops / rate)


def limit_of(asked: Contract, case: Case, device: str) -> float:
    """The bound of a call, with its backward unless the case is forward only."""
    dtype = next(i.dtype for i in case.inputs.values() if i.dtype != "int64")
    moved, flops = asked.least_work(case)
    return bound_seconds(moved, flops, dtype, device)


def floor_seconds(bytes_moved: float, flops: float, device: str, *, again: bool = False) -> float:
    """Time below which nothing can have moved this traffic or done this arithmetic here, in whatever dtype: the bound over BEYOND."""
    found = ceilings(device, again=again)
    return max(bytes_moved / found["bytes_per_s"], flops / peak_flops(device)) / BEYOND


def _copied_bytes(device: str) -> int:
    """Bytes of a copy: of a GPU a quarter of what is free at most, since runners may hold the rest."""
    import torch

    if device != "cuda":
        return COPY_BYTES[device]
    return min(COPY_BYTES[device], torch.cuda.mem_get_info()[0] // 4)


def _measure(device: str) -> dict[str, float]:
    import torch

    wait: Callable[[], object] = torch.cuda.synchronize if device == "cuda" else lambda: None

    def seconds(call: Callable[[], object]) -> float:
        times = []
        for _ in range(SAMPLES + 2):
            wait()
            started = time.perf_counter()
            call()
            wait()
            times.append(time.perf_counter() - started)
        return min(times[2:])  # the best: a ceiling is what the machine does when nothing else runs

    source = torch.zeros(_copied_bytes(device) // 4, device=device)
    target = torch.empty_like(source)
    # A processor first fetches the target of a copy, which is a third of the traffic; what is overwritten in place it need not.
    fastest = min(seconds(lambda: target.copy_(source)), seconds(lambda: source.mul_(1.0)))
    found = {"bytes_per_s": 2 * source.nbytes / fastest}
    n = MATRIX[device]
    for dtype in (torch.float32, torch.bfloat16):
        # On a processor without bf16 arithmetic the product takes 48 times as long as in float32: a smaller one tells as much.
        size = n if dtype == torch.float32 or device == "cuda" else n // 2
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        found[f"flops_{str(dtype)[6:]}"] = (
            2 * size**3 / seconds(partial(torch.mm, a, b, out=torch.empty_like(a)))
        )
    return found
