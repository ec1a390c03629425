"""The correctness gate: is `kernels/<op>.py` of a tree the op that its contract describes?

The judge draws cases from a secret seed, fills its own buffers, poisons the outputs with NaN, lets the runner answer, and compares with float64
(bench/comparison.py). Every case is asked twice at the same addresses with other contents, so that an answer kept by address shows;
results are held by the runner and read again at the end, so that an answer written late or overwritten shows; inputs must come back bitwise
as they were; the past of a causal op must not move when its future does.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.comparison import examine
from bench.contracts import Case, Contract, contract
from bench.finding import Finding
from bench.judge import Judge, Refused, place_call

DRAWN_CASES = 8
DRAWN_FOR_NAMED = 3  # an implementation asked for by name; what the trial runs is the default
HELD_CASES = 3
CALL_TIMEOUT_S = 90.0  # the first call may build


def check(op: str, tree: Path, *, device: str = "cpu", seed: int | None = None) -> Finding:
    """Judge an op of a tree: its default implementation and every other that runs on the device."""
    asked = contract(op)
    seed = secrets.randbits(48) if seed is None else seed
    try:
        with Judge(tree, device=device) as judge:
            names = judge.ask("load", op=op, tree=str(judge.tree))["implementations"]
            examination = _Examination(asked, judge, seed)
            evidence: dict[str, Any] = {
                "device": device,
                "isolation": judge.isolation,
                "cases": 0,
                "implementations": [],
            }
            for impl in _to_examine(names, device):
                used = examination.run(impl)
                evidence["implementations"].append({"impl": impl or "default", "tensors": used})
                evidence["cases"] = examination.cases
            return Finding(True, f"{examination.cases} cases agree with float64", evidence)
    except Refused as refused:
        return Finding(False, str(refused), {"kind": refused.kind, "op": op})


def _to_examine(names: list[Any], device: str) -> list[str | None]:
    """The public function as the trial calls it, without a name; then every implementation that the device can run, by name."""
    runs = {"cpu": ("torch", "cpp"), "cuda": ("torch", "triton", "cuda")}[device]
    return [None, *(str(name) for name in names if name in runs)]


class _Examination:
    """All cases of one op against one runner."""

    def __init__(self, asked: Contract, judge: Judge, seed: int) -> None:
        self.contract = asked
        self.judge = judge
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.cases = 0
        self._used: dict[str, float] = {}

    def run(self, impl: str | None) -> list[dict[str, Any]]:
        self._used = {}
        held: list[tuple[Case, dict[str, Tensor]]] = []
        drawn = DRAWN_CASES if impl is None else DRAWN_FOR_NAMED
        cases = [self.contract.draw(self.rng) for _ in range(drawn)]
        for i, case in enumerate(cases):
            answers = self.case(case, impl, hold=i < HELD_CASES)
            if i < HELD_CASES:
                held += [(case, answer) for answer in answers]
        self.recall(held)
        if self.contract.time_axis:
            self.future(cases, impl)
        if impl is None:
            self.case(self.rng.choice(self.contract.trial[self.judge.device]), None, repeats=1)
            self.case(self.wide(cases), None, mode="compile", repeats=1)
            if self.contract.differentiable:
                self.case(_in_float32(self.wide(cases)), None, mode="autocast", repeats=1)
        return [{"tensor": name, "used": round(used, 3)} for name, used in self._used.items()]

    def wide(self, cases: list[Case]) -> Case:
        """The drawn case with the most elements: the compile and autocast paths want a representative one."""
        return max(cases, key=lambda c: sum(i.span() for i in c.inputs.values()))

    def case(
        self,
        case: Case,
        impl: str | None,
        *,
        mode: str = "eager",
        repeats: int = 2,
        hold: bool = False,
    ) -> list[dict[str, Tensor]]:
        """Ask one case, `repeats` times with other contents, and compare. Returns the answers."""
        self.cases += 1
        asked = self.contract
        wrt = () if case.forward_only else asked.differentiable
        self.judge.arena.reset()
        shapes = result_shapes(asked, case)
        call = place_call(self.judge.arena, case, shapes, wrt)
        wrt = tuple(call["wrt"])
        answers: list[dict[str, Tensor]] = []
        for _ in range(repeats):
            inputs = self.fill(case, call)
            upstream = self.fill_upstream(call)
            answer = self.ask(impl, call, mode, inputs, hold=hold)
            answers.append(answer)
            wrong, used = examine(
                asked, case, inputs, upstream, answer, wrt, device=self.judge.device,
                working=torch.bfloat16 if mode == "autocast" else None,
            )  # fmt: skip
            if wrong:
                raise Refused("wrong", f"{_where(impl, mode, case)}: {wrong}")
            for name, share in used.items():
                self._used[name] = max(self._used.get(name, 0.0), share)
        return answers

    def fill(self, case: Case, call: Mapping[str, Any]) -> dict[str, Tensor]:
        """Fresh values in the input buffers; returns private copies."""
        copies = {}
        for name, wanted in case.inputs.items():
            buffer = self.judge.arena.view(call["inputs"][name])
            buffer.copy_(wanted.values(self.generator))
            copies[name] = buffer.clone()
        return copies

    def fill_upstream(self, call: Mapping[str, Any]) -> list[Tensor]:
        """Random upstream gradients; sometimes one value for all, as `loss.mean()` sends."""
        buffers = [self.judge.arena.view(where) for where in call["upstream"]]
        for buffer in buffers:
            drawn = torch.randn(buffer.shape, generator=self.generator)
            buffer.copy_(drawn if self.rng.random() < 0.7 else torch.full_like(drawn, 0.37))
        return [b.clone() for b in buffers]

    def ask(
        self,
        impl: str | None,
        call: dict[str, Any],
        mode: str,
        inputs: Mapping[str, Tensor],
        *,
        hold: bool = False,
    ) -> dict[str, Tensor]:
        """Poison the outputs, let the runner answer, take the bytes, and check that the inputs are as they were."""
        arena = self.judge.arena
        places = [*call["outputs"], *call["gradients"]]
        for where in places:
            arena.view(where).fill_(float("nan"))
        try:
            self.judge.ask(
                "call",
                timeout=CALL_TIMEOUT_S,
                op=self.contract.name,
                impl=impl,
                mode=mode,
                call=call,
                hold=hold,
            )
        except Refused as refused:
            raise Refused(refused.kind, f"impl={impl or 'default'} {mode}: {refused}") from None
        for name, before in inputs.items():
            if not _same_bits(arena.view(call["inputs"][name]), before):
                raise Refused(
                    "mutation",
                    f"impl={impl or 'default'}: input {name} was changed by the call; work on a copy",
                )
        names = [*self.contract.results, *(f"d{n}" for n in call["wrt"])]
        return {name: arena.view(where).clone() for name, where in zip(names, places, strict=True)}

    def recall(self, held: list[tuple[Case, dict[str, Tensor]]]) -> None:
        """Earlier results, read again after later calls, must be what they were."""
        arena = self.judge.arena
        arena.reset()
        outputs = [
            [arena.place(str(t.dtype)[6:], tuple(t.shape)) for t in answer.values()]
            for _, answer in held
        ]
        self.judge.ask("recall", outputs=outputs)
        for (case, answer), places in zip(held, outputs, strict=True):
            for (name, before), where in zip(answer.items(), places, strict=True):
                if not _same_bits(arena.view(where), before):
                    raise Refused(
                        "stale",
                        f"{name} changed after it was returned (an output buffer is reused): {case.label()}",
                    )

    def future(self, cases: list[Case], impl: str | None) -> None:
        """Change everything from a random cut on: results before the cut must not move by one bit."""
        axis = self.contract.time_axis
        for case in [c for c in cases if c.inputs["q"].shape[2] > 1][:4]:
            case = replace(case, scalars={**case.scalars, "causal": True})
            self.judge.arena.reset()
            call = place_call(self.judge.arena, case, result_shapes(self.contract, case), ())
            inputs = self.fill(case, call)
            first = self.ask(impl, call, "eager", inputs)
            T = case.inputs["q"].shape[2]
            cut = self.rng.randint(1, T - 1)
            for name, dim in axis.items():
                if name in call["inputs"]:
                    buffer = self.judge.arena.view(call["inputs"][name])
                    tail = buffer.narrow(dim, cut, T - cut)
                    tail.copy_(torch.randn(tail.shape, generator=self.generator))
                    inputs[name] = buffer.clone()
            second = self.ask(impl, call, "eager", inputs)
            for name in self.contract.results:
                if not _same_bits(*(a[name].narrow(axis[name], 0, cut) for a in (first, second))):
                    raise Refused(
                        "future",
                        f"{name} before position {cut} of {T} depends on inputs from {cut} on: {_where(impl, 'eager', case)}",
                    )


def result_shapes(asked: Contract, case: Case) -> dict[str, Tensor]:
    """Shapes and dtypes of the results, without computing them."""
    inputs = {
        n: torch.empty(i.shape, dtype=getattr(torch, i.dtype), device="meta")
        for n, i in case.inputs.items()
    }
    results = asked.reference(**inputs, **case.scalars)
    results = results if isinstance(results, tuple) else (results,)
    return {
        name: r.to(getattr(torch, asked.result_dtypes[name])) if name in asked.result_dtypes else r
        for name, r in zip(asked.results, results, strict=True)
    }


def _in_float32(case: Case) -> Case:
    return replace(
        case,
        inputs={
            n: replace(i, dtype="float32") if i.dtype != "int64" else i
            for n, i in case.inputs.items()
        },
    )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    def raw(t: Tensor) -> Tensor:
        return t.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)

    return a.numel() == 0 or torch.equal(raw(a), raw(b))


def _where(impl: str | None, mode: str, case: Case) -> str:
    return f"impl={impl or 'default'}{'' if mode == 'eager' else ' ' + mode}, {case.label()}"
