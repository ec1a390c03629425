"""Checks of the correctness gate: the op as a training run uses it.

Orders of backward, the trial's shapes, numbers of threads, modes of torch, and thousands of calls.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Any

import torch

from bench.comparison import Standard
from bench.contracts import Case
from bench.examination import Laid, Tensors, same_bits
from bench.subject import Known, Subject, in_dtype

# A call is repeated under other thread counts, each a chance for a race to show: REPEATS times at least, and on until REPEAT_S are over. Beside
# other work threads seldom run at once: twelve repeats, a quarter of them with one thread, let a race pass (tests/cheats/rms_norm_races.cpp).
REPEATS, REPEAT_S = 24, 0.5
# Where a call is long, or the implementation is not the device's choice.
FEW_REPEATS = 4
THREADS = (2, 1, 3, 5, 2, 8, 3, 5)
# A trial on two cores calls rms_norm 6 times a step, 6,700 to 9,200 times in all: twice as many calls at most, as far as the time goes.
AGE_CALLS, AGE_S = 20_000, 1.0


def orders(subject: Subject, impl: str | None) -> None:
    """Forward, forward, backward, backward; one leaf through two calls; gradients through some results only, and of some inputs only."""
    exam = subject.exam
    cases = subject.differentiable(subject.drawn)[:2]
    if not cases:
        return
    for other in {id(case): case for case in (cases[0], cases[-1])}.values():
        both = [exam.lay(cases[0]), exam.lay(other, fresh=False)]
        answers = exam.ask_all(both, impl, "interleave")
        for laid, answer in zip(both, answers, strict=True):
            exam.verify(laid, answer, impl, what="forward, forward, backward, backward")
    laid = exam.lay(cases[0])
    answer = exam.ask(laid, impl, "accumulate")
    twice = [2 * each.double() for each in laid.upstream]
    standard = exam.standard(laid, upstream=twice)
    exam.verify(laid, answer, impl, what="two calls, gradients accumulated", standard=standard)
    for i, result in enumerate(subject.contract.results):
        reached = _reached(subject, cases[0], i)
        for wrt in [reached, *([name] for name in reached)]:
            laid = exam.lay(cases[0], wrt, through=(i,))
            what = f"gradient of {', '.join(wrt)} through {result} alone"
            exam.verify(laid, exam.ask(laid, impl), impl, what=what)


def _reached(subject: Subject, case: Case, result: int) -> list[str]:
    """The inputs that a gradient of one result flows back to."""
    generator = subject.exam.generator
    inputs: Tensors = {name: each.values(generator) for name, each in case.inputs.items()}
    names = [name for name in subject.contract.differentiable if name in inputs]
    for name in names:
        inputs[name] = inputs[name].clone().requires_grad_()
    results = subject.contract.reference(**inputs, **case.scalars)
    one = results[result] if isinstance(results, tuple) else results
    found = torch.autograd.grad(one.sum(), [inputs[n] for n in names], allow_unused=True)
    return [name for name, gradient in zip(names, found, strict=True) if gradient is not None]


def trial_shapes(subject: Subject, impl: str | None) -> None:
    """Every shape that the model uses, in the form in which it calls, and every crossing: the shape of one, the dtype of another, the scalars of a third."""
    crossed = subject.trial
    for case, other, third in itertools.product(subject.trial, repeat=3):
        each = replace(in_dtype(_first_dtype(other), case), scalars=third.scalars)
        if each not in crossed:
            crossed.append(each)
    for case in crossed:
        laid = subject.exam.lay(subject.contract.as_called(case, subject.exam.rng))
        answer = subject.exam.ask(laid, impl, dress="copy")
        standard = subject.exam.standard(laid)
        subject.exam.verify(laid, answer, impl, standard=standard)
        subject.known.append(Known(laid, answer, standard))


def under_way(subject: Subject, impl: str | None) -> None:
    """Two calls of a shape of the trial at once: what the first keeps for its backward pass outlives the second."""
    exam = subject.exam
    for known in [each for each in subject.known if each.laid.wrt][:2]:
        both = [exam.again(known.laid), exam.lay(known.laid.case, fresh=False)]
        answer, _ = exam.ask_all(both, impl, "interleave")
        exam.verify(both[0], answer, impl, what="two calls under way", standard=known.standard)


def threads(subject: Subject, impl: str | None) -> None:
    """Other numbers of threads, more than there are cores: every answer is right, however they meet."""
    exam = subject.exam
    laid = exam.lay(subject.contract.large(exam.rng))
    first = exam.ask(laid, impl)
    standard = exam.standard(laid)
    exam.verify(laid, first, impl, standard=standard)
    times, seconds = (REPEATS, REPEAT_S) if impl is None else (FEW_REPEATS, 0.0)
    _repeat(subject, laid, first, standard, impl, times, seconds)
    forward = exam.again(laid, ())
    answer = exam.ask(forward, impl, mode="no_grad")
    exam.verify(forward, answer, impl, what="no_grad", standard=standard)
    # Other implementations take long for the trial's shapes, and a trial does not run them.
    if impl is None:
        known = exam.rng.choice(subject.known)
        laid = exam.again(known.laid)
        _repeat(subject, laid, known.answer, known.standard, impl, FEW_REPEATS)


def _repeat(
    subject: Subject,
    laid: Laid,
    right: Tensors,
    standard: Standard,
    impl: str | None,
    times: int,
    seconds: float = 0.0,
) -> None:
    until = time.monotonic() + seconds
    for i in itertools.count():
        if i >= times and time.monotonic() >= until:
            break
        count = THREADS[i % len(THREADS)]
        answer = subject.exam.ask(laid, impl, threads=count)
        if not all(same_bits(answer[name], right[name]) for name in answer):
            what = f"repeated with {count} threads"
            subject.exam.verify(laid, answer, impl, what=what, standard=standard)


def compiled(subject: Subject, impl: str | None) -> None:
    """Under torch.compile, without a graph break."""
    exam = subject.exam
    laid = exam.lay(subject.wide())
    exam.verify(laid, exam.ask(laid, impl, mode="compile"), impl, what="compile")
    laid, standard = subject.known_call()
    answer = exam.ask(laid, impl, mode="compile")
    exam.verify(laid, answer, impl, what="compile", standard=standard)


def autocast(subject: Subject, impl: str | None) -> None:
    """float32 inputs under autocast to bfloat16: as close as the plain implementation in bfloat16."""
    exam = subject.exam
    if not subject.contract.differentiable:
        return
    known = [k for k in subject.known if _first_dtype(k.laid.case) == "float32"]
    if known and exam.rng.random() < 0.5:
        chosen = exam.rng.choice(known)
        laid, standard = exam.again(chosen.laid), chosen.standard.working_in(torch.bfloat16)
        answer = exam.ask(laid, impl, mode="autocast")
    else:
        laid = exam.lay(in_dtype("float32", subject.wide()))
        answer = exam.ask(laid, impl, mode="autocast")
        standard = exam.standard(laid, working=torch.bfloat16)
    exam.verify(laid, answer, impl, what="autocast", standard=standard)


def _first_dtype(case: Case) -> str:
    return next(iter(case.inputs.values())).dtype


def aged(subject: Subject, impl: str | None) -> None:
    """After as many calls as a training run makes in a while, the op is still what it was."""
    exam = subject.exam
    small = exam.lay(subject.contract.telling(exam.rng)[0])
    asked: dict[str, Any] = {"op": subject.contract.name, "impl": impl, "call": small.call}
    made = exam.judge.ask("age", n=AGE_CALLS, seconds=AGE_S, **asked)["calls"]
    laid, standard = subject.known_call()
    answer = exam.ask(laid, impl, dress="copy")
    exam.verify(laid, answer, impl, what=f"after {made} more calls", standard=standard)


def inference(subject: Subject, impl: str | None) -> None:
    """In inference mode. The last of all calls: inference tensors that a kernel keeps from here on are of no use outside that mode."""
    exam = subject.exam
    laid = exam.lay(subject.wide(), ())
    exam.verify(laid, exam.ask(laid, impl, mode="inference"), impl, what="inference mode")
    laid, standard = subject.known_call(())
    answer = exam.ask(laid, impl, mode="inference")
    exam.verify(laid, answer, impl, what="inference mode", standard=standard)
