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

HELD_CASES = 3
PLANTED = 2  # cases
FUTURES = 4
LOUD = 30.0  # times the usual size of what comes after the cut


def values(subject: Subject, impl: str | None) -> None:
    """Drawn cases, each twice at the same addresses with other contents; some answers are held and read again at the end.

    Of an op that overwrites its arguments those answers are held whose arguments are the runner's own: the judge's get other contents.
    """
    of, updates = subject.of, subject.contract.updates
    held: list[tuple[Case, Tensors]] = []
    for i, case in enumerate(subject.drawn):
        layout = of.rng.choice(("contiguous", "transposed", "expanded"))
        laid = of.lay(case, upstream=layout)
        for again, dress in enumerate(("lent", of.rng.choice(("lent", "alias", "copy")))):
            if again:
                of.refill(laid)
            hold = i < HELD_CASES and (dress == "copy" or not updates)
            answer = of.ask(laid, impl, dress=dress, hold=hold)
            of.verify(laid, answer, impl)
            if hold:
                held.append((case, answer))
    _recall(subject, held)


def _recall(subject: Subject, held: Sequence[tuple[Case, Tensors]]) -> None:
    arena = subject.of.judge.arena
    arena.reset()
    outputs = [
        [arena.place(str(t.dtype)[6:], tuple(t.shape)) for t in answer.values()]
        for _, answer in held
    ]
    subject.of.judge.ask("recall", outputs=outputs)
    for (case, answer), places in zip(held, outputs, strict=True):
        for (name, before), where in zip(answer.items(), places, strict=True):
            if not same_bits(arena.view(where), before):
                raise Refused(
                    "stale",
                    f"{name} changed after it was returned (an output buffer is reused): {case.label()}",
                )


def recorded(subject: Subject, impl: str | None) -> None:
    """What the op was called with in a training run."""
    for case, inputs in captured.cases(subject.contract.name):
        laid = subject.of.lay(case, values=inputs)
        subject.of.verify(laid, subject.of.ask(laid, impl), impl)


def corners(subject: Subject, impl: str | None) -> None:
    """What overflows, and what is empty."""
    for case in subject.contract.corners(subject.of.rng):
        laid = subject.of.lay(case)
        subject.of.verify(laid, subject.of.ask(laid, impl), impl)


def arguments(subject: Subject, impl: str | None) -> None:
    """Every argument varied alone must move the result, to where the reference says."""
    of = subject.of
    base, scalars = subject.contract.telling(of.rng)
    laid = of.lay(base, ())
    first = of.ask(laid, impl)
    of.verify(laid, first, impl)
    usual = of.lay(replace(base, scalars={}), ())  # the defaults are part of the op
    of.verify(usual, of.ask(usual, impl), impl, what="with its defaults")
    laid = of.again(laid)
    for name, value in scalars.items():
        laid.case = replace(base, scalars={**base.scalars, name: value})
        laid.call["scalars"][name] = value
        _moved(subject, laid, first, name, impl)
        laid.call["scalars"][name] = base.scalars[name]
    laid.case = base
    for name, wanted in base.inputs.items():
        before = laid.inputs[name]
        of.put(laid, name, wanted.values(of.generator))
        _moved(subject, laid, first, name, impl)
        of.put(laid, name, before)


def _moved(subject: Subject, laid: Laid, first: Tensors, name: str, impl: str | None) -> None:
    of, contract = subject.of, subject.contract
    answer = of.ask(laid, impl)
    # a property may be reached in other ways than by doing as many steps as asked
    exact = contract.judge is None
    if exact and all(same_bits(answer[r], first[r]) for r in contract.results):
        raise Refused(
            "ignored",
            f"{of.where(impl, '', laid.case)}: the result does not depend on {name}",
        )
    of.verify(laid, answer, impl, what=f"with another {name}")


def planted(subject: Subject, impl: str | None) -> None:
    """A NaN shows wherever it is seen, and nowhere else."""
    for case in subject.drawn[:PLANTED]:
        planting.check(subject.of, subject.of.lay(case, ()), impl)


def future(subject: Subject, impl: str | None) -> None:
    """Change everything from a random cut on, loudly: results before the cut stay what they were, up to their last bits."""
    of, axis = subject.of, subject.contract.time_axis
    if not axis:
        return
    long = [c for c in subject.drawn if c.inputs["q"].shape[axis["q"]] > 1][: FUTURES - 1]
    for case in [*long, *([of.rng.choice(subject.trial)] if impl is None else [])]:
        case = replace(case, scalars={**case.scalars, "causal": True})
        laid = of.lay(case, ())
        first = of.ask(laid, impl)
        T = case.inputs["q"].shape[axis["q"]]
        cut = of.rng.randint(1, T - 1)
        for name, dim in axis.items():
            if name in laid.inputs:
                changed = laid.inputs[name].clone()
                tail = changed.narrow(dim, cut, T - cut)
                size = LOUD * float(changed.double().abs().mean())
                tail.copy_(size * torch.randn(tail.shape, generator=of.generator))
                of.put(laid, name, changed)
        second = of.ask(laid, impl)
        for name in subject.contract.results:
            before, after = (a[name].narrow(axis[name], 0, cut) for a in (first, second))
            # a kernel may round otherwise beside other data; LOUD data that leak move it far more
            slack = 8 * torch.finfo(before.dtype).eps * float(before.abs().max())
            if not bool(((before - after).abs() <= slack).all()):
                raise Refused(
                    "future",
                    f"{name} before position {cut} of {T} depends on inputs from {cut} on: {of.where(impl, '', case)}",
                )
