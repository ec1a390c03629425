"""Checks of the correctness gate: the op as a training run uses it. Orders of backward, the trial's shapes, threads, modes, and thousands of calls."""

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

# Of a call under other thread counts, each a chance for a race to show: so many at least, and as many as there is time for. Beside other work
# threads seldom run at once, and twelve, a quarter of them with one thread, have let a race pass (tests/cheats/rms_norm_races.cpp).
REPEATS, REPEAT_S = 24, 0.5
FEW_REPEATS = 4  # where a call is long, or the implementation not the device's choice
THREADS = (2, 1, 3, 5, 2, 8, 3, 5)
# rms_norm is called 10 times a step, 20,000 times in a trial on two cores: as many as there is time for.
AGE_CALLS, AGE_S = 20_000, 1.0


def orders(subject: Subject, impl: str | None) -> None:
    """Forward, forward, backward, backward; one leaf through two calls; a part of the results, and of the inputs."""
    of = subject.of
    cases = subject.differentiable(subject.drawn)[:2]
    if not cases:
        return
    for other in {id(case): case for case in (cases[0], cases[-1])}.values():
        both = [of.lay(cases[0]), of.lay(other, fresh=False)]
        answers = of.ask_all(both, impl, "interleave")
        for laid, answer in zip(both, answers, strict=True):
            of.verify(laid, answer, impl, what="forward, forward, backward, backward")
    laid = of.lay(cases[0])
    answer = of.ask(laid, impl, "accumulate")
    twice = [2 * each.double() for each in laid.upstream]
    standard = of.standard(laid, upstream=twice)
    of.verify(laid, answer, impl, what="two calls, gradients accumulated", standard=standard)
    for i, result in enumerate(subject.contract.results):
        reached = _reached(subject, cases[0], i)
        for wrt in [reached, *([name] for name in reached)]:
            laid = of.lay(cases[0], wrt, through=(i,))
            what = f"gradient of {', '.join(wrt)} through {result} alone"
            of.verify(laid, of.ask(laid, impl), impl, what=what)


def _reached(subject: Subject, case: Case, result: int) -> list[str]:
    """The inputs that a gradient of one result flows back to."""
    generator = subject.of.generator
    inputs: Tensors = {name: each.values(generator) for name, each in case.inputs.items()}
    names = [name for name in subject.contract.differentiable if name in inputs]
    for name in names:
        inputs[name] = inputs[name].clone().requires_grad_()
    results = subject.contract.reference(**inputs, **case.scalars)
    one = results[result] if isinstance(results, tuple) else results
    found = torch.autograd.grad(one.sum(), [inputs[n] for n in names], allow_unused=True)
    return [name for name, gradient in zip(names, found, strict=True) if gradient is not None]


def trial_shapes(subject: Subject, impl: str | None) -> None:
    """Every shape that the model uses, and every crossing of them: the shape of one, the dtype of another, the scalars of a third."""
    crossed = subject.trial
    for case, other, third in itertools.product(subject.trial, repeat=3):
        dtype = next(iter(other.inputs.values())).dtype
        each = replace(in_dtype(dtype, case), scalars=third.scalars)
        if each not in crossed:
            crossed.append(each)
    for case in crossed:
        laid = subject.of.lay(case)
        answer = subject.of.ask(laid, impl, dress="copy")
        standard = subject.of.standard(laid)
        subject.of.verify(laid, answer, impl, standard=standard)
        subject.known.append(Known(laid, answer, standard))


def threads(subject: Subject, impl: str | None) -> None:
    """Other numbers of threads, more than there are cores: every answer is right, however they meet."""
    of = subject.of
    laid = of.lay(subject.contract.large(of.rng))
    first = of.ask(laid, impl)
    standard = of.standard(laid)
    of.verify(laid, first, impl, standard=standard)
    times, seconds = (REPEATS, REPEAT_S) if impl is None else (FEW_REPEATS, 0.0)
    _repeat(subject, laid, first, standard, impl, times, seconds)
    forward = of.again(laid, ())
    answer = of.ask(forward, impl, mode="no_grad")
    of.verify(forward, answer, impl, what="no_grad", standard=standard)
    if impl is None:  # the trial's shapes take others long, and a trial does not run them
        known = of.rng.choice(subject.known)
        laid = of.again(known.laid)
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
        answer = subject.of.ask(laid, impl, threads=count)
        if not all(same_bits(answer[name], right[name]) for name in answer):
            what = f"repeated with {count} threads"
            subject.of.verify(laid, answer, impl, what=what, standard=standard)


def compiled(subject: Subject, impl: str | None) -> None:
    """Under torch.compile, without a graph break."""
    of = subject.of
    laid = of.lay(subject.wide())
    of.verify(laid, of.ask(laid, impl, mode="compile"), impl, what="compile")
    laid, standard = subject.known_call()
    answer = of.ask(laid, impl, mode="compile")
    of.verify(laid, answer, impl, what="compile", standard=standard)


def autocast(subject: Subject, impl: str | None) -> None:
    """float32 inputs under autocast to bfloat16: as close as the plain implementation in bfloat16."""
    of = subject.of
    if not subject.contract.differentiable:
        return
    case = in_dtype("float32", of.rng.choice((subject.wide(), of.rng.choice(subject.trial))))
    known = next((each for each in subject.known if each.laid.case == case), None)
    laid = of.lay(case) if known is None else of.again(known.laid)
    answer = of.ask(laid, impl, mode="autocast")
    if known is None:
        standard = of.standard(laid, working=torch.bfloat16)
    else:
        standard = known.standard.working_in(torch.bfloat16)
    of.verify(laid, answer, impl, what="autocast", standard=standard)


def aged(subject: Subject, impl: str | None) -> None:
    """After as many calls as a training run makes in a while, the op is still what it was."""
    of = subject.of
    small = of.lay(subject.contract.telling(of.rng)[0])
    asked: dict[str, Any] = {"op": subject.contract.name, "impl": impl, "call": small.call}
    made = of.judge.ask("age", n=AGE_CALLS, seconds=AGE_S, **asked)["calls"]
    laid, standard = subject.known_call()
    answer = of.ask(laid, impl)
    of.verify(laid, answer, impl, what=f"after {made} more calls", standard=standard)


def inference(subject: Subject, impl: str | None) -> None:
    """In inference mode. Last of all calls: inference tensors that a kernel keeps from here on are of no use outside."""
    of = subject.of
    laid = of.lay(subject.wide(), ())
    of.verify(laid, of.ask(laid, impl, mode="inference"), impl, what="inference mode")
    laid, standard = subject.known_call(())
    answer = of.ask(laid, impl, mode="inference")
    of.verify(laid, answer, impl, what="inference mode", standard=standard)
