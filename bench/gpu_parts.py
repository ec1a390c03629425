"""The parts of bench/gpu_report.py, each a process of its own, so that it can be ended: `python -m bench.gpu_parts PART [OP] --device cuda`.

A part prints a line of JSON for each thing that it finds, as soon as it finds it. Exit status: 1 where an op was refused or this machine cannot
measure it, FAILED where the part itself failed.

    facts      the device, its clocks and what is installed       ceilings      copy and matrix product (bench/roofline.py)
    build OP   csrc and every Triton kernel (bench/builds.py)     check OP      the correctness gate (bench/correctness.py)
    time OP    every arm on every shape, on the device's clock    sanitize OP   compute-sanitizer, the gate's last word
    judge OP   the same on the judge's                            profile       a training step (bench/step_profile.py)

`time`: milliseconds by the protocol of the public figures (bench/runner/events.py), each arm alone, by the runner's own word. Goals are
compared with these. `judge`: medians of interleaved blocks by the judge's clock (bench/timing.py), their outputs audited. A call there
carries its share of a request and of a copied answer: these figures compare arms, and are not the time of a kernel.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from bench import arms as measured
from bench import builds, clocks, correctness, goals, hardware, roofline, sanitizer, step_profile
from bench.conduct import Conduct
from bench.contracts import Case, Contract, contract, ops
from bench.finding import Finding
from bench.identity import installed
from bench.judge import Refused, error_line
from bench.sandbox import processes
from bench.timing import Arm, measure, runners_of

ROOT = Path(__file__).resolve().parent.parent
FAILED = 3
# Kinds of a refusal that another run may not meet, and words of CUDA, Triton and cuBLAS in its reason: other parts' runners may have held the memory.
BROKE = ("crash", "timeout", "OutOfMemoryError")
FULL = ("out of memory", "alloc_failed")
PACKAGES = ("torch", "triton", "flash-attn-4", "liger-kernel", "quack-kernels")
WARM_S, EVENTS_S = 120.0, 30.0  # the first call compiles
CASE_S = 1.5  # of interleaved blocks
VOCABULARY = 8192

Record = dict[str, Any]


def facts(device: str) -> Iterator[Record]:
    import torch

    packages = {package: installed(package) or "not installed" for package in PACKAGES}
    yield {"device": hardware.name(device), "cuda": torch.version.cuda, **packages}
    yield {"clocks": clocks.read(device)}


def ceilings(device: str) -> Iterator[Record]:
    yield {**roofline.ceilings(device), "clocks": clocks.read(device)}


def build(op: str, device: str) -> Iterator[Record]:
    yield _verdict(op, builds.build(ROOT, [f"kernels/{op}.py", f"csrc/{op}.cpp", f"csrc/{op}.cu"]))


def check(op: str, device: str) -> Iterator[Record]:
    yield _verdict(op, correctness.without_sanitizer(op, ROOT, device=device))


def sanitize(op: str, device: str) -> Iterator[Record]:
    yield _verdict(op, sanitizer.findings(op, ROOT, device))


def _verdict(op: str, finding: Finding) -> Record:
    """Raises Refused where the runner broke or the device was full, which says nothing of the op."""
    kind, said = finding.evidence.get("kind"), finding.reason.lower()
    if kind in BROKE or (not finding.passed and any(words in said for words in FULL)):
        raise Refused(str(kind), finding.reason)
    return {"op": op, "passed": finding.passed, "reason": finding.reason}


def step(device: str) -> Iterator[Record]:
    # the embedded text's own separator, so that a trial on it finds what was compiled here
    yield step_profile.of_step(ROOT, VOCABULARY, VOCABULARY - 1, device=device)


def timed(op: str, device: str) -> Iterator[Record]:
    asked = contract(op)
    yield {"op": op, "clocks": clocks.read(device)}
    with processes.scratch() as folder:
        arms, absent = _arms(op, device, Path(folder))
        yield from ({"op": op, "arm": name, "absent": reason} for name, reason in absent.items())
        for case in goals.cases(op, device):
            limit = roofline.limit_of(asked, case, device)
            yield {"op": op, "case": case.label(), "limit_ms": 1e3 * limit}
        # torch.compile takes longest to be ready: what is ours and others' is measured on all shapes before
        compiled = [arm for arm in arms if arm.mode == "inductor" or arm.impl == "flex"]
        for some in ([arm for arm in arms if arm not in compiled], compiled):
            yield from _timed(asked, some, device)
    yield {"op": op, "clocks": clocks.read(device)}


def _timed(asked: Contract, arms: Sequence[Arm], device: str) -> Iterator[Record]:
    # A runner draws these tensors itself: they are timed also where this machine lends no device memory.
    cases = goals.cases(asked.name, device)
    for case, runners, refused in _ready(asked, arms, device, cases, lent=False):
        for arm, runner, why in zip(arms, runners, refused, strict=True):
            found = {"refused": why} if why else _events(asked, case, arm, runner)
            # beside each figure: before and after the part the device is idle, and its clocks are low
            told = {"clocks": clocks.read(device)} | found
            yield {"op": asked.name, "case": case.label(), "arm": arm.name} | told


def judged(op: str, device: str) -> Iterator[Record]:
    asked = contract(op)
    with processes.scratch() as folder:
        arms, _ = _arms(op, device, Path(folder))
        # `time` has the other shapes; here each round brings new contents of up to 2 GiB, and newton_schulz' references take seconds a matrix
        for case, runners, refused in _ready(asked, arms, device, asked.trial[device]):
            wrong = [why or measured.why_not(op, case, arm, device) for arm, why in zip(arms, refused, strict=True)]  # fmt: skip
            able = [i for i, why in enumerate(wrong) if not why]
            few, theirs = [arms[i] for i in able], [runners[i] for i in able]
            about: Record = {"op": op, "case": case.label(), "lent": runners[0].judge.lends}
            for arm, already, why in zip(arms, refused, wrong, strict=True):
                if why and not already:  # `time` has told what does not run at all
                    yield about | {"arm": arm.name, "refused": why}
            if few:
                yield about | _judged(asked, case, few, theirs)


def _ready(
    asked: Contract, arms: Sequence[Arm], device: str, cases: Sequence[Case], *, lent: bool = True
) -> Iterator[tuple[Case, Sequence[Conduct], list[str]]]:
    """Each case, with a runner for each arm, which has compiled, and for each arm why it cannot do the case, "" if it can."""
    with (
        runners_of(asked.name, arms, device, lent=lent) as runners,
        ThreadPoolExecutor(len(runners)) as pool,
    ):
        for case in cases:
            # compilers run beside each other; what is measured runs alone
            yield case, runners, list(pool.map(partial(_warmed, asked, case), arms, runners))


def _warmed(asked: Contract, case: Case, arm: Arm, runner: Conduct) -> str:
    """Why an arm cannot do a case, or ""."""
    try:
        runner.judge.ask("warm", timeout=WARM_S, **_request(asked, case, arm))
    except Refused as refused:
        return error_line(refused)
    return ""


def _events(asked: Contract, case: Case, arm: Arm, runner: Conduct) -> Record:
    if runner.judge.device != "cuda":
        return {"events": {}}
    try:
        answer = runner.judge.ask("events", timeout=EVENTS_S, **_request(asked, case, arm))
    except Refused as refused:
        return {"refused": error_line(refused)}
    return {"events": {n: float(answer[n]) for n in goals.PASSES if n in answer}}


def _request(asked: Contract, case: Case, arm: Arm) -> Record:
    call = asked.described(case)
    return {"op": asked.name, "impl": arm.impl, "mode": arm.mode, "call": call}


def _judged(asked: Contract, case: Case, arms: Sequence[Arm], runners: Sequence[Conduct]) -> Record:
    rng = random.Random(secrets.randbits(48))
    try:
        found = measure(asked, case, arms, runners, limit_s=CASE_S, rng=rng).row
    # RuntimeError is torch's: the device is full, and the next shape may fit
    except (Refused, MemoryError, RuntimeError) as error:
        own = [i for i, arm in enumerate(arms) if measured.is_ours(arm)]
        if getattr(error, "kind", "") == "wrong" and 0 < len(own) < len(arms):
            # What others have written may be wrong on many rows alone, which `why_not` does not ask: ours are timed without them.
            alone = _judged(asked, case, [arms[i] for i in own], [runners[i] for i in own])
            return alone | {"without": error_line(error)}
        return {"refused": error_line(error)}
    medians = {name: 1e3 * statistics.median(seconds) for name, seconds in found.items()}
    return {"judge": medians, "blocks": min(map(len, found.values()))}


def _arms(op: str, device: str, folder: Path) -> tuple[list[Arm], dict[str, str]]:
    """Who can be asked, and why others cannot."""
    written, absent = measured.peers(op, device, folder)
    arms = measured.arms(op, device, compiled=True)
    libraries = {arm.name for arm in arms if arm.impl in measured.LIBRARIES and device != "cuda"}
    reason = f"runs on CUDA tensors, and --device is {device}"
    absent |= dict.fromkeys(libraries, reason)
    return [arm for arm in arms if arm.name not in libraries] + written, absent


OF_AN_OP = {"build": build, "check": check, "sanitize": sanitize, "time": timed, "judge": judged}
WHOLE = {"facts": facts, "ceilings": ceilings, "profile": step}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python -m bench.gpu_parts",
    )
    parser.add_argument("part", choices=(*WHOLE, *OF_AN_OP))
    parser.add_argument("op", nargs="?", choices=ops())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    asked = parser.parse_args(arguments)
    if (asked.part in OF_AN_OP) != (asked.op is not None):
        parser.error(f"{', '.join(OF_AN_OP)} need an op, and the other parts take none")
    if asked.op:
        found = OF_AN_OP[asked.part](asked.op, asked.device)
    else:
        found = WHOLE[asked.part](asked.device)
    passed, started = True, time.monotonic()
    try:
        for record in found:
            passed = passed and record.get("passed", True)
            print(json.dumps(record | {"at_s": round(time.monotonic() - started, 1)}), flush=True)
    except Refused as refused:
        print(error_line(refused), file=sys.stderr)
        # the next call would find the same machine, but for memory that others hold
        full = any(words in str(refused).lower() for words in FULL)
        return 1 if refused.kind == "machine" and not full else FAILED
    # At the boundary of the process: Python's own status for a traceback, 1, means refused here.
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return FAILED
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
