"""`python -m agent doctor`: what this machine gives to the lab and what it lacks, each layer of the sandbox tried; and what `--isolation` asks.

Exit status 0 if all that is needed is there, 1 otherwise.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from agent.lab import Lab, Unusable
from agent.ledger import LedgerError
from agent.screen import Screen
from bench import hardware

_LEAST_DISK = 2 << 30  # for built kernels, their scratch, and a ledger
_GIB = 1 << 30
_PLATFORM = "Linux on x86_64"
_MOUNTS = Path("/proc/self/mountinfo")
# File systems of other machines, by how their names begin: SQLite's write-ahead log is not safe there.
_NETWORK = ("nfs", "cifs", "smb", "9p", "ceph", "lustre", "gpfs", "beegfs", "afs", "fuse.sshfs")


@dataclass(frozen=True)
class Row:
    """One thing: whether it is there, whether the lab needs it, and in words what it is or how to get it."""

    part: str
    name: str
    ok: bool
    text: str
    needed: bool = True


def insist(mode: str, screen: Screen) -> None:
    """Hold a command to `--isolation`: if a layer is missing, raises Unusable under `strict`, and warns once under `best-effort`."""
    from bench.sandbox import isolation

    missing = isolation.missing()
    if not missing:
        return
    named = ", ".join(layer.name for layer in missing)
    if mode == "strict":
        reasons = "".join(f"\n  {layer.name}: {layer.how}" for layer in missing)
        raise Unusable(f"--isolation strict: this machine does not give {named}{reasons}")
    screen.say(
        f"warning: candidates run without {named} around them (`python -m agent doctor` says why); "
        "--isolation strict would refuse"
    )


def examine(lab: Lab) -> list[Row]:
    """Every row of the table."""
    return [*_software(), *_machine(lab), *_isolation(), *_contents(lab)]


def healthy(rows: Sequence[Row]) -> bool:
    return all(row.ok for row in rows if row.needed)


def table(rows: Sequence[Row]) -> str:
    """One line per row, under the name of its part."""
    width = max(len(row.name) for row in rows)
    lines: list[str] = []
    part = ""
    for row in rows:
        if row.part != part:
            part = row.part
            lines += ["", part] if lines else [part]
        mark = "yes" if row.ok else "NO" if row.needed else "-"
        lines.append(f"  {row.name:<{width}}  {mark:<3}  {row.text}")
    lacking = [row.name for row in rows if row.needed and not row.ok]
    verdict = "lacking: " + ", ".join(lacking) if lacking else "all that is needed is there"
    return "\n".join([*lines, "", verdict])


def as_json(rows: Sequence[Row]) -> str:
    return json.dumps({"healthy": healthy(rows), "rows": [asdict(row) for row in rows]}, indent=2)


def _software() -> Iterator[Row]:
    from bench import sandbox

    part, version = "software", platform.python_version()
    here = f"{platform.system()} on {platform.machine()}"
    yield Row(part, "platform", here == _PLATFORM, f"{here} ({_PLATFORM} is needed)")
    yield Row(part, "Python", sys.version_info >= (3, 11), f"{version} (3.11 or newer is needed)")
    try:
        import torch

        yield Row(part, "torch", True, torch.__version__)
    except ImportError as error:
        yield Row(part, "torch", False, f"{error}; run `make install`")
    yield _package(part, "triton", "every kernel file imports it")
    header = Path(sysconfig.get_path("include"), "Python.h")
    what = "Triton on a GPU, and torch.compile"
    there = (
        f"for {what} ({header})"
        if header.is_file()
        else f"no {header}: {what} need it; install python3-dev"
    )
    yield Row(part, "Python.h", header.is_file(), there, needed=False)
    what = "g++ or clang++" + (", or unset CXX, which names it" if "CXX" in os.environ else "")
    compiler = os.environ.get("CXX", "c++")
    row = _command(part, "C++ compiler", compiler, what)
    if row.ok and sandbox.seen_by_runners(compiler) is None:
        where = "they see the system's folders and those of this Python"
        text = f"no runner sees {compiler}: {where}; install one there, and name it in CXX"
        row = replace(row, ok=False, text=text)
    yield row
    yield _command(part, "git", "git", "git")
    yield _command(
        part,
        "nvcc",
        hardware.toolkit("nvcc") or "nvcc",
        "the CUDA toolkit, for .cu files",
        needed=False,
    )
    yield _assembler(part)


def _machine(lab: Lab) -> Iterator[Row]:
    from bench.sandbox import cgroup

    part = "machine"
    cores = len(os.sched_getaffinity(0))
    yield Row(part, "CPU", True, f"{hardware.processor()}, {cores} cores{_vectors()}")
    first = _has_precedence()
    text = "timed processes wait like all others, and how often the timer is then wrong was never measured; precedence takes root or CAP_SYS_NICE"
    if first:
        text = "timed processes run before all others"
    yield Row(part, "precedence", first, text, False)
    share, bound = cgroup.allowance()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if share < (int(threads) if threads.isdigit() else cores):
        text = f"a control group gives the time of {share:g} cores: set OMP_NUM_THREADS={max(1, int(share))}, or threads are stopped while they are timed"
        yield Row(part, "CPU quota", False, text, False)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = f"{memory / _GIB:.1f} GiB"
    if bound < memory:
        text = f"{bound / _GIB:.1f} of {text}, by a control group"
    yield Row(part, "memory", True, text)
    gpu = _gpu(part)
    yield gpu
    if gpu.ok:
        yield from _judging_on_gpu()
    folder = next(f for f in (lab.folder, *lab.folder.parents) if f.exists())
    free = shutil.disk_usage(folder).free
    text = f"{free / _GIB:.1f} GiB free in {folder} ({_LEAST_DISK // _GIB} are needed)"
    yield Row(part, "disk", free >= _LEAST_DISK, text)
    kind = _file_system(folder)
    local = not kind.startswith(_NETWORK)
    advice = "" if local else ": the ledger is safe on a local disk alone; put the checkout on one"
    yield Row(part, "file system", local, f"{kind}{advice}", False)


def _has_precedence() -> bool:
    """Whether the kernel lets a process of ours run before all others, tried on one that sleeps."""
    from bench.sandbox import precedence

    # in a session of its own: the kernel shares cores out between sessions first, and precedence is given to all of one
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as sleeper:
        try:
            return precedence.take([sleeper.pid])
        finally:
            sleeper.kill()


def _file_system(folder: Path) -> str:
    """The kind of file system that a folder lies on, such as ext4."""
    deepest, kind = 0, "unknown"
    for line in _MOUNTS.read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split(" ")[4].replace("\\040", " "))
        # Of two mounts at one place the later one is seen.
        if folder.resolve().is_relative_to(point) and len(point.parts) >= deepest:
            deepest, kind = len(point.parts), after.split(" ")[0]
    return kind


def _isolation() -> Iterator[Row]:
    from bench.sandbox import isolation

    for layer in isolation.layers():
        yield Row("isolation", layer.name, layer.holds, layer.how, layer.needed)


def _contents(lab: Lab) -> Iterator[Row]:
    part, default = "lab", lab.data / "default"
    if default.is_file():
        prepared = lab.data / default.read_text().strip()
        there = (prepared / "manifest.json").is_file()
        text = str(prepared) if there else f"{prepared} is gone: `python -m agent prepare`"
        yield Row(part, "data", there, text, False)
    else:
        text = "not prepared: `python -m agent prepare`, or the first command does it"
        yield Row(part, "data", False, text, False)
    file = lab.folder / "ledger.sqlite"
    if not file.is_file():
        yield Row(part, "ledger", False, "none: the first run begins one", False)
        return
    try:
        ledger = lab.ledger()
        runs, tried = len(ledger.runs()), len(ledger.history())
        yield Row(part, "ledger", True, f"runs: {runs}, experiments: {tried}, in {file}")
    except LedgerError as error:
        yield Row(part, "ledger", False, str(error))
    except sqlite3.OperationalError as error:
        text = f"{file}: {error}; you have to be able to write it, on a local disk with space"
        yield Row(part, "ledger", False, text)


def _package(part: str, name: str, without: str) -> Row:
    try:
        return Row(part, name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Row(part, name, False, f"not installed: {without}; run `make install`")


def _command(part: str, name: str, command: str, what: str, *, needed: bool = True) -> Row:
    found = shutil.which(command)
    if found is None:
        return Row(part, name, False, f"no `{command}` on the PATH: install {what}", needed)
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if re.search(r"\d\.\d", line)]
    return Row(part, name, done.returncode == 0, f"{lines[0] if lines else '?'} ({found})", needed)


def _assembler(part: str) -> Row:
    """What makes a GPU's code of Triton's PTX. Some versions made wrong code of some kernels, so a report of such a fault has to name the one in use."""
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        return Row(part, "ptxas", False, "unknown without triton", False)
    brought = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "ptxas"
    chosen = os.environ.get("TRITON_PTXAS_PATH", str(brought))
    return _command(part, "ptxas", chosen, "triton, or unset TRITON_PTXAS_PATH", needed=False)


def _gpu(part: str) -> Row:
    try:
        import torch
    except ImportError:
        return Row(part, "GPU", False, "unknown without torch", False)
    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        return Row(part, "GPU", False, f"none that torch sees (it is built with {built})", False)
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    text = ", ".join(f"{gpu.name} {gpu.total_memory / _GIB:.0f} GiB" for gpu in found)
    return Row(part, "GPU", True, text, False)


def _judging_on_gpu() -> Iterator[Row]:
    """How the judge's tensors reach a candidate on the GPU, whether kernels run there, and whether compute-sanitizer checks them."""
    from bench import device_memory, first_kernels, judge, sanitizer
    from bench.implementations import OURS

    try:
        lends = judge.lending("cuda")
        # Where tensors travel through the host, bench/timing.py refuses to time anything.
        able = lends == device_memory.DeviceMemory.words
    except judge.Refused as refused:  # CUDA does not start in the sandbox
        lends, able = f"a runner does not start: {judge.error_line(refused)}", False
    yield Row("machine", "tensors lent", able, lends)
    for kind in (OURS["cuda"][0], first_kernels.COMPILED):
        reason = first_kernels.why_not(kind, "cuda")
        yield Row("machine", f"{kind} runs", not reason, reason or "compiled and run by a runner")
    missing = sanitizer.why_not("cuda")
    yield Row("machine", "compute-sanitizer", not missing, missing or str(sanitizer.tool()), False)


def _vectors() -> str:
    """Those of bench/hardware.py, as `, AVX512`."""
    try:
        return f", {hardware.vectors()}"
    except ImportError:
        return ""
