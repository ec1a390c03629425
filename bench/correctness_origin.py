"""Checks of the correctness gate: whose work it is.

No library function that is the whole op, a kernel that really runs, custom operators that keep their schema.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from bench.implementations import triton_kernels
from bench.judge import Refused
from bench.subject import Subject

# Implementations whose library kernels/jit.py loads, and the suffix of its source.
LANGUAGES = {"cpp": "cpp", "cuda": "cu"}


def own_work(subject: Subject) -> None:
    """No library function is the whole op; results of a C++ or CUDA implementation come from its library; on a GPU a Triton kernel is launched."""
    exam, contract, trial = subject.exam, subject.contract, subject.trial
    named = exam.impl or subject.default
    exam.rng.shuffle(trial)
    launched = named == "triton" and exam.judge.device == "cuda"
    if named not in contract.library_names or launched:
        # of several kinds: a library may be called for some of them alone
        cases = [contract.large(exam.rng), *contract.corners(exam.rng)]
        cases += () if exam.impl else trial
        seen = [
            exam.judge.ask("trace", op=contract.name, impl=exam.impl, call=exam.lay(case).call)
            for case in cases
        ]
        if named not in contract.library_names:
            _no_library(subject, (str(name) for each in seen for name in each["operators"]))
        if launched:
            # of the default's calls those of the trial: a kernel that runs on other shapes alone trains nothing
            told = seen if exam.impl else seen[-len(trial) :]
            _ours_launched(subject, {str(name) for each in told for name in each["launches"]})
    if named in LANGUAGES:
        spoiled = (exam.ask(exam.lay(case), "spoil") for case in trial)
        if all(bool(torch.isfinite(t).all()) for each in spoiled for t in each.values()):
            raise Refused(
                "unused",
                f"{exam.named}: replacing every result of csrc/{contract.name}.{LANGUAGES[named]} by NaN changes nothing on "
                "any shape of the trial: the kernel does not run, or its results are not used",
            )


def _no_library(subject: Subject, operators: Iterable[str]) -> None:
    contract = subject.contract
    whole = sorted({name for name in operators if name.startswith(contract.library)})
    if contract.library and whole:
        names = ", ".join(contract.library_names)
        mend = f"name the implementation one of {names}" if names else "compute it here"
        said = f"{subject.exam.named} calls {', '.join(whole)}, which is the whole op; {mend}"
        raise Refused("library", said)


def _ours_launched(subject: Subject, launches: set[str]) -> None:
    file = f"kernels/{subject.contract.name}.py"
    ours = triton_kernels(subject.exam.judge.tree / file)
    if not launches & ours:
        raise Refused(
            "unused",
            f"{subject.exam.named}: a call launches {', '.join(sorted(launches)) or 'nothing'}, and no kernel of {file} "
            f"({', '.join(sorted(ours))}): it does not run",
        )


def registered(subject: Subject) -> None:
    """Custom operators keep their schema, and their fake implementations tell the truth."""
    subject.exam.ask(subject.exam.lay(subject.wide()), "register")
