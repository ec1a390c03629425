"""Build `csrc/<op>.cpp` (or `.cu`) on first use and load it: one shared object an op.

    ops = jit.load("rms_norm")          # the functions that csrc/rms_norm.cpp registers
    y, rstd = ops.forward(x, weight, eps)

The object's name is a hash of what it is made from: source, its headers, flags, torch, compiler. Same content, same object, in any
checkout; another content never finds a stale one. Instruction sets: the flags follow the processor (AMX, AVX-512, AVX2 or none) and are part
of the name, so a cache shared by two machines serves each its own object and nothing is built with -march=native.

Two processes that need the same object at once: one builds under a file lock (which the operating system lets go even on kill -9), the
other waits; the object appears by rename, whole or not at all. Building never loads: what a source runs at load time runs in `load`.

Every call into a library is counted, so that a judge can see that a kernel ran, and can spoil its results to see that they are used.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

CSRC = Path(__file__).resolve().parent.parent / "csrc"
AHEAD_OF_TIME = CSRC / "build"  # filled by `python setup.py build_ext`

# IEEE arithmetic in the order written, with one exception: a product and the sum it goes into may be one fused multiply-add (compilers have
# -ffp-contract on for C++; product.h and attention.cpp count on it). A NaN stays a NaN, and only `#pragma omp simd reduction` reassociates a
# sum. The two -fno flags give up floating-point exceptions and errno, which nobody reads here and which would keep branches scalar.
CXX_FLAGS = ("-std=c++20", "-O3", "-fopenmp-simd", "-fno-trapping-math", "-fno-math-errno")
# Literals: the judge reads them, and does not import this file.
ISA_FLAGS = {
    "amx": (
        "-mamx-tile", "-mamx-bf16",
        "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c", "-mprefer-vector-width=512",
    ),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c", "-mprefer-vector-width=512"),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "generic": (),
}  # fmt: skip
# Without NVTX, which CUB brings along with dlopen.
CUDA_FLAGS = (
    "-std=c++20",
    "-O3",
    "--use_fast_math",
    "-lineinfo",
    "-DNVTX_DISABLE",
    "-DCCCL_DISABLE_NVTX",
)

calls: Counter[str] = Counter()  # into each op's libraries, since the process began
# Set by a judge: called with each function, its arguments and its results, returns what the kernel file gets instead.
spoil: Callable[[Any, Any, Any], Any] | None = None


class BuildError(RuntimeError):
    """A source did not compile; the message holds the compiler's own lines."""


@functools.cache
def isa() -> str:
    """Instruction set to build for on this processor, by torch's own detection. AMX's tiles are for processes that have asked for them: this one does."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    if capability == "avx512" and torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx():
        capability = "amx"
    return capability if capability in targets() else "generic"


def targets() -> tuple[str, ...]:
    """Instruction sets that this machine's compiler can build for, the widest first; it need not be able to run them."""
    return tuple(ISA_FLAGS) if platform.machine() in ("x86_64", "AMD64") else ("generic",)


def cache_directory() -> Path:
    """Where built objects are kept: $TORCH_EXTENSIONS_DIR, else ~/.cache/torch_extensions (torch's own convention)."""
    home = os.environ.get("TORCH_EXTENSIONS_DIR") or "~/.cache/torch_extensions"
    return Path(home).expanduser() / "lab"


class Library:
    """The functions that a loaded object registers, by name; each call of one is counted in `calls`."""

    def __init__(self, op: str, namespace: Any) -> None:
        self._op, self._namespace = op, namespace

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._namespace, name)

        def call(*arguments: Any) -> Any:
            calls[self._op] += 1
            results = function(*arguments)
            return results if spoil is None else spoil(function, arguments, results)

        setattr(self, name, call)
        return call


@functools.cache
def load(op: str, language: str = "cpp") -> Library:
    """The library of csrc/<op>.<language> ("cpp" or "cu"), built if no cache has it.

    Raises FileNotFoundError without a source, BuildError if it cannot be compiled.
    """
    path = build(CSRC / f"{op}.{language}")
    torch.ops.load_library(str(path))
    return Library(op, getattr(torch.ops, path.stem))


def build(path: Path, target: str | None = None, into: Path | None = None) -> Path:
    """Path of the shared object of a source file, compiled if no cache has it, but not loaded.

    target: an instruction set of `targets()`, by default this processor's. into: the folder that must hold the object, by default
    `cache_directory()`, or one under $TMPDIR where that is read-only. Raises like `load`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    target = target or isa()
    if target not in targets():
        raise ValueError(f"target={target!r}: expected one of {', '.join(targets())}")
    if path.suffix == ".cu":
        _require_cuda(path)
    flags = (*CXX_FLAGS, *ISA_FLAGS[target])
    name = f"{path.stem}_{_digest(path, flags)}"
    for folder in (into,) if into else (AHEAD_OF_TIME, cache_directory()):
        if (folder / f"{name}.so").is_file():
            return folder / f"{name}.so"
    if into:
        into.mkdir(parents=True, exist_ok=True)
    folder = into or _writable(cache_directory())
    with _locked(folder / f"{name}.lock", path.name):
        if not (folder / f"{name}.so").is_file():
            _compile(name, path, flags, folder)
    return folder / f"{name}.so"


def _require_cuda(path: Path) -> None:
    from torch.utils import cpp_extension

    if torch.version.cuda is None:
        raise BuildError(f"{path.name} needs CUDA, and this torch ({torch.__version__}) has none")
    if cpp_extension.CUDA_HOME is None:
        raise BuildError(f"{path.name} needs nvcc: install the CUDA toolkit, or set CUDA_HOME")


def _made_of(source: Path) -> list[Path]:
    """A source and the headers beside it that it names, or that these name, be it in a comment."""
    headers, found = sorted(source.parent.glob("*.h")), [source]
    for file in found:  # which grows meanwhile
        text = file.read_bytes()
        found += [h for h in headers if h not in found and h.name.encode() in text]
    return [source, *sorted(found[1:])]


def _digest(path: Path, flags: tuple[str, ...]) -> str:
    parts = [part for file in _made_of(path) for part in (file.name.encode(), file.read_bytes())]
    made_with = [flags, torch.__version__, platform.machine(), _compiler_version()]
    if path.suffix == ".cu":
        made_with += [CUDA_FLAGS, _cuda_architectures(), _nvcc_version()]
    return hashlib.sha256(b"\0".join([*parts, repr(made_with).encode()])).hexdigest()[:16]


def _cuda_architectures() -> str:
    """What cpp_extension compiles for: $TORCH_CUDA_ARCH_LIST, else the visible GPUs, else everything it knows."""
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return os.environ.get("TORCH_CUDA_ARCH_LIST") or repr(sorted(found))


def _nvcc_version() -> str:
    from torch.utils import cpp_extension

    nvcc = f"{cpp_extension.CUDA_HOME}/bin/nvcc"
    # All that it says: its first line is the same in every version.
    return _version(nvcc, f"no nvcc: {nvcc} does not exist; install the CUDA toolkit, or set CUDA_HOME")  # fmt: skip


def _compiler_version() -> str:
    compiler = os.environ.get("CXX", "c++")
    missing = f"no C++ compiler: {compiler!r} is not on the PATH; install g++ (or clang++ and set CXX)"  # fmt: skip
    return _version(compiler, missing).splitlines()[0]


@functools.cache
def _version(compiler: str, missing: str) -> str:
    """What a compiler says of its version. Raises BuildError, which says what is `missing`, if it is not there."""
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise BuildError(missing) from None
    return done.stdout


def _writable(folder: Path) -> Path:
    """The folder, or one of our own under $TMPDIR if it cannot be written to, as in a sandbox."""
    # Tried and not asked: Landlock forbids what os.access, which knows modes alone, finds allowed.
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    private = Path(tempfile.gettempdir()) / f"lab-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    if private.stat().st_uid != os.getuid():
        # in a shared /tmp: whoever owns it could have put any object there
        raise BuildError(
            f"{folder} is not writable, and {private} belongs to somebody else; set TMPDIR"
        )
    return private


@contextlib.contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for the process that builds {what} ...", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _compile(name: str, path: Path, flags: tuple[str, ...], folder: Path) -> None:
    """Compile in a scratch folder, then rename into `folder`. The caller holds the lock, so a scratch folder found is a dead one's."""
    from torch.utils import cpp_extension

    started = time.monotonic()
    print(f"building {path.name} ...", file=sys.stderr, flush=True)
    scratch = folder / f"{name}.scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        # Else torch, asked for the same a second time in a process, builds nothing, also where the first time failed.
        cpp_extension.JIT_EXTENSION_VERSIONER.entries.pop(name, None)
        # It quotes the paths that it compiles, and not the folder that it links with.
        cpp_extension.TORCH_LIB_PATH = shlex.quote(str(Path(torch.__file__).parent / "lib"))
        with _scripts_on_path():
            # Asked for a standalone program that is linked -shared, cpp_extension stops after the link; asked for a library it loads it.
            built = cpp_extension.load(
                name,
                [str(path)],
                extra_cflags=[*flags, f"-DTORCH_EXTENSION_NAME={name}"],
                extra_cuda_cflags=[*CUDA_FLAGS, f"-DTORCH_EXTENSION_NAME={name}"],
                extra_ldflags=["-shared"],
                extra_include_paths=[str(path.parent)],
                build_directory=str(scratch),
                with_cuda=path.suffix == ".cu",
                is_python_module=False,
                is_standalone=True,
            )
        # else other content would lie under this name for good
        if not name.endswith(_digest(path, flags)):
            raise BuildError("its text changed while it was compiled; build it again")
        os.replace(built, folder / f"{name}.so")
    except RuntimeError as error:
        raise BuildError(_diagnosis(str(error), path)) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"built {path.name} in {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _scripts_on_path() -> Iterator[None]:
    """Let cpp_extension find the `ninja` of this interpreter's environment, also where that was not activated."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _diagnosis(output: str, path: Path) -> str:
    """The compiler's error lines with the source lines that it quotes, without the command lines around them."""
    lines = output.splitlines()
    wanted: list[str] = []
    for i, line in enumerate(lines):
        if " error: " in line or ": error" in line or "undefined reference" in line:
            wanted += lines[i : i + 3]
    return f"{path.name} could not be built:\n" + "\n".join(wanted[:30] or lines[-15:])
