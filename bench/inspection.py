"""What compilers make of an op, without running it: for advice, never for a verdict.

`of_op` returns plain JSON: "kernels", a row for each Triton kernel compiled ahead of time for the GPU that is here, or ARCH (bench/aot.py), and "loops", what the C++
compiler says about vectorising each loop of csrc/<op>.cpp and of the headers it includes, with the flags of kernels/jit.py. Both compilers run
in the sandbox, since candidate code could make them read files.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bench.judge import Judge
from bench.sandbox import devices

ARCH = 90  # H100, where no GPU is here
TIMEOUT_S = 240.0


def of_op(op: str, tree: Path) -> dict[str, Any]:
    """Raises Refused where a kernel or a source does not compile."""
    arch = int(re.sub(r"\D", "", devices.architecture()) or ARCH)
    with Judge(tree) as judge:
        judge.ask("load", op=op, tree=str(judge.tree))
        kernels = judge.ask("inspect", timeout=TIMEOUT_S, op=op, arch=arch)["kernels"]
        source, loops = judge.tree / "csrc" / f"{op}.cpp", []
        if source.is_file():
            loops = judge.ask("remarks", timeout=TIMEOUT_S, source=str(source))["loops"]
    return {"op": op, "arch": arch, "kernels": kernels, "loops": loops}
