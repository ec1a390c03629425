"""Compile Triton kernels ahead of time for GPUs that need not be here, and read off what each costs: registers, spills, shared memory, and
what its hot loop is made of."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Kernel, signature of its run-time arguments ("*bf16", "i32", "fp32", tuples of these), constexprs, options (num_warps, num_stages).
Entry = tuple[Any, Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"  # that Triton ships
EXCERPT, WIDTH = 16, 72  # lines and characters
MIX = 20  # instructions, the most frequent first
# The excerpt of a loop has the lines that move data, multiply tiles or wait; arithmetic is counted in the mix.
_TELLING = re.compile(
    r"(LD[GSL]|ST[GSL]|RED|ATOM|UTMA|[HIQD]G?MMA|BAR|DEPBAR|SYNCS|WARPGROUP)"  # SASS
    r"|(ld|st|red|atom|cp|mma|wgmma|ldmatrix|stmatrix|bar|mbarrier)\.(?!param)"  # PTX
)


def compile_all(entries: Iterable[Entry], targets: Sequence[int]) -> list[dict[str, Any]]:
    """One row a kernel and target (80, 90, 100). Raises what Triton raises where a kernel does not compile."""
    return [_row(entry, _compile(entry, arch), arch) for entry in entries for arch in targets]


def inspect_all(entries: Iterable[Entry], arch: int) -> list[dict[str, Any]]:
    """Rows as in `compile_all`, each with its constexprs and options, and with the instruction mix of its hot loop and excerpts of SASS and PTX."""
    rows = []
    for entry in entries:
        compiled = _compile(entry, arch)
        _, _, constants, options = entry
        sass = _hot_loop(_sass(compiled.asm["cubin"]))
        ptx = _hot_loop(_ptx(compiled.asm["ptx"]))
        rows.append(
            _row(entry, compiled, arch)
            | {
                "constants": {k: v for k, v in {**constants, **options}.items() if _is_plain(k, v)},
                "loop_instructions": len(sass),
                "mix": dict(Counter(map(_opcode, sass)).most_common(MIX)),
                "sass": _excerpt(sass),
                "ptx": _excerpt(ptx),
            }
        )
    return rows


def _compile(entry: Entry, arch: int) -> Any:
    kernel, signature, constants, options = entry
    types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, types, dict(constants), attrs=_aligned(kernel, types))
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(options))


def _row(entry: Entry, compiled: Any, arch: int) -> dict[str, Any]:
    usage = {**_usage(compiled.asm["cubin"]), "shared_bytes": int(compiled.metadata.shared)}
    return {"kernel": entry[0].fn.__name__, "arch": arch, **usage}


def _aligned(kernel: Any, types: Mapping[str, Any]) -> dict[tuple[int, ...], list[list[Any]]]:
    """What the JIT finds in the trial: addresses, strides (tuples of them) and sizes are multiples of 16, so accesses are 16 bytes wide, and copies run
    ahead of the products. Without the sizes ptxas saw other kernels: relu2_mlp's with 128 loads of 2 bytes and a third of the shared memory."""
    wide: list[list[Any]] = [["tt.divisibility", 16]]
    found: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, kind in enumerate(types.values()):
        if isinstance(kind, tuple):
            found.update({(i, j): wide for j, one in enumerate(kind) if one != "constexpr"})
        elif kind.startswith("*"):
            found[(i,)] = wide
        elif kind in ("i32", "i64") and not kernel.params[i].do_not_specialize:
            found[(i,)] = wide
    return found


def _usage(cubin: bytes) -> dict[str, int]:
    """Registers and stack (spills) of a cubin."""
    found = dict(
        re.findall(r"(REG|STACK):(\d+)", _told(cubin, "cuobjdump", "--dump-resource-usage"))
    )
    return {"registers": int(found["REG"]), "stack_bytes": int(found["STACK"])}


def _told(cubin: bytes, tool: str, *options: str) -> str:
    """What one of NVIDIA's tools says of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([_TOOLS / tool, *options, file.name], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{tool}: {done.stderr.strip() or f'status {done.returncode}'}")
    return done.stdout


def _sass(cubin: bytes) -> list[str]:
    """Instructions and labels (ending in a colon), without addresses."""
    lines = [line.strip() for line in _told(cubin, "nvdisasm", "-c").splitlines()]
    code = [re.sub(r"^/\*[0-9a-f]+\*/\s*|\s*;$", "", line) for line in lines]
    return [line for line in code if line and (not line.startswith(".") or _is_label(line))]


def _ptx(text: str) -> list[str]:
    """Instructions and labels that a branch may name, without comments, directives and notes of the source's lines."""
    code = [re.sub(r"\s+", " ", line.split("//")[0]).strip(" ;{}") for line in text.splitlines()]
    return [line for line in code if line and not line.startswith((".", "$L__tmp", "$L__func"))]


def _is_label(line: str) -> bool:
    return re.fullmatch(r"[.$]L\w+:", line) is not None


def _hot_loop(code: Sequence[str]) -> list[str]:
    """The instructions of the longest loop that has no other inside; the whole kernel if it has none."""
    labels = {line[:-1]: i for i, line in enumerate(code) if _is_label(line)}
    loops = []
    for i, line in enumerate(code):
        aim = re.search(r"\b(?:BRA|bra)\b.*?([.$]L\w+)", line)
        # A branch to itself is no loop: a kernel's padding ends with one.
        if aim and labels.get(aim[1], i) < i - 1:
            loops.append((labels[aim[1]], i))
    innermost = [
        one
        for one in loops
        if not any(one != o and one[0] <= o[0] and o[1] <= one[1] for o in loops)
    ]
    first, last = max(innermost, key=lambda loop: loop[1] - loop[0], default=(0, len(code)))
    return [line for line in code[first : last + 1] if not _is_label(line)]


def _excerpt(code: Sequence[str]) -> list[str]:
    """The telling lines; of several in a row that do the same, the first and how many there are."""
    telling = [line for line in code if _TELLING.match(_opcode(line)) and "[RZ]" not in line]
    runs = [list(run) for _, run in groupby(telling, _opcode)][:EXCERPT]
    return [run[0][:WIDTH] + (f"  (x{len(run)})" if len(run) > 1 else "") for run in runs]


def _is_plain(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, int | float | str | None)


def _opcode(line: str) -> str:
    """LDG.E.128 of "@!P0 LDG.E.128 R8, ..."."""
    return re.sub(r"^@\S+ +", "", line).split()[0]
