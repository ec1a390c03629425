"""Checks of the correctness gate: the op as a training run uses it.

Orders of backward, the trial's shapes, numbers of threads, modes of torch, and thousands of calls.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from bench.contracts import Case
from bench.examination import Examination, Tensors, same_bits
from bench.subject import Known, Subject, in_dtype

# A call is repeated under other thread counts, each a chance for a race to show: REPEATS times at least, and on until REPEAT_S are over. Beside
# other work threads seldom run at once: twelve repeats, a quarter of them with one thread, let a race pass (tests/cheats/rms_norm_races.cpp).
REPEATS, REPEAT_S = 24, 0.5
# Where a call is long, or the implementation is not the device's choice.
FEW_REPEATS = 4
THREADS = (2, 1, 3, 5, 2, 8, 3, 5)
# A trial on two cores calls rms_norm 6 times a step, 6,700 to 13,000 times in all (7,594 to 14,827 tokens/s): more calls at most, as far as the time goes.
AGE_CALLS, AGE_S = 20_000, 1.0


def orders(subject: Subject) -> None:
    """Forward, forward, backward, backward; one leaf through two calls; gradients through some results only, and of some inputs only."""
    exam = subject.exam
    cases = [case for case in subject.drawn if not case.forward_only][:2]
    if not cases or not subject.contract.differentiable:
        return
    for other in {id(case): case for case in (cases[0], cases[-1])}.values():
        both = [exam.lay(cases[0]), exam.lay(other, fresh=False)]
        answers = exam.ask_all(both, "interleave")
        for laid, answer in zip(both, answers, strict=True):
            exam.verify(laid, answer, what="forward, forward, backward, backward")
    laid = exam.lay(cases[0])
    answer = exam.ask(laid, "accumulate")
    twice = [2 * each.double() for each in laid.upstream]
    standard = exam.standard(laid, upstream=twice)
    exam.verify(laid, answer, what="two calls, gradients accumulated", standard=standard)
    for i, result in enumerate(subject.contract.results):
        reached = _reached(subject, cases[0], i)
        for wrt in [reached, *([name] for name in reached)]:
            what = f"gradient of {', '.join(wrt)} through {result} alone"
            exam.right(exam.lay(cases[0], wrt, through=(i,)), what=what)


def _reached(subject: Subject, case: Case, result: int) -> list[str]:
    """The inputs that a gradient of one result flows back to."""
    generator = subject.exam.generator
    inputs: Tensors = {name: each.values(generator) for name, each in case.inputs.items()}
    names = subject.contract.wrt(case)
    for name in names:
        inputs[name] = inputs[name].clone().requires_grad_()
    results = subject.contract.reference(**inputs, **case.scalars)
    one = results[result] if isinstance(results, tuple) else results
    found = torch.autograd.grad(one.sum(), [inputs[n] for n in names], allow_unused=True)
    return [name for name, gradient in zip(names, found, strict=True) if gradient is not None]


def trial_shapes(subject: Subject) -> None:
    """Every shape that the model uses, in the form in which it calls, and every crossing: the shape of one, the dtype of another, the scalars of a third."""
    crossed = subject.trial
    for case, other, third in itertools.product(subject.trial, repeat=3):
        each = replace(in_dtype(_first_dtype(other), case), scalars=third.scalars)
        if each not in crossed:
            crossed.append(each)
    for case in crossed:
        laid = subject.exam.lay(subject.contract.as_called(case, subject.exam.rng))
        subject.known.append(subject.answered(laid, passing="copy"))


def under_way(subject: Subject) -> None:
    """Two calls of a shape of the trial at once: what the first keeps for its backward pass outlives the second."""
    exam = subject.exam
    for known in [each for each in subject.known if each.laid.wrt][:2]:
        both = [exam.again(known.laid), exam.lay(known.laid.case, fresh=False)]
        answer, _ = exam.ask_all(both, "interleave")
        exam.verify(both[0], answer, what="two calls under way", standard=known.standard)


def threads(subject: Subject) -> None:
    """Other numbers of threads, more than there are cores: every answer is right, however they meet."""
    exam = subject.exam
    large = subject.answered(exam.lay(subject.contract.large(exam.rng)))
    times, seconds = (REPEATS, REPEAT_S) if exam.impl is None else (FEW_REPEATS, 0.0)
    _repeat(exam, large, times, seconds)
    exam.right(exam.again(large.laid, ()), mode="no_grad", what="no_grad", standard=large.standard)
    # Other implementations take long for the trial's shapes, and a trial does not run them.
    if exam.impl is None:
        known = exam.rng.choice(subject.known)
        _repeat(exam, replace(known, laid=exam.again(known.laid)), FEW_REPEATS)


def _repeat(exam: Examination, known: Known, times: int, seconds: float = 0.0) -> None:
    until = time.monotonic() + seconds
    for i in itertools.count():
        if i >= times and time.monotonic() >= until:
            break
        count = THREADS[i % len(THREADS)]
        answer = exam.ask(known.laid, threads=count)
        if not all(same_bits(answer[name], known.answer[name]) for name in answer):
            what = f"repeated with {count} threads"
            exam.verify(known.laid, answer, what=what, standard=known.standard)


def compiled(subject: Subject) -> None:
    """Under torch.compile, without a graph break."""
    _in_mode(subject, "compile", "compile")


def _in_mode(subject: Subject, mode: str, what: str, wrt: Sequence[str] | None = None) -> None:
    """A drawn case, and one of the trial's."""
    exam = subject.exam
    exam.right(exam.lay(subject.wide(), wrt), mode=mode, what=what)
    laid, standard = subject.known_call(wrt)
    exam.right(laid, mode=mode, what=what, standard=standard)


def autocast(subject: Subject) -> None:
    """float32 inputs under autocast to bfloat16: as close as the plain implementation in bfloat16."""
    exam = subject.exam
    if not subject.contract.differentiable:
        return
    known = [k for k in subject.known if _first_dtype(k.laid.case) == "float32"]
    chosen = exam.rng.choice(known) if known and exam.rng.random() < 0.5 else None
    laid = exam.again(chosen.laid) if chosen else exam.lay(in_dtype("float32", subject.wide()))
    answer = exam.ask(laid, mode="autocast")
    if chosen:
        standard = chosen.standard.working_in(torch.bfloat16)
    else:
        standard = exam.standard(laid, working=torch.bfloat16)
    exam.verify(laid, answer, what="autocast", standard=standard)


def _first_dtype(case: Case) -> str:
    return next(iter(case.inputs.values())).dtype


def aged(subject: Subject) -> None:
    """After as many calls as a training run makes in a while, the op is still what it was."""
    exam = subject.exam
    small = exam.lay(subject.contract.telling(exam.rng)[0])
    asked: dict[str, Any] = {"op": subject.contract.name, "impl": exam.impl, "call": small.call}
    made = exam.judge.ask("age", n=AGE_CALLS, seconds=AGE_S, **asked)["calls"]
    laid, standard = subject.known_call()
    exam.right(laid, passing="copy", what=f"after {made} more calls", standard=standard)


def inference(subject: Subject) -> None:
    """In inference mode. The last of all calls: inference tensors that a kernel keeps from here on are of no use outside that mode."""
    _in_mode(subject, "inference", "inference mode", ())
