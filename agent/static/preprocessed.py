"""A file of csrc/ as the preprocessor gives it to the compiler, under every set of flags that kernels/jit.py builds with.

Only lines that come from csrc/ are handed on; the line markers tell which they are.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import platform
import re
import resource
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench import hardware

TIMEOUT_S = 20
_MEMORY = 2 << 30
_OUTPUT = 128 << 20  # 170,000 lines of torch's headers take some 8 MB
JIT = Path(__file__).resolve().parents[2] / "kernels" / "jit.py"
# Those of torch.utils.cpp_extension's COMMON_NVCC_FLAGS, with which it builds.
CUDA_MACROS = (
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
)


def preprocess(tree: Path, path: str, source: str) -> list[tuple[str, int, str]] | None:
    """(file, line number, text) of each line that comes from csrc/, for every instruction set that kernels/jit.py builds for.

    None if there is no compiler, or if it reports an error (the build gate then says which). Raises TimeoutExpired and Unread.
    """
    compiler = _compiler(path)
    if compiler is None:
        return None
    own = [source, *(h.read_text(errors="replace") for h in sorted((tree / "csrc").glob("*.h")))]
    branches = any(re.search(r"(?:#|%:)[\s\\]*(?:if|elif)", text) for text in own)
    # nvcc gets no flags of an instruction set.
    targets = _targets() if branches and not path.endswith(".cu") else {"": ()}
    # What an older compiler has no flags for it cannot build, and that is no fault of the file.
    targets = {
        n: f for n, f in targets.items() if not f or _run(compiler, path, "", tree, f) is not None
    }
    texts = {name: _run(compiler, path, source, tree, flags) for name, flags in targets.items()}
    unread = [name for name, text in texts.items() if text is None]
    if 0 < len(unread) < len(texts):
        raise Unread(
            f"does not pass the preprocessor for {', '.join(unread)}, so what its macros become there cannot be seen: it has to pass for every "
            "instruction set; write plain C++ there in place of #error"
        )
    found: set[tuple[str, int, str]] = set()
    for text in filter(None, texts.values()):
        found |= set(_own_lines(text, path, f"{tree}/csrc/"))
    return sorted(found) or None


class Unread(Exception):
    """The preprocessor takes a file for some instruction sets only, or makes too much of it; the message says which."""


def _targets() -> dict[str, tuple[str, ...]]:
    """ISA_FLAGS of those that this machine's compiler knows, as kernels/jit.py has it in `targets`."""
    known = _flags()[1]
    return known if platform.machine() in ("x86_64", "AMD64") else {"generic": known["generic"]}


def _compiler(path: str) -> str | None:
    if path.endswith(".cu"):
        return hardware.toolkit("nvcc")
    return shutil.which(os.environ.get("CXX", "c++"))


def _run(compiler: str, path: str, source: str, tree: Path, target: tuple[str, ...]) -> str | None:
    """The preprocessed source under the flags of kernels/jit.py, or None. Raises TimeoutExpired."""
    cuda = path.endswith(".cu")
    # Named as jit names it, so that no branch can tell this run from the build.
    name = f"-DTORCH_EXTENSION_NAME={Path(path).stem}_{secrets.token_hex(6)}"
    flags = (*CUDA_MACROS, *_flags()[2]) if cuda else (*_flags()[0], *target, "-fPIC")
    command = [
        compiler,
        "-E",
        "-x",
        "cu" if cuda else "c++",
        *flags,
        f"-I{tree / 'csrc'}",
        *_includes(),
        name,
        str(tree / path) if cuda else "-",
    ]
    # Into a file, whose size has a limit: a few macros can make gigabytes.
    with tempfile.TemporaryFile() as out:
        try:
            done = subprocess.run(
                command,
                input=source.encode(),
                stdout=out,
                stderr=subprocess.DEVNULL,
                timeout=TIMEOUT_S,
                cwd="/",
                env={"PATH": "/usr/local/cuda/bin:/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"},
                preexec_fn=_limits,
            )
        except OSError:
            return None
        if os.fstat(out.fileno()).st_size >= _OUTPUT:
            raise Unread(f"more than {_OUTPUT >> 20} MB after the preprocessor")
        out.seek(0)
        return out.read().decode(errors="replace") if done.returncode == 0 else None


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_OUTPUT, _OUTPUT))
    resource.setrlimit(resource.RLIMIT_CPU, (TIMEOUT_S, TIMEOUT_S))


@functools.cache
def _flags() -> tuple[tuple[str, ...], dict[str, tuple[str, ...]], tuple[str, ...]]:
    """CXX_FLAGS, ISA_FLAGS and CUDA_FLAGS of kernels/jit.py, which is read and not imported: the judge imports no kernels."""
    found = {}
    for node in ast.parse(JIT.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id in ("CXX_FLAGS", "ISA_FLAGS", "CUDA_FLAGS"):
                found[node.targets[0].id] = ast.literal_eval(node.value)
    return found["CXX_FLAGS"], found["ISA_FLAGS"], found["CUDA_FLAGS"]


@functools.cache
def _includes() -> tuple[str, ...]:
    """Where torch's headers lie, without importing torch."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return ()
    include = Path(found.submodule_search_locations[0]) / "include"
    return ("-isystem", str(include), "-isystem", str(include / "torch/csrc/api/include"))


def _own_lines(text: str, path: str, folder: str) -> Iterator[tuple[str, int, str]]:
    """Lines of a preprocessed file that come from standard input or from csrc/; a call that was broken before its parenthesis is joined."""
    name, number = "", 0
    held: tuple[str, int, str] | None = None
    for line in text.splitlines():
        # Of what is not of csrc/, 170,000 lines a file, only the markers count.
        if not name and not line.startswith("#"):
            continue
        marker = re.match(r'#(?:line)? (\d+) "(.*?)"( 1\b)?', line)
        if marker:
            file = marker[2]
            own = file == "<stdin>" or file.startswith(folder)
            if own and marker[3] and not name:
                # Entered from a header that is not of csrc/, by the name of one of the system.
                yield f"csrc/{Path(file).name}", 1, f"#shadows {Path(file).name}"
            name = "" if not own else path if file == "<stdin>" else f"csrc/{Path(file).name}"
            number = int(marker[1])
            continue
        if name and line.strip():
            # A call may have its parenthesis on the next line.
            if held and held[0] == name and line.lstrip().startswith(("(", "::")):
                held = (name, held[1], f"{held[2]} {line.strip()}")
            else:
                yield from (held,) if held else ()
                held = (name, number, line)
        number += 1
    yield from (held,) if held else ()
