"""compute-sanitizer on the kernels of a GPU: memory that is not theirs (memcheck), races in shared memory (racecheck), memory read before it
was written (initcheck).

A few calls of the op run under each tool (bench/runner/rehearsal.py), all tools at once, in sandboxes of their own without seccomp and Landlock:
a tool and what it watches speak through sockets. So it is done only where namespaces hold, which have no network. PyTorch's caching allocator
is off there: else an index that is out of bounds would hit another tensor. A tool that is not here, does not start or does not end refuses
nobody; the evidence says so.

Format of the reports: NVIDIA, Compute Sanitizer, User Manual, "Understanding Memcheck Errors", "Understanding Racecheck Analysis Reports",
"Compute Sanitizer Tool Examples"; of releases before 2023 the place comes first (`at 0x3c8 in file.cu:17:kernel(int*)`).
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import hardware, sandbox
from bench.contracts import Contract, contract
from bench.finding import Finding
from bench.judge import CACHE
from bench.sandbox import Sandbox, isolation
from bench.sandbox.limits import Limits

TOOLS = ("memcheck", "racecheck", "initcheck")
DRAWN = 3  # cases beside the contract's large one
LIMIT_S = 180.0  # for all tools; torch alone takes 20 s to start under one
# Bytes between allocations, so that an access past the end of one does not hit the next.
PADDING = 256
OPTIONS = {
    "memcheck": ("--padding", str(PADDING)),
    "racecheck": (),
    # a part of what the driver copies may be padding, which nobody wrote
    "initcheck": ("--check-api-memory-access", "no"),
}
ALWAYS = (
    *("--target-processes", "all", "--report-api-errors", "no", "--show-backtrace", "device"),
    *("--print-limit", "20"),
)
# Kernels of libraries. Reports about them count for memcheck alone: some race by design, or read what they then multiply by zero.
LIBRARIES = re.compile(
    r"(void )?(at::|cub::|thrust::|cutlass::|cublas|cudnn|cusparse|cusolver|magma|nvjet_|splitKreduce_kernel|"
    r"(sm\d+|volta|turing|ampere|hopper)_|gemmk1_kernel|gemmSN_|gemv(2T|2N|NSP)|dot_kernel<|reduce_1Block_kernel<)"
)

_LINE = re.compile(r"^={8,9}\s+(\S.*)$")
_HEAD = re.compile(
    r"(Potential i|I)nvalid (__\w+__|\w+) .*|Uninitialized .*|Malloc/Free error.*|Barrier error.*|"
    r".*hardware exception.*|.*(?i:misaligned address|illegal instruction).*|Tensor Memory .*"
)
_RACE = re.compile(
    r"(?i:(?P<severity>error|warning)): (?P<what>.*?(?:access at|detected at)) (?P<place>.*)"
)
_THREAD = re.compile(r"(Read|Write) Thread .* at ")
_OTHER = re.compile(r"and (?:Read|Write) access at (?P<place>.*?)(?: \[\d+ hazards?\])?$")
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (?P<count>\d+)")
_PLACE = re.compile(r"(?P<kernel>.+?)[+:]0x[0-9a-f]+(?: in (?P<file>[^:]+):(?P<line>\d+))?$")
_OLD_PLACE = re.compile(r"0x[0-9a-f]+ in (?:(?P<file>[^:()]+):(?P<line>\d+):)?(?P<kernel>.+)$")


@dataclass(frozen=True)
class Report:
    """One thing that a tool has found: in words, in which kernel, and at which file and line ("" where the build has no line numbers)."""

    what: str
    kernel: str
    line: str
    error: bool = True  # a warning is told, and refuses nobody

    def __str__(self) -> str:
        return f"{self.what} in {self.kernel or 'an unnamed kernel'}{f' at {self.line}' if self.line else ''}"


def findings(op: str, tree: Path, device: str) -> Finding:
    """What the tools say of an op of a tree. Refused where one has found an error; `evidence["compute_sanitizer"]` has what each said."""
    missing = why_not(device)
    if missing:
        return Finding(True, f"not run: {missing}", {"compute_sanitizer": missing})
    program = tool()
    assert program is not None
    calls = plan(contract(op), random.Random(secrets.randbits(48)))
    return judged(run(program, op, tree.resolve(), calls, device), len(calls))


def why_not(device: str) -> str:
    """Why compute-sanitizer is not run here; "" where it is. Also for `python -m agent doctor`."""
    if device != "cuda":
        return "it looks at the kernels of a GPU"
    if tool() is None:
        return "compute-sanitizer is not on the PATH, in CUDA_HOME/bin or in /usr/local/cuda/bin; the CUDA toolkit has it"
    if not {"bubblewrap", "namespaces"} & isolation.held():
        return "it needs sockets, which a candidate gets in namespaces only, and this machine gives none"
    return ""


def tool() -> Path | None:
    """Where the program is; None if it is not here."""
    found = hardware.toolkit("compute-sanitizer")
    return Path(os.path.realpath(found)) if found else None


def plan(asked: Contract, rng: random.Random) -> list[dict[str, Any]]:
    """Calls to rehearse: small, and of every layout."""
    return [
        asked.described(c) for c in (asked.large(rng), *(asked.draw(rng) for _ in range(DRAWN)))
    ]


@dataclass(frozen=True)
class Run:
    """One tool's run: what it and the candidate printed, and whether all calls were made."""

    tool: str
    text: str
    complete: bool


def run(
    program: Path, op: str, tree: Path, calls: Sequence[dict[str, Any]], device: str
) -> list[Run]:
    """All tools on the same calls of an op of a tree, beside each other."""
    word = secrets.token_hex(8)
    asked = {"tree": str(tree), "op": op, "device": device, "calls": calls, "word": word}
    started: dict[str, Sandbox] = {}
    try:
        for name in TOOLS:
            started[name] = sandbox.start(
                "sandbox.instead",
                [*command(program, name), json.dumps(asked)],
                tree=tree,
                cache=CACHE,
                device=device,
                layers=isolation.held() - {"seccomp", "landlock"},
                environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
                readable=[str(program.parent.parent)],
            )
        deadline = time.monotonic() + LIMIT_S
        return [_ended(name, each, word, deadline) for name, each in started.items()]
    finally:
        for each in started.values():
            each.stop()


def command(program: Path, name: str) -> list[str]:
    """A command line, to which the plan is to be added."""
    rehearsal = [sys.executable, "-P", "-m", "bench.runner.rehearsal"]
    return [str(program), "--tool", name, *ALWAYS, *OPTIONS[name], *rehearsal]


def _ended(name: str, running: Sandbox, word: str, deadline: float) -> Run:
    try:
        running.process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        # behind what was printed: only the end of a run without a verdict is told
        return Run(name, f"{running.tail()}\nno end within {LIMIT_S:.0f} s", False)
    with running.log.open("rb") as log:
        # all that it may print: a report may stand at the end
        text = log.read(Limits.output).decode(errors="replace")
    excess = running.excess()
    return Run(name, f"{text}\nstopped: {excess}" if excess else text, word in text.split())


def judged(runs: Sequence[Run], calls: int) -> Finding:
    """The verdict on what all tools have said."""
    said: dict[str, Any] = {}
    refusals: list[str] = []
    for one in runs:
        reports, all_count = list(parse(one.text)), one.tool == "memcheck"
        counted = [r for r in reports if r.error and (all_count or not LIBRARIES.match(r.kernel))]
        refusals += [f"{one.tool}: {report}" for report in dict.fromkeys(counted)]
        if not reports and (count := _errors(one.text)):
            refusals.append(
                f"{one.tool}: {count} errors of a kind that is not known here: {one.text.strip()[-500:]}"
            )
        said[one.tool] = [str(report) for report in dict.fromkeys(reports)] or _nothing(one, calls)
    evidence = {"compute_sanitizer": said}
    if refusals:
        return Finding(
            False, f"compute-sanitizer {'; '.join(refusals[:3])}", {**evidence, "kind": "sanitizer"}
        )
    return Finding(True, "; ".join(f"{name}: {text}" for name, text in said.items()), evidence)


def _nothing(run: Run, calls: int) -> str:
    """What a run without a report means."""
    if _errors(run.text) == 0 and run.complete:
        return f"nothing found in {calls} calls"
    return f"no verdict: {run.text.strip()[-500:] or 'it said nothing'}"


def _errors(text: str) -> int | None:
    """How many errors a tool has counted; None where it did not come to an end."""
    # the largest: a candidate may print such a line as well
    return max((int(found["count"]) for found in _SUMMARY.finditer(text)), default=None)


def parse(text: str) -> Iterator[Report]:
    """The reports in what a tool printed, whatever else was printed between."""
    found: list[str] = []
    for raw in text.splitlines():
        line = _LINE.match(raw)
        if line is None:
            continue
        if _HEAD.fullmatch(line[1]) or _RACE.fullmatch(line[1]):
            yield from _read(found)
            found = [line[1]]
        elif found:
            found.append(line[1])
    yield from _read(found)


def _read(lines: Sequence[str]) -> Iterator[Report]:
    """A report from its headline and the lines below."""
    if not lines:
        return
    race = _RACE.fullmatch(lines[0])
    if race is not None:
        yield _race(race, lines[1:])
        return
    at = next((line[3:] for line in lines[1:] if line.startswith("at ")), "")
    kernel, place = _located(at)
    frames = [line.partition(":")[2].strip() for line in lines if line.startswith("Device Frame:")]
    if frames:
        kernel = _located(frames[-1])[0] or kernel  # outermost: the kernel that called the function
    address = next((line for line in lines[1:] if line.startswith(("Address", "Access "))), "")
    detail = re.sub(r"(Address|Access (at|to)) 0x[0-9a-f]+ ?", "", address)
    yield Report(f"{lines[0]}{f' ({detail})' if detail else ''}", kernel, place)


def _race(head: re.Match[str], below: Sequence[str]) -> Report:
    kernel, place = _located(head["place"])
    others = [_located(o["place"])[1] for o in map(_OTHER.fullmatch, below) if o is not None]
    threads = [_located(line.split(" at ", 1)[1]) for line in below if _THREAD.match(line)]
    if threads:
        kernel, place = threads[0]
        others = [where for _, where in threads[1:]]
    beside = ", ".join(dict.fromkeys(where for where in others if where))
    what = head["what"].removesuffix(" at") + (f" and at {beside}" if beside else "")
    return Report(what, kernel, place, head["severity"].lower() == "error")


def _located(place: str) -> tuple[str, str]:
    """Kernel and `file:line` of a place in either form."""
    found = _OLD_PLACE.match(place) or _PLACE.match(place)
    if found is None:
        return "", ""
    file = found["file"]
    return found["kernel"].strip(), f"{file.strip()}:{found['line']}" if file else ""
