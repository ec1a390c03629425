"""The build gate: every C++ source that changed compiles, every CUDA source where nvcc is, and every Triton kernel of a changed op
ahead of time, for GPUs that need not be here.

C++ goes through kernels/jit.py into the shared cache, so that later runners find the object; Triton's registers, spills and shared memory are
read from the cubin and reported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import hardware
from bench.contracts import ops
from bench.finding import Finding
from bench.judge import Judge, Refused
from bench.sandbox import devices
from bench.sandbox.limits import default

TARGETS = (80, 90, 100)  # A100, H100, B200: for all of them where there is no GPU
TIMEOUT_S = 300.0
LARGEST_FILE = 128 << 20  # that a compiler may write: what is built stays for a month


def build(tree: Path, changed: Sequence[str]) -> Finding:
    """Build what `changed` (paths relative to the tree) touches. After a header, every source beside it is asked for, and
    kernels/jit.py compiles those that name it.

    Evidence: seconds and the shared object of each source, and what the compiler says of each Triton kernel.
    """
    evidence: dict[str, Any] = {}
    try:
        sources = _sources(tree, changed)
        if sources:
            evidence |= _compiled(tree, sources)
        for op in (op for op in ops() if f"kernels/{op}.py" in changed):
            with Judge(tree) as judge:
                judge.ask("load", op=op, tree=str(judge.tree))
                rows = judge.ask("aot", timeout=TIMEOUT_S, op=op, targets=_targets())["kernels"]
                evidence.setdefault("triton", {})[op] = rows
    except Refused as refused:
        return Finding(False, str(refused), {**evidence, "kind": refused.kind})
    return Finding(True, _summary(evidence), evidence)


def build_all(tree: Path) -> Finding:
    """Build every source of a tree into the cache, which runners can only read."""
    return build(tree, [f"csrc/{path.name}" for path in (tree / "csrc").glob("*")])


def _targets() -> list[int]:
    """The architectures that Triton kernels are compiled for: the GPU's that is here, on which alone they have to run, or else TARGETS."""
    own = re.sub(r"\D", "", devices.architecture())
    return [int(own)] if own else list(TARGETS)


def _compiled(tree: Path, sources: Sequence[Path]) -> dict[str, Any]:
    """Seconds and shared object of each source. A compiler uses one core, so the sources are dealt out to one runner for each core."""
    runners = min(len(sources), len(os.sched_getaffinity(0)))
    # Left in this order, the runners end before the pool waits for those who ask them.
    with ThreadPoolExecutor(runners) as pool, ExitStack() as stack:
        judges = [
            stack.enter_context(
                Judge(tree, cache_writable=True, limits=replace(default("cpu"), file=LARGEST_FILE))
            )
            for _ in range(runners)
        ]
        shares = [sources[i::runners] for i in range(runners)]
        answers = list(pool.map(_compile, judges, shares))
    return {
        "build_seconds": {name: s for answer in answers for name, s in answer["seconds"].items()},
        "objects": {name: path for answer in answers for name, path in answer["objects"].items()},
    }


def _compile(judge: Judge, sources: Sequence[Path]) -> dict[str, Any]:
    judge.ask("load", tree=str(judge.tree))
    return judge.ask("build", timeout=TIMEOUT_S, sources=[str(s) for s in sources])


def _sources(tree: Path, changed: Sequence[str]) -> list[Path]:
    csrc = tree.resolve() / "csrc"
    suffixes = (".cpp", ".cu") if hardware.toolkit("nvcc") else (".cpp",)
    everything = sorted(p for p in csrc.glob("*") if p.suffix in suffixes)
    if any(path.startswith("csrc/") and path.endswith(".h") for path in changed):
        return everything
    return [p for p in everything if f"csrc/{p.name}" in changed]


def _summary(evidence: dict[str, Any]) -> str:
    parts = [
        f"{name} in {seconds:.0f} s" for name, seconds in evidence.get("build_seconds", {}).items()
    ]
    for op, rows in evidence.get("triton", {}).items():
        if rows:
            spills = sum(row["stack_bytes"] > 0 for row in rows)
            most = max(row["registers"] for row in rows)
            parts.append(
                f"{op}: {len(rows)} Triton builds, at most {most} registers, {spills} with spills"
            )
    return "built " + "; ".join(parts) if parts else "nothing to build"
