"""Does a C++ kernel touch memory that is not its own, or do two of its threads meet in memory? Sanitizers over the correctness cases.

    python tests/sanitize.py                       every op, a line each, into results/sanitizers.md
    python tests/sanitize.py --op attention        one op, printed and not kept

Every csrc/*.cpp is built for each instruction set that this processor runs with AddressSanitizer and UndefinedBehaviorSanitizer, and for the widest
with ThreadSanitizer. A process with their runtimes preloaded then makes every kind of call that the correctness gate makes (drawn cases, corners,
the large one, the trial's own), forward and backward, with one thread and with two. Every tensor is an allocation of its own, no longer than what
it spans, so that one element past an end is seen. A first finding ends it; values are bench/correctness.py's affair. Exit status 1 if
anything was found.

ThreadSanitizer knows nothing of OpenMP: libgomp is not instrumented. tests/fork_join.cpp tells it what a parallel loop orders, and no more.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from bench.contracts import Case, Contract, Input, contract, ops  # noqa: E402
from kernels import jit  # noqa: E402

TABLE = ROOT / "results" / "sanitizers.md"
FORK_JOIN = ROOT / "tests" / "fork_join.cpp"
# Instruction set -> what torch is to take for the processor's. kernels/jit.py is told apart (run_cases): torch knows no name for AMX.
CAPABILITIES = {"generic": "default", "avx2": "avx2", "avx512": "avx512", "amx": "avx512"}
DRAWN = 40  # cases beside those that a contract names
LIMIT_S = 480.0


@dataclass(frozen=True)
class Sanitizer:
    """How kernels are built for it and run under it."""

    name: str
    flags: tuple[str, ...]
    runtimes: tuple[str, ...]
    options: Mapping[str, str]
    threads: tuple[int, ...]
    before: tuple[str, ...] = ()  # what starts the process

    @property
    def all_flags(self) -> tuple[str, ...]:
        """-O1 keeps line numbers true and compiles in half the time; it comes last, so it wins over the -O3 of kernels/jit.py."""
        return (*self.flags, "-fno-omit-frame-pointer", "-g1", "-O1")


SANITIZERS = {
    each.name: each
    for each in (
        Sanitizer(
            "address",
            ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
            ("libasan.so", "libubsan.so"),
            # Python's own leaks are nobody's finding.
            {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
            (1, 2),
        ),
        Sanitizer(
            "thread",
            ("-fsanitize=thread",),
            ("libtsan.so",),
            {"TSAN_OPTIONS": "halt_on_error=1"},
            (2,),
            # Its shadow lies where a randomised address space may have put something.
            ("setarch", platform.machine(), "-R"),
        ),
    )
}


@dataclass(frozen=True)
class Row:
    """What came of one op. `found` is "" where nothing was."""

    op: str
    sanitizer: str
    target: str
    calls: int
    found: str
    seconds: float

    def line(self) -> str:
        said = f"FOUND {self.found}" if self.found else f"nothing in {self.calls} calls"
        return f"{self.op:22} {self.sanitizer:8} {self.target:8} {said} ({self.seconds:.0f} s)"


def check(op: str, with_: Sanitizer, target: str, tree: Path = ROOT, drawn: int = DRAWN) -> Row:
    """Build the op of a tree for an instruction set, and run its cases in a process of its own."""
    # Compiled where nothing is preloaded: a compiler under AddressSanitizer is slow, and leaks.
    with mock.patch.object(jit, "CXX_FLAGS", (*jit.CXX_FLAGS, *with_.all_flags)):
        jit.build(tree / "csrc" / f"{op}.cpp", target)
    libraries = [_asked(f"-print-file-name={name}") for name in with_.runtimes]
    libraries += [str(_fork_join())] if with_.name == "thread" else []
    environment = {
        **os.environ, **with_.options,
        "ATEN_CPU_CAPABILITY": CAPABILITIES[target], "LD_PRELOAD": " ".join(libraries),
    }  # fmt: skip
    given = ("--op", op, "--tree", str(tree), "--drawn", str(drawn), "--under", with_.name, "--target", target)  # fmt: skip
    started = time.monotonic()
    done = subprocess.run(
        [*with_.before, sys.executable, __file__, *given],
        env=environment, capture_output=True, text=True, errors="replace", timeout=LIMIT_S,
    )  # fmt: skip
    calls = [line for line in done.stdout.splitlines() if line.startswith("call ")]
    found = "" if done.returncode == 0 else finding(done.stderr, calls)
    return Row(op, with_.name, target, len(calls), found, time.monotonic() - started)


def finding(said: str, calls: Sequence[str]) -> str:
    """The headline, the innermost places in our sources, and the call that led there; the end of what was said where there is no headline."""
    heads = re.findall(
        r"(?:ERROR: |WARNING: |runtime error: )(.*?)(?: on address .*)?$", said, re.M
    )
    places = re.findall(r"/csrc/([\w.]+:\d+)", said)
    if not heads:
        return f"no verdict: {' '.join(said.split())[-400:]}"
    where = ", ".join([*dict.fromkeys(places)][:3]) or "an unknown place"
    return f"{heads[0].split(' (pid')[0]} at {where}; {calls[-1] if calls else 'before any call'}"


def _fork_join() -> Path:
    """The library that orders OpenMP's threads for ThreadSanitizer, built where kernels are."""
    library = jit.cache_directory() / "fork_join.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    _asked("-shared", "-fPIC", "-O1", str(FORK_JOIN), "-o", str(library), "-Wl,--no-as-needed", "-lgomp")  # fmt: skip
    return library


def _asked(*arguments: str) -> str:
    """What the compiler answers; raises CalledProcessError with its own words on standard error."""
    command = [os.environ.get("CXX", "c++"), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


# ---- in the process that has the runtimes preloaded


def run_cases(op: str, with_: Sanitizer, target: str, tree: Path, drawn: int) -> None:
    """Every call, named on standard output before it is made."""
    sys.path.insert(0, str(tree))
    for name in [name for name in sys.modules if name.split(".")[0] == "kernels"]:
        del sys.modules[name]  # this checkout's own: the tree's are to be loaded
    from kernels import jit

    jit.CXX_FLAGS = (*jit.CXX_FLAGS, *with_.all_flags)
    if target != jit.isa():  # asks for AMX, and finds it where torch says avx512
        jit.isa = lambda: target
    function = getattr(__import__(f"kernels.{op}", fromlist=["_"]), op)
    asked, generator = contract(op), torch.Generator().manual_seed(0)
    numbers = itertools.count()
    for threads in with_.threads:
        torch.set_num_threads(threads)
        for case in cases(asked, drawn):
            print(f"call with {threads} threads: {case.label()}", flush=True)
            call(function, asked, case, generator, spread=next(numbers) % 2 == 1)
    if not jit.calls[op]:
        raise SystemExit(f"csrc/{op}.cpp was called by no case")


def cases(asked: Contract, drawn: int) -> Iterator[Case]:
    rng = random.Random(0)
    yield from asked.corners(rng)
    yield from (asked.draw(rng) for _ in range(drawn))
    yield asked.large(rng)
    yield from asked.trial["cpu"]


def call(
    function: Any, asked: Contract, case: Case, generator: torch.Generator, spread: bool
) -> None:
    """One call forward, and backward where there is something to differentiate, from gradients that are dense, or one number spread out."""
    inputs = {name: laid(wanted, generator) for name, wanted in case.inputs.items()}
    wrt = asked.wrt(case)
    leaves = [inputs[name].requires_grad_() for name in wrt]
    with torch.set_grad_enabled(bool(leaves)):
        results = function(**inputs, **case.scalars, impl="cpp")
    if leaves:
        results = results if isinstance(results, tuple) else (results,)
        upstream = [r.new_ones(()).expand_as(r) if spread else torch.randn_like(r) for r in results]
        torch.autograd.grad(results, leaves, upstream)


def laid(wanted: Input, generator: torch.Generator) -> Tensor:
    """An input with its values, in memory that ends where it does."""
    dtype, skew = getattr(torch, wanted.dtype), int(wanted.layout == "offset")
    memory = torch.zeros(wanted.span() + skew, dtype=dtype)
    tensor = memory.as_strided(wanted.shape, wanted.strides(), skew)
    values = wanted.values(generator)
    apart = slice(1) if wanted.layout == "expanded" else slice(None)  # its slices are one
    tensor[apart].copy_(values[apart])
    return tensor


# ---- the campaign


def plan(only: str | None) -> Iterator[tuple[str, Sanitizer, str]]:
    """Memory may go wrong in each instruction set; which thread works on what is the same in all."""
    runnable = tuple(CAPABILITIES)[: tuple(CAPABILITIES).index(jit.isa()) + 1]
    there = [op for op in ops() if (ROOT / "csrc" / f"{op}.cpp").is_file()]
    for op in [only] if only else there:
        yield from ((op, SANITIZERS["address"], target) for target in runnable)
        yield op, SANITIZERS["thread"], runnable[-1]


def table(rows: Sequence[Row], seconds: float) -> str:
    """results/sanitizers.md."""
    compiler = _asked("--version").splitlines()[0]
    cells = "\n".join(
        f"| {r.op} | {r.sanitizer} | {r.target} | {r.calls} | {r.found or 'nothing'} | {r.seconds:.0f} |"
        for r in rows
    )
    return f"""# The C++ kernels under sanitizers

`python tests/sanitize.py`, {compiler}, torch {torch.__version__}: {len(rows)} runs in {seconds / 60:.0f} minutes.
`address` is AddressSanitizer and UndefinedBehaviorSanitizer, every call with one thread and again with two; `thread` is ThreadSanitizer with two.

What the kernels themselves read and write is seen, and what they allocate; a library that they call (sgemm) is not instrumented. libgomp is not
either: without tests/fork_join.cpp ThreadSanitizer made 48 reports in 18 calls of rms_norm, each of a write before a parallel loop and a read
inside. With it it makes none there, and still finds a race that is planted (tests/test_sanitize.py).

| op | sanitizer | instruction set | calls | found | seconds |
|---|---|---|---|---|---|
{cells}
"""


def main() -> int:
    take = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    take.add_argument("--op", choices=ops(), help="this op alone; results/ stays as it is")
    take.add_argument("--tree", type=Path, default=ROOT, help=argparse.SUPPRESS)
    take.add_argument("--drawn", type=int, default=DRAWN, help=argparse.SUPPRESS)
    take.add_argument("--under", choices=tuple(SANITIZERS), help=argparse.SUPPRESS)
    take.add_argument("--target", choices=tuple(CAPABILITIES), help=argparse.SUPPRESS)
    asked = take.parse_args()
    if asked.under:
        run_cases(asked.op, SANITIZERS[asked.under], asked.target, asked.tree, asked.drawn)
        return 0
    rows, started = [], time.monotonic()
    for op, with_, target in plan(asked.op):
        rows.append(check(op, with_, target, asked.tree, asked.drawn))
        print(rows[-1].line(), flush=True)
    if not asked.op:
        TABLE.write_text(table(rows, time.monotonic() - started))
    return int(any(row.found for row in rows))


if __name__ == "__main__":
    sys.exit(main())
