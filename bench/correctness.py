"""The correctness gate: is `kernels/<op>.py` of a tree the op that its contract describes?

The judge draws cases from a secret seed, fills its own buffers, poisons the outputs, lets the runner answer, and compares with float64
(bench/comparison.py), which it computes after the answer. CHECKS lists what is asked, in this order; each is a few lines in
bench/correctness_values.py, bench/correctness_training.py or bench/correctness_origin.py. What they share is in bench/subject.py, how a case is
laid out, asked and compared in bench/examination.py. A runner of this gate allocates poisoned memory: what was never written reads as -1.7e38.
On a GPU compute-sanitizer has the last word (bench/sanitizer.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import correctness_origin as origin
from bench import correctness_training as training
from bench import correctness_values as values
from bench import device_memory, sanitizer
from bench.conduct import Conduct
from bench.contracts import contract
from bench.examination import Examination
from bench.finding import Finding
from bench.implementations import runnable
from bench.judge import Judge, Refused
from bench.subject import Subject
from bench.threads import one_thread

DRAWN_CASES = 8
# For an implementation that is asked for by its name: fewer, as a trial runs the default.
DRAWN_FOR_NAMED = 3

Check = Callable[[Subject], None]
# Asked of the public function as the trial calls it.
CHECKS: tuple[Check, ...] = (
    values.values,
    values.recorded,
    values.corners,
    values.arguments,
    values.planted,
    values.future,
    training.orders,
    training.trial_shapes,
    training.under_way,
    training.threads,
    origin.own_work,
    origin.registered,
    training.compiled,
    training.autocast,
)
# Asked of every implementation by its name.
CHECKS_OF_NAMED: tuple[Check, ...] = (
    values.values,
    values.planted,
    values.future,
    training.orders,
    training.threads,
    origin.own_work,
)
# Asked of the public function again, when every implementation has been through its checks.
LAST_CHECKS: tuple[Check, ...] = (training.aged, training.inference)


def check(op: str, tree: Path, *, device: str = "cpu", seed: int | None = None) -> Finding:
    """Judge an op of a tree: its default implementation and every other that runs on the device."""
    found = without_sanitizer(op, tree, device=device, seed=seed)
    if not found.passed:
        return found
    looked = sanitizer.findings(op, tree, device)
    evidence = {**found.evidence, **looked.evidence}
    if not looked.passed:
        return Finding(False, looked.reason, {**evidence, "kind": "sanitizer", "op": op})
    return Finding(True, found.reason, evidence)


def without_sanitizer(op: str, tree: Path, *, device: str, seed: int | None = None) -> Finding:
    """The same without compute-sanitizer's last word."""
    memory = device_memory.lendable(device)
    with Judge(tree, device=device, poison=True, memory=memory) as judge:
        return examined(op, judge, seed)


def examined(op: str, judge: Judge, seed: int | None = None) -> Finding:
    """All checks of an op, by a runner that has loaded nothing of its tree yet."""
    evidence: dict[str, Any] = {"device": judge.device, "cases": 0, "implementations": []}
    try:
        with one_thread():
            evidence["isolation"] = judge.isolation
            loaded = judge.ask("load", op=op, tree=str(judge.tree))
            evidence["memory"] = judge.lends
            names = [str(name) for name in loaded["implementations"]]
            exam = Examination(contract(op), judge, secrets.randbits(48) if seed is None else seed)
            subject = Subject(exam, str(loaded["default"] or ""))
            try:
                for impl in [None, *runnable(names, judge.device)]:
                    _examine(subject, impl)
                    # the share of the allowed error, by tensor
                    used = [{"tensor": name, "used": round(x, 3)} for name, x in exam.used.items()]
                    evidence["implementations"].append({"impl": impl or "default", "tensors": used})
                exam.impl = None
                for each in LAST_CHECKS:
                    each(subject)
                Conduct("candidate", judge).unchanged()
            finally:
                evidence["cases"] = exam.cases
    except Refused as refused:
        return Finding(False, str(refused), {**evidence, "kind": refused.kind, "op": op})
    return Finding(True, f"{exam.cases} cases agree with float64", evidence)


def _examine(subject: Subject, impl: str | None) -> None:
    """All checks of one implementation, on cases of its own."""
    subject.exam.impl = impl
    subject.exam.used = {}
    count = DRAWN_CASES if impl is None else DRAWN_FOR_NAMED
    subject.drawn = [subject.contract.draw(subject.exam.rng) for _ in range(count)]
    for each in CHECKS if impl is None else CHECKS_OF_NAMED:
        each(subject)
