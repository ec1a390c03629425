"""Checks of the correctness gate: whose work it is. Operators that keep their word, no library function that is the whole op, a kernel that really runs."""

from __future__ import annotations

from typing import Any

import torch

from bench.examination import Laid
from bench.judge import Refused
from bench.subject import Subject


def own_work(subject: Subject, impl: str | None) -> None:
    """No library function that is the whole op; and a C++ implementation's results come from its library."""
    of, contract, named = subject.of, subject.contract, impl or subject.default
    trial = subject.trial
    of.rng.shuffle(trial)
    if named not in contract.library_names:
        case = trial[0] if impl is None else contract.large(of.rng)
        _no_library(subject, of.lay(case), impl)
    if named == "cpp":
        spoiled = (of.ask(of.lay(case), impl, "spoil") for case in trial)
        if all(bool(torch.isfinite(t).all()) for each in spoiled for t in each.values()):
            raise Refused(
                "unused",
                f"impl={impl or 'default'}: with every result of csrc/{contract.name}.cpp replaced by NaN nothing changes on "
                "any shape of the trial: the kernel does not run, or its results are not used",
            )


def _no_library(subject: Subject, laid: Laid, impl: str | None) -> None:
    contract = subject.contract
    asked: dict[str, Any] = {"op": contract.name, "impl": impl, "call": laid.call}
    operators = map(str, subject.of.judge.ask("trace", **asked)["operators"])
    whole = [name for name in operators if name.startswith(contract.library)]
    if contract.library and whole:
        names = ", ".join(contract.library_names)
        mend = f"name the implementation one of {names}" if names else "compute it here"
        raise Refused(
            "library",
            f"impl={impl or 'default'} calls {', '.join(whole)}, which is the whole op; {mend}",
        )


def registered(subject: Subject, impl: str | None) -> None:
    """Custom operators keep their schema, and their fakes tell the truth."""
    subject.of.ask(subject.of.lay(subject.wide()), impl, "register")
