"""What the runner does for bench/inspection.py: say what compilers make of an op. Advice for a researcher, never a verdict.

inspect   {op, arch}       the op's Triton kernels, compiled ahead of time: registers, stack, shared memory, the hot loop   -> {kernels}
remarks   {source}         what g++ says of the loops of a source, compiled as kernels/jit.py compiles it                   -> {loops}
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.runner.lending import Refusal

COMPILER_S = 200.0
MAX_LOOPS, MAX_REASON = 80, 120
_FLAG = "-fopt-info-vec-optimized-missed"
_REMARK = re.compile(r"([^:\s]+):(\d+):\d+: (?:optimized|missed): +(?:loop )?(.*)")


class Inspecting:
    def do_inspect(self, request: Mapping[str, Any]) -> dict[str, Any]:
        from bench import aot

        module = __import__(f"kernels.{request['op']}", fromlist=["_"])
        return {"kernels": aot.inspect_all(getattr(module, "AOT", ()), request["arch"])}

    def do_remarks(self, request: Mapping[str, Any]) -> dict[str, Any]:
        from torch.utils import cpp_extension

        from kernels import jit

        source, compiler = Path(request["source"]), os.environ.get("CXX", "c++")
        if "clang" in jit._compiler_version():
            raise Refusal(f"{compiler} is not g++, whose remarks are read: set CXX to a g++")
        flags = (*jit.CXX_FLAGS, *jit.ISA_FLAGS[jit.isa()], "-fPIC", "-DTORCH_EXTENSION_NAME=lab")
        includes = [f"-I{folder}" for folder in (source.parent, *cpp_extension.include_paths())]
        done = subprocess.run(
            [compiler, *flags, *includes, _FLAG, "-c", str(source), "-o", os.devnull],
            capture_output=True, text=True, timeout=COMPILER_S,
        )  # fmt: skip
        if done.returncode:
            raise Refusal(jit._diagnosis(done.stdout + done.stderr, source))
        return {"loops": loops(done.stderr, source.parent)}


def loops(said: str, folder: Path) -> list[dict[str, Any]]:
    """Each loop of the sources in `folder`: where it is, its text, and how often it came out how (once an instance of a template)."""
    outcomes: dict[tuple[str, int], Counter[str]] = {}
    failed: Counter[str] | None = None  # g++ gives the reason on a later line
    for line in said.splitlines():
        remark = _REMARK.match(line)
        if remark is None or Path(remark[1]).parent != folder:
            continue
        where, outcome = (Path(remark[1]).name, int(remark[2])), remark[3][:MAX_REASON]
        if outcome.startswith("vectorized"):
            outcomes.setdefault(where, Counter())[outcome] += 1
        elif outcome == "couldn't vectorize loop":
            failed = outcomes.setdefault(where, Counter())
        elif outcome.startswith("not vectorized: ") and failed is not None:
            failed[outcome] += 1
            failed = None
    return [
        {"file": file, "line": number, "text": _line(folder / file, number), "outcomes": dict(all_)}
        for (file, number), all_ in sorted(outcomes.items())[:MAX_LOOPS]
    ]


def _line(path: Path, number: int) -> str:
    lines = path.read_text(errors="replace").splitlines()
    return lines[number - 1].strip()[:100] if number <= len(lines) else ""
