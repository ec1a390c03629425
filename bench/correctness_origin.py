"""Checks of the correctness gate: whose work it is.

No library function that is the whole op, a kernel that really runs, custom operators that keep their schema.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from bench.judge import Refused
from bench.subject import Subject
from bench.trial_claims import triton_kernels

# Implementations whose library kernels/jit.py loads, and the suffix of its source.
LANGUAGES = {"cpp": "cpp", "cuda": "cu"}


def own_work(subject: Subject, impl: str | None) -> None:
    """No library function is the whole op; results of a C++ or CUDA implementation come from its library; on a GPU a Triton kernel is launched."""
    exam, contract, named = subject.exam, subject.contract, impl or subject.default
    trial = subject.trial
    exam.rng.shuffle(trial)
    launched = named == "triton" and exam.judge.device == "cuda"
    if named not in contract.library_names or launched:
        # of several kinds: a library may be called for some of them alone
        cases = [contract.large(exam.rng), *contract.corners(exam.rng), *(() if impl else trial)]
        seen = [
            exam.judge.ask("trace", op=contract.name, impl=impl, call=exam.lay(case).call)
            for case in cases
        ]
        if named not in contract.library_names:
            _no_library(subject, (str(name) for each in seen for name in each["operators"]), impl)
        if launched:
            _ours_launched(subject, {str(name) for each in seen for name in each["launches"]}, impl)
    if named in LANGUAGES:
        spoiled = (exam.ask(exam.lay(case), impl, "spoil") for case in trial)
        if all(bool(torch.isfinite(t).all()) for each in spoiled for t in each.values()):
            raise Refused(
                "unused",
                f"impl={impl or 'default'}: replacing every result of csrc/{contract.name}.{LANGUAGES[named]} by NaN changes nothing on "
                "any shape of the trial: the kernel does not run, or its results are not used",
            )


def _no_library(subject: Subject, operators: Iterable[str], impl: str | None) -> None:
    contract = subject.contract
    whole = sorted({name for name in operators if name.startswith(contract.library)})
    if contract.library and whole:
        names = ", ".join(contract.library_names)
        mend = f"name the implementation one of {names}" if names else "compute it here"
        raise Refused(
            "library",
            f"impl={impl or 'default'} calls {', '.join(whole)}, which is the whole op; {mend}",
        )


def _ours_launched(subject: Subject, launches: set[str], impl: str | None) -> None:
    file = f"kernels/{subject.contract.name}.py"
    ours = triton_kernels(subject.exam.judge.tree / file)
    if not launches & ours:
        raise Refused(
            "unused",
            f"impl={impl or 'default'}: a call launches {', '.join(sorted(launches)) or 'nothing'}, and no kernel of {file} "
            f"({', '.join(sorted(ours))}): it does not run",
        )


def registered(subject: Subject, impl: str | None) -> None:
    """Custom operators keep their schema, and their fake implementations tell the truth."""
    subject.exam.ask(subject.exam.lay(subject.wide()), impl, "register")
