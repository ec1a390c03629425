"""Build `csrc/<op>.cpp` (or `.cu`) on first use and load it: one shared object an op.

    ops = jit.load("rms_norm")          # torch.ops namespace with the functions that csrc/rms_norm.cpp registers
    y, rstd = ops.forward(x, weight, eps)

The object's name is a hash of what it is made from: sources, headers, flags, torch, compiler. Same content, same object, in any
checkout; another content never finds a stale one. Instruction sets: the flags follow the processor (AVX-512, AVX2 or none) and are part
of the name, so a cache shared by two machines serves each its own object and nothing is built with -march=native.

Two processes that need the same object at once: one builds under a file lock (released by the kernel even on kill -9), the other
waits; the object appears by rename, whole or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

CSRC = Path(__file__).resolve().parent.parent / "csrc"
AHEAD_OF_TIME = CSRC / "build"  # filled by `python setup.py build_ext`

# IEEE arithmetic in the order written: a NaN stays a NaN, and only `#pragma omp simd reduction` reassociates a sum. The two -fno
# flags give up floating-point exceptions and errno, which nobody reads here and which would keep branches scalar.
CXX_FLAGS = ("-std=c++20", "-O3", "-fopenmp-simd", "-fno-trapping-math", "-fno-math-errno")
ISA_FLAGS = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c", "-mprefer-vector-width=512"),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "generic": (),
}  # fmt: skip
CUDA_FLAGS = ("-std=c++20", "-O3", "--use_fast_math", "-lineinfo")


class BuildError(RuntimeError):
    """A source did not compile; the message holds the compiler's own lines."""


def isa() -> str:
    """Instruction set to build for on this processor, by torch's own detection."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return capability if capability in ISA_FLAGS else "generic"


def cache_directory() -> Path:
    """Where built objects are kept: $TORCH_EXTENSIONS_DIR, else ~/.cache/torch_extensions (torch's own convention)."""
    home = os.environ.get("TORCH_EXTENSIONS_DIR") or "~/.cache/torch_extensions"
    return Path(home).expanduser() / "lab"


@functools.cache
def load(op: str, language: str = "cpp") -> Any:
    """The torch.ops namespace of the library of csrc/<op>.<language> ("cpp" or "cu"), built if no cache has it.

    Raises FileNotFoundError without a source, BuildError if it does not compile.
    """
    path = build(CSRC / f"{op}.{language}")
    torch.ops.load_library(str(path))
    return getattr(torch.ops, path.stem)


def build(path: Path, target: str | None = None, into: Path | None = None) -> Path:
    """Path of the shared object of a source file for an instruction set (default: this processor's), compiled if not yet there."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    flags = (*CXX_FLAGS, *ISA_FLAGS[target or isa()])
    name = f"{path.stem}_{_digest(path, flags)}"
    cache = into or cache_directory()
    for folder in (AHEAD_OF_TIME, cache):
        if (folder / f"{name}.so").is_file():
            return folder / f"{name}.so"
    if not _writable(cache):  # inside a sandbox the shared cache is read-only: build for this process alone
        cache = Path(tempfile.gettempdir()) / "lab"
        cache.mkdir(exist_ok=True)
    with _locked(cache / f"{name}.lock"):
        if not (cache / f"{name}.so").is_file():
            _compile(name, path, flags, cache)
    return cache / f"{name}.so"


def _digest(path: Path, flags: tuple[str, ...]) -> str:
    headers = sorted(CSRC.glob("*.h"))
    parts = [p.read_bytes() for p in (path, *headers)]
    parts += [repr((flags, CUDA_FLAGS, torch.__version__, _compiler_version())).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


@functools.cache
def _compiler_version() -> str:
    compiler = os.environ.get("CXX", "c++")
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise BuildError(
            f"no C++ compiler: {compiler!r} is not on the PATH; install g++ (or clang++ and set CXX)"
        ) from None
    return done.stdout.splitlines()[0]


def _writable(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return os.access(folder, os.W_OK)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _compile(name: str, path: Path, flags: tuple[str, ...], cache: Path) -> None:
    """Compile in a scratch folder, then rename into the cache."""
    from torch.utils import cpp_extension

    started = time.monotonic()
    print(f"building {path.name} ...", file=sys.stderr, flush=True)
    scratch = Path(tempfile.mkdtemp(dir=cache, prefix=f"{name}."))
    try:
        cpp_extension.load(
            name,
            [str(path)],
            extra_cflags=list(flags),
            extra_cuda_cflags=list(CUDA_FLAGS),
            extra_include_paths=[str(CSRC)],
            build_directory=str(scratch),
            with_cuda=path.suffix == ".cu",
            is_python_module=False,
        )
        os.replace(scratch / f"{name}.so", cache / f"{name}.so")
    except RuntimeError as error:
        raise BuildError(_diagnosis(str(error), path)) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"built {path.name} in {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def _diagnosis(output: str, path: Path) -> str:
    """The compiler's error lines with the source lines that it quotes, without the command lines around them."""
    lines = output.splitlines()
    wanted: list[str] = []
    for i, line in enumerate(lines):
        if " error: " in line or ": error" in line or "fatal error" in line:
            wanted += lines[i : i + 3]
    return f"{path.name} does not compile:\n" + "\n".join(wanted[:30] or lines[-15:])
