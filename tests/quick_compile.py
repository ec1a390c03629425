"""The project's kernels in a folder, of which torch.compile makes one in a few seconds: for tests that ask not how fast what it makes is."""

from __future__ import annotations

from pathlib import Path

from agent.lab import Lab

SETTINGS = """
import torch._inductor.config

torch._inductor.config.cpp_cache_precompile_headers = False  # 7 s that a small kernel does not get back
torch._inductor.config.cpp.vec_isa_ok = False  # else programs are compiled to learn which vectors the processor has
"""


def quick(folder: Path, op: str) -> Path:
    """SETTINGS hold in a runner as soon as it has loaded the op."""
    tree = Lab().copy_tree(folder)
    with (tree / "kernels" / f"{op}.py").open("a") as file:
        file.write(SETTINGS)
    return tree
