"""Checks of the correctness gate: are the values right, do they come from these inputs and no others, and do they stay?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from bench import planting
from bench.contracts import Case, captured
from bench.examination import Laid, Tensors, same_bits
from bench.judge import Refused
from bench.subject import Subject

# Cases of each check.
HELD_CASES, PLANTED, FUTURES = 3, 2, 4
# What comes after the cut is so many times as large as usual.
LOUD = 30.0


def values(subject: Subject) -> None:
    """Drawn cases, each twice at the same addresses with other contents; some answers are held and read again at the end.

    For an op that overwrites its arguments, only answers whose arguments are the runner's own are held: the judge's buffers get other contents.
    """
    exam, updates = subject.exam, subject.contract.updates
    held: list[tuple[Case, Tensors]] = []
    for i, case in enumerate(subject.drawn):
        layout = exam.rng.choice(("contiguous", "transposed", "expanded"))
        laid = exam.lay(case, layout=layout)
        for again, passing in enumerate(("lent", exam.rng.choice(("lent", "alias", "copy")))):
            if again:
                exam.fill(laid)
            hold = i < HELD_CASES and (passing == "copy" or not updates)
            answer = exam.right(laid, passing=passing, hold=hold)
            if hold:
                held.append((case, answer))
    _recall(subject, held)


def _recall(subject: Subject, held: Sequence[tuple[Case, Tensors]]) -> None:
    arena = subject.exam.judge.arena
    arena.reset()
    outputs = [
        [arena.place(str(t.dtype)[6:], tuple(t.shape)) for t in answer.values()]
        for _, answer in held
    ]
    subject.exam.judge.ask("recall", outputs=outputs)
    for (case, answer), places in zip(held, outputs, strict=True):
        for (name, before), where in zip(answer.items(), places, strict=True):
            if not same_bits(arena.view(where), before):
                raise Refused(
                    "stale",
                    f"{name} changed after it was returned (an output buffer is reused): {case.label()}",
                )


def recorded(subject: Subject) -> None:
    """What the op was called with in a training run."""
    for case, inputs in captured.cases(subject.contract.name):
        subject.exam.right(subject.exam.lay(case, values=inputs))


def corners(subject: Subject) -> None:
    """What overflows, and what is empty."""
    for case in subject.contract.corners(subject.exam.rng):
        subject.exam.right(subject.exam.lay(case))


def arguments(subject: Subject) -> None:
    """Each argument varied alone must move the result, and to where the reference says."""
    exam = subject.exam
    base, scalars = subject.contract.telling(exam.rng)
    laid = exam.lay(base, ())
    first = exam.right(laid)
    # the defaults are part of the op
    exam.right(exam.lay(replace(base, scalars={}), ()), what="with its defaults")
    laid = exam.again(laid)
    for name, value in scalars.items():
        laid.case = replace(base, scalars={**base.scalars, name: value})
        laid.call["scalars"][name] = value
        _moved(subject, laid, first, name)
        laid.call["scalars"][name] = base.scalars[name]
    laid.case = base
    for name, wanted in base.inputs.items():
        before = laid.inputs[name]
        exam.put(laid, name, wanted.values(exam.generator))
        _moved(subject, laid, first, name)
        exam.put(laid, name, before)


def _moved(subject: Subject, laid: Laid, first: Tensors, name: str) -> None:
    exam, contract = subject.exam, subject.contract
    answer = exam.ask(laid)
    # a property may be reached in other ways than by doing as many steps as asked
    exact = contract.criterion is None
    if exact and all(same_bits(answer[r], first[r]) for r in contract.results):
        where = exam.where(laid.case)
        raise Refused("ignored", f"{where}: the result does not depend on {name}")
    exam.verify(laid, answer, what=f"with another {name}")


def planted(subject: Subject) -> None:
    """A NaN shows wherever it is seen, and nowhere else."""
    for case in subject.drawn[:PLANTED]:
        planting.check(subject.exam, subject.exam.lay(case, ()))


def future(subject: Subject) -> None:
    """Everything from a random cut on is changed, loudly: results before the cut stay what they were, but for their last bits."""
    exam, axis = subject.exam, subject.contract.time_axis
    if not axis:
        return

    def length(case: Case) -> int:
        return next(
            case.inputs[name].shape[dim] for name, dim in axis.items() if name in case.inputs
        )

    long = [case for case in subject.drawn if length(case) > 1][: FUTURES - 1]
    for case in [*long, *([exam.rng.choice(subject.trial)] if exam.impl is None else [])]:
        if "causal" in case.scalars:
            case = replace(case, scalars={**case.scalars, "causal": True})
        laid = exam.lay(case, ())
        first = exam.ask(laid)
        T = length(case)
        cut = exam.rng.randint(1, T - 1)
        for name, dim in axis.items():
            if name in laid.inputs:
                changed = laid.inputs[name].clone()
                tail = changed.narrow(dim, cut, T - cut)
                size = LOUD * float(changed.double().abs().mean())
                tail.copy_(size * torch.randn(tail.shape, generator=exam.generator))
                exam.put(laid, name, changed)
        second = exam.ask(laid)
        for name in subject.contract.results:
            before, after = (a[name].narrow(axis[name], 0, cut) for a in (first, second))
            # a kernel may round otherwise beside other data; LOUD data that leak move it far more
            slack = 8 * torch.finfo(before.dtype).eps * float(before.abs().max())
            if not bool(((before - after).abs() <= slack).all()):
                raise Refused(
                    "future",
                    f"{name} before position {cut} of {T} depends on inputs from {cut} on: {exam.where(case)}",
                )
