"""The correctness gate: is `kernels/<op>.py` of a tree the op that its contract describes?

The judge draws cases from a secret seed, fills its own buffers, poisons the outputs, lets the runner answer, and compares with float64
(bench/comparison.py), which it computes after the answer. CHECKS lists what is asked, in this order; each is a few lines below.
A runner of this gate allocates poisoned memory: what was never written reads as -1.7e38.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench import planting
from bench.comparison import Standard
from bench.contracts import Case, captured, contract
from bench.examination import Examination, Laid, Tensors, same_bits
from bench.finding import Finding
from bench.judge import Judge, Refused

DRAWN_CASES = 8
DRAWN_FOR_NAMED = 3  # an implementation asked for by name; what the trial runs is the default
HELD_CASES = 3
REPEATS = 12  # of a call under other thread counts: each a chance for a race to show
FEW_REPEATS = 4  # where a call is long, or the implementation not the device's choice
THREADS = (1, 2, 3, 5)
FUTURES = 4
LOUD = 30.0  # times the usual size of what comes after the cut
PLANTED = 2  # cases
# Of a trial's 34,000 calls in 300 seconds, as many as there is time for.
AGE_CALLS, AGE_S = 20_000, 1.0


def check(op: str, tree: Path, *, device: str = "cpu", seed: int | None = None) -> Finding:
    """Judge an op of a tree: its default implementation and every other that runs on the device."""
    asked = contract(op)
    seed = secrets.randbits(48) if seed is None else seed
    evidence: dict[str, Any] = {"device": device, "cases": 0, "implementations": []}
    try:
        with Judge(tree, device=device, poison=True) as judge:
            evidence["isolation"] = judge.isolation
            loaded = judge.ask("load", op=op, tree=str(judge.tree))
            names = [str(name) for name in loaded["implementations"]]
            gate = _Gate(Examination(asked, judge, seed), str(loaded["default"] or ""))
            for impl in [None, *_runnable(names, device)]:
                gate.examine(impl)
                evidence["implementations"].append(
                    {"impl": impl or "default", "tensors": gate.shares()}
                )
            gate.finish()
            evidence["cases"] = gate.of.cases
            return Finding(True, f"{gate.of.cases} cases agree with float64", evidence)
    except Refused as refused:
        return Finding(False, str(refused), {**evidence, "kind": refused.kind, "op": op})


def _runnable(names: Sequence[str], device: str) -> list[str]:
    """The implementations by name that this device can run; the public function without a name is what the trial calls."""
    elsewhere = {"cpu": ("triton", "cuda", "cudnn", "flash"), "cuda": ("cpp",)}[device]
    return [name for name in names if name not in elsewhere]


class _Gate:
    """The checks of one op, in order."""

    def __init__(self, of: Examination, default: str) -> None:
        self.of = of
        self.contract = of.contract
        self.default = default  # the implementation that the device's choice is
        self.drawn: list[Case] = []
        self.known: list[tuple[Laid, Standard]] = []

    def examine(self, impl: str | None) -> None:
        """All checks of one implementation; None is the public function as the trial calls it."""
        self.of.used = {}
        count = DRAWN_CASES if impl is None else DRAWN_FOR_NAMED
        self.drawn = [self.contract.draw(self.of.rng) for _ in range(count)]
        for name in CHECKS if impl is None else CHECKS_OF_NAMED:
            name(self, impl)

    def shares(self) -> list[dict[str, Any]]:
        """How much of the allowed error each tensor used."""
        return [{"tensor": name, "used": round(used, 3)} for name, used in self.of.used.items()]

    def finish(self) -> None:
        """Last of all: inference tensors that a kernel keeps from here on are of no use outside; and the process is as it was."""
        self._aged()
        laid = self.of.lay(self.of.wide(self.drawn), ())
        answer = self.of.ask(laid, None, mode="inference")
        self.of.verify(laid, answer, None, what="inference mode")
        laid, standard = self._known(())
        answer = self.of.ask(laid, None, mode="inference")
        self.of.verify(laid, answer, None, what="inference mode", standard=standard)
        changed = self.of.judge.ask("state")["changed"]
        if changed:
            raise Refused(
                "state", f"the process is not as it was before the import: {'; '.join(changed)}"
            )

    def _aged(self) -> None:
        """After as many calls as a training run makes in a while, the op is still what it was."""
        small = self.of.lay(self.contract.telling(self.of.rng)[0])
        asked: dict[str, Any] = {"op": self.contract.name, "impl": None, "call": small.call}
        made = self.of.judge.ask("age", n=AGE_CALLS, seconds=AGE_S, **asked)["calls"]
        laid, standard = self._known()
        answer = self.of.ask(laid, None)
        self.of.verify(laid, answer, None, what=f"after {made} more calls", standard=standard)

    def differentiable(self, cases: Sequence[Case]) -> list[Case]:
        return [c for c in cases if not c.forward_only] if self.contract.differentiable else []

    # --- values ----------------------------------------------------------------------------------------------------------

    def values(self, impl: str | None) -> None:
        """Drawn cases, each twice at the same addresses with other contents; some answers are held and read again at the end."""
        held: list[tuple[Case, Tensors]] = []
        for i, case in enumerate(self.drawn):
            layout = self.of.rng.choice(("contiguous", "transposed", "expanded"))
            laid = self.of.lay(case, upstream=layout)
            for again, dress in enumerate(("lent", self.of.rng.choice(("lent", "alias", "copy")))):
                if again:
                    self.of.refill(laid)
                answer = self.of.ask(laid, impl, dress=dress, hold=i < HELD_CASES)
                self.of.verify(laid, answer, impl)
                if i < HELD_CASES:
                    held.append((case, answer))
        self._recall(held)

    def _recall(self, held: Sequence[tuple[Case, Tensors]]) -> None:
        arena = self.of.judge.arena
        arena.reset()
        outputs = [
            [arena.place(str(t.dtype)[6:], tuple(t.shape)) for t in answer.values()]
            for _, answer in held
        ]
        self.of.judge.ask("recall", outputs=outputs)
        for (case, answer), places in zip(held, outputs, strict=True):
            for (name, before), where in zip(answer.items(), places, strict=True):
                if not same_bits(arena.view(where), before):
                    raise Refused(
                        "stale",
                        f"{name} changed after it was returned (an output buffer is reused): {case.label()}",
                    )

    def corners(self, impl: str | None) -> None:
        for case in self.contract.corners(self.of.rng):
            laid = self.of.lay(case)
            self.of.verify(laid, self.of.ask(laid, impl), impl)

    def arguments(self, impl: str | None) -> None:
        """Every argument varied alone must move the result, to where the reference says."""
        base, scalars = self.contract.telling(self.of.rng)
        laid = self.of.lay(base, ())
        first = self.of.ask(laid, impl)
        self.of.verify(laid, first, impl)
        usual = self.of.lay(replace(base, scalars={}), ())  # the defaults are part of the op
        self.of.verify(usual, self.of.ask(usual, impl), impl, what="with its defaults")
        laid = self.of.again(laid)
        for name, value in scalars.items():
            laid.case = replace(base, scalars={**base.scalars, name: value})
            laid.call["scalars"][name] = value
            self._moved(laid, first, name, impl)
            laid.call["scalars"][name] = base.scalars[name]
        laid.case = base
        for name, wanted in base.inputs.items():
            before = laid.inputs[name]
            self.of.put(laid, name, wanted.values(self.of.generator))
            self._moved(laid, first, name, impl)
            self.of.put(laid, name, before)

    def _moved(self, laid: Laid, first: Tensors, name: str, impl: str | None) -> None:
        answer = self.of.ask(laid, impl)
        # a property may be reached in other ways than by doing as many steps as asked
        exact = self.contract.judge is None
        if exact and all(same_bits(answer[r], first[r]) for r in self.contract.results):
            raise Refused(
                "ignored",
                f"{self.of.where(impl, '', laid.case)}: the result does not depend on {name}",
            )
        self.of.verify(laid, answer, impl, what=f"with another {name}")

    def captured(self, impl: str | None) -> None:
        """What the op was called with in a training run."""
        for case, values in captured.cases(self.contract.name):
            laid = self.of.lay(case, values=values)
            self.of.verify(laid, self.of.ask(laid, impl), impl)

    def planted(self, impl: str | None) -> None:
        """A NaN shows wherever it is seen, and nowhere else."""
        for case in self.drawn[:PLANTED]:
            planting.check(self.of, self.of.lay(case, ()), impl)

    def future(self, impl: str | None) -> None:
        """Change everything from a random cut on, loudly: results before the cut stay what they were, up to their last bits."""
        axis = self.contract.time_axis
        if not axis:
            return
        trial = self.contract.trial[self.of.judge.device]
        long = [c for c in self.drawn if c.inputs["q"].shape[axis["q"]] > 1][: FUTURES - 1]
        for case in [*long, *([self.of.rng.choice(trial)] if impl is None else [])]:
            case = replace(case, scalars={**case.scalars, "causal": True})
            laid = self.of.lay(case, ())
            first = self.of.ask(laid, impl)
            T = case.inputs["q"].shape[axis["q"]]
            cut = self.of.rng.randint(1, T - 1)
            for name, dim in axis.items():
                if name in laid.inputs:
                    changed = laid.inputs[name].clone()
                    tail = changed.narrow(dim, cut, T - cut)
                    size = LOUD * float(changed.double().abs().mean())
                    tail.copy_(size * torch.randn(tail.shape, generator=self.of.generator))
                    self.of.put(laid, name, changed)
            second = self.of.ask(laid, impl)
            for name in self.contract.results:
                before, after = (a[name].narrow(axis[name], 0, cut) for a in (first, second))
                # a kernel may round otherwise beside other data; LOUD data that leak move it far more
                slack = 8 * torch.finfo(before.dtype).eps * float(before.abs().max())
                if not bool(((before - after).abs() <= slack).all()):
                    raise Refused(
                        "future",
                        f"{name} before position {cut} of {T} depends on inputs from {cut} on: {self.of.where(impl, '', case)}",
                    )

    # --- gradients -------------------------------------------------------------------------------------------------------

    def orders(self, impl: str | None) -> None:
        """Forward, forward, backward, backward; one leaf through two calls; a part of the results, and of the inputs."""
        cases = self.differentiable(self.drawn)[:2]
        if not cases:
            return
        for other in {id(case): case for case in (cases[0], cases[-1])}.values():
            both = [self.of.lay(cases[0]), self.of.lay(other, fresh=False)]
            answers = self.of.ask_all(both, impl, "interleave")
            for laid, answer in zip(both, answers, strict=True):
                self.of.verify(laid, answer, impl, what="forward, forward, backward, backward")
        laid = self.of.lay(cases[0])
        answer = self.of.ask(laid, impl, "accumulate")
        twice = [2 * each.double() for each in laid.upstream]
        standard = self.of.standard(laid, upstream=twice)
        what = "two calls, gradients accumulated"
        self.of.verify(laid, answer, impl, what=what, standard=standard)
        for i, result in enumerate(self.contract.results):
            reached = self._reached(cases[0], i)
            for wrt in [reached, *([name] for name in reached)]:
                laid = self.of.lay(cases[0], wrt, through=(i,))
                what = f"gradient of {', '.join(wrt)} through {result} alone"
                self.of.verify(laid, self.of.ask(laid, impl), impl, what=what)

    def _reached(self, case: Case, result: int) -> list[str]:
        """The inputs that a gradient of one result flows back to."""
        inputs: Tensors = {
            name: each.values(self.of.generator) for name, each in case.inputs.items()
        }
        names = [name for name in self.contract.differentiable if name in inputs]
        for name in names:
            inputs[name] = inputs[name].clone().requires_grad_()
        results = self.contract.reference(**inputs, **case.scalars)
        one = results[result] if isinstance(results, tuple) else results
        found = torch.autograd.grad(one.sum(), [inputs[n] for n in names], allow_unused=True)
        return [name for name, gradient in zip(names, found, strict=True) if gradient is not None]

    # --- the modes and shapes of a training run ---------------------------------------------------------------------------

    def trial_shapes(self, impl: str | None) -> None:
        """Every shape that the model uses, and every crossing of them: the shape of one, the dtype of another, the scalars of a third."""
        crossed = list(self.trial)
        for case, other, third in itertools.product(self.trial, repeat=3):
            dtype = next(iter(other.inputs.values())).dtype
            each = replace(_in(dtype, case), scalars=third.scalars)
            if each not in crossed:
                crossed.append(each)
        for case in crossed:
            laid = self.of.lay(case)
            answer = self.of.ask(laid, impl, dress="copy")
            standard = self.of.standard(laid)
            self.of.verify(laid, answer, impl, standard=standard)
            self.known.append((laid, standard))

    def _known(self, wrt: Sequence[str] | None = None) -> tuple[Laid, Standard]:
        """One of the trial's calls that has been verified, laid out again."""
        laid, standard = self.of.rng.choice(self.known)
        return self.of.again(laid, wrt), standard

    @property
    def trial(self) -> Sequence[Case]:
        return self.contract.trial[self.of.judge.device]

    def threads(self, impl: str | None) -> None:
        """Other numbers of threads, more than there are cores: every answer is right, however they meet."""
        laid = self.of.lay(self.contract.large(self.of.rng))
        first = self.of.ask(laid, impl)
        standard = self.of.standard(laid)
        self.of.verify(laid, first, impl, standard=standard)
        self._repeat(laid, first, standard, impl, REPEATS if impl is None else FEW_REPEATS)
        forward = self.of.again(laid, ())
        answer = self.of.ask(forward, impl, mode="no_grad")
        self.of.verify(forward, answer, impl, what="no_grad", standard=standard)
        if self.known:
            laid, standard = self._known()
            self._repeat(laid, self.of.ask(laid, impl), standard, impl, FEW_REPEATS)

    def _repeat(
        self, laid: Laid, first: Tensors, standard: Standard, impl: str | None, times: int
    ) -> None:
        for i in range(times):
            threads = THREADS[i % len(THREADS)]
            answer = self.of.ask(laid, impl, threads=threads)
            if not all(same_bits(answer[name], first[name]) for name in answer):
                what = f"repeated with {threads} threads"
                self.of.verify(laid, answer, impl, what=what, standard=standard)

    def compiled(self, impl: str | None) -> None:
        laid = self.of.lay(self.of.wide(self.drawn))
        self.of.verify(laid, self.of.ask(laid, impl, mode="compile"), impl, what="compile")
        laid, standard = self._known()
        answer = self.of.ask(laid, impl, mode="compile")
        self.of.verify(laid, answer, impl, what="compile", standard=standard)

    def autocast(self, impl: str | None) -> None:
        if not self.contract.differentiable:
            return
        case = self.of.rng.choice((self.of.wide(self.drawn), self.of.rng.choice(self.trial)))
        laid = self.of.lay(_in("float32", case))
        answer = self.of.ask(laid, impl, mode="autocast")
        standard = self.of.standard(laid, working=torch.bfloat16)
        self.of.verify(laid, answer, impl, what="autocast", standard=standard)

    # --- whose work it is ------------------------------------------------------------------------------------------------

    def registered(self, impl: str | None) -> None:
        """Custom operators keep their schema, and their fakes tell the truth."""
        self.of.ask(self.of.lay(self.of.wide(self.drawn)), impl, "register")

    def own_work(self, impl: str | None) -> None:
        """No library function that is the whole op; and a C++ implementation's results come from its library."""
        trial = list(self.contract.trial[self.of.judge.device])
        self.of.rng.shuffle(trial)
        if (impl or self.default) not in self.contract.library_names:
            case = trial[0] if impl is None else self.contract.large(self.of.rng)
            self._no_library(self.of.lay(case), impl)
        if (impl or self.default) == "cpp":
            spoiled = (self.of.ask(self.of.lay(case), impl, "spoil") for case in trial)
            if all(bool(torch.isfinite(t).all()) for each in spoiled for t in each.values()):
                raise Refused(
                    "unused",
                    f"impl={impl or 'default'}: with every result of csrc/{self.contract.name}.cpp replaced by NaN nothing changes on "
                    "any shape of the trial: the kernel does not run, or its results are not used",
                )

    def _no_library(self, laid: Laid, impl: str | None) -> None:
        asked: dict[str, Any] = {"op": self.contract.name, "impl": impl, "call": laid.call}
        operators = map(str, self.of.judge.ask("trace", **asked)["operators"])
        whole = [name for name in operators if name.startswith(self.contract.library)]
        if self.contract.library and whole:
            names = ", ".join(self.contract.library_names)
            mend = f"name the implementation one of {names}" if names else "compute it here"
            raise Refused(
                "library",
                f"impl={impl or 'default'} calls {', '.join(whole)}, which is the whole op; {mend}",
            )


Check = Callable[[_Gate, str | None], None]
CHECKS: tuple[Check, ...] = (
    _Gate.values,
    _Gate.captured,
    _Gate.corners,
    _Gate.arguments,
    _Gate.planted,
    _Gate.future,
    _Gate.orders,
    _Gate.trial_shapes,
    _Gate.threads,
    _Gate.own_work,
    _Gate.registered,
    _Gate.compiled,
    _Gate.autocast,
)
CHECKS_OF_NAMED: tuple[Check, ...] = (
    _Gate.values,
    _Gate.planted,
    _Gate.future,
    _Gate.orders,
    _Gate.threads,
    _Gate.own_work,
)


def _in(dtype: str, case: Case) -> Case:
    """A case in another floating dtype."""
    if dtype == "int64":
        return case
    inputs = {
        n: replace(i, dtype=dtype) if i.dtype != "int64" else i for n, i in case.inputs.items()
    }
    return replace(case, inputs=inputs)
