"""Compile Triton kernels ahead of time for GPUs that need not be here, and read off what each costs: registers, spills, shared memory."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# kernel, signature of its run-time arguments ("*bf16", "i32", "fp32", tuples of these), constexprs, options (num_warps, num_stages)
Entry = tuple[Any, Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]


def compile_all(entries: Iterable[Entry], targets: Sequence[int]) -> list[dict[str, Any]]:
    """One row a kernel and target (80, 90, 100). Raises what Triton raises where a kernel does not compile."""
    rows = []
    for kernel, signature, constants, options in entries:
        types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
        for arch in targets:
            source = ASTSource(
                kernel,
                types,
                dict(constants),
                attrs=_aligned([types[name] for name in kernel.arg_names]),
            )
            compiled = triton.compile(
                source, target=GPUTarget("cuda", arch, 32), options=dict(options)
            )
            usage = {**_usage(compiled.asm["cubin"]), "shared_bytes": int(compiled.metadata.shared)}
            rows.append({"kernel": kernel.fn.__name__, "arch": arch, **usage})
    return rows


def _aligned(types: Sequence[Any]) -> dict[tuple[int, ...], list[list[Any]]]:
    """What the JIT assumes in the trial: addresses and strides (tuples of them) are multiples of 16, so accesses are 16 bytes wide."""
    wide: list[list[Any]] = [["tt.divisibility", 16]]
    found: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, kind in enumerate(types):
        if isinstance(kind, tuple):
            found.update({(i, j): wide for j, one in enumerate(kind) if one != "constexpr"})
        elif kind.startswith("*"):
            found[(i,)] = wide
    return found


def _usage(cubin: bytes) -> dict[str, int]:
    """Registers and stack (spills) of a cubin, by the cuobjdump that Triton ships."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    found = dict(re.findall(r"(REG|STACK):(\d+)", done.stdout))
    return {"registers": int(found["REG"]), "stack_bytes": int(found["STACK"])}
