"""Calls that training itself made, held to float64: what the gates have examined is what trains.

A kernel that counts its calls can be right wherever a judge asks and careless in between. So the runner of a trial keeps calls of each op at moments
that nobody knows beforehand (bench/runner/recording.py): arguments, results, and the gradients that came and went. On a GPU these are the calls
outside of torch.compile, the optimizer's.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from bench.comparison import Standard
from bench.contracts import Case, Contract, Input, contract
from bench.contracts.contract import FLOATS
from bench.judge import Judge, Refused, error_line

# A call of more than so many times the arithmetic of the trial's largest is not held to float64: that would take the judge's memory, or its time.
MOST_WORK = {"cpu": 4, "cuda": 3}
_MALFORMED = KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError


def updates(ops: Iterable[str]) -> dict[str, list[str]]:
    """What the runner has to know of each op: the arguments that it overwrites."""
    return {op: list(contract(op).updates) for op in ops}


def require_right(trainer: Judge, kept: Any, ops: Iterable[str]) -> dict[str, int]:
    """Hold each call that the runner has kept to float64; how many there were of each op. Raises Refused for the first that is wrong."""
    counts = {}
    for op in ops:
        asked, calls = contract(op), kept.get(op, []) if isinstance(kept, dict) else []
        most = max(_work(asked, case) for case in asked.trial[trainer.device])
        counts[op] = 0
        for number, described in enumerate(calls if isinstance(calls, list) else [calls]):
            try:
                call = _Call(asked, described)
                affordable = _work(asked, call.case) <= MOST_WORK[trainer.device] * most
            except _MALFORMED as error:
                said = f"{op} in training: expected the arguments of a call and what came of it; reading them failed: {type(error).__name__}: {error}"
                raise Refused("structure", said) from None
            if affordable:
                call.fetch(trainer, number)
                counts[op] += call.require_right(trainer.device)
                # The trainer is asked next, and needs what float64 has left with this process's allocator.
                torch.cuda.empty_cache()
    return counts


def _work(asked: Contract, case: Case) -> int:
    """Flops without what bounds them, such as a window (the reference computes all and hides the rest), but with what adds to them, such as steps."""
    return max(asked.flops(Case(case.inputs)), asked.flops(case))


class _Call:
    """One kept call, as the runner describes it."""

    def __init__(self, asked: Contract, described: Mapping[str, Any]) -> None:
        self.contract = asked
        self.tensors = {name: _form(*said) for name, said in described["tensors"].items()}
        self.required, self.cut, self.none = (
            [str(name) for name in described[key]] for key in ("requires", "cut", "none")
        )
        # a parameter that the contract does not have tunes the kernel, and means nothing
        meant = inspect.signature(asked.reference).parameters
        inputs = {name: form for name, form in self.tensors.items() if name in meant}
        self.case = Case(inputs, {n: v for n, v in described["scalars"].items() if n in meant})
        self.autocast = {described["autocast"]} & set(FLOATS)
        after = float(described["seconds"])
        self.where = (
            f"{asked.name}, called by the model {after:.0f} s after the bell, {self.case.label()}"
        )
        self.results = [f"result {i}" for i in range(len(asked.results))]
        wanted = [each.shape for each in asked.shapes(self.case).values()]
        came = [self.tensors[name].shape for name in self.results]
        if came != wanted:
            raise ValueError(f"results {came}, expected {wanted}")

    def fetch(self, trainer: Judge, number: int) -> None:
        """Take the tensors, private copies of them."""
        arena = trainer.arena
        arena.reset()
        try:
            out = {n: arena.place(each.dtype, each.shape) for n, each in self.tensors.items()}
        except MemoryError as error:
            raise Refused("structure", f"{self.where}: {error}") from None
        trainer.ask("recorded", op=self.contract.name, call=number, out=out)
        self.values = {name: arena.view(where).clone() for name, where in out.items()}

    def require_right(self, device: str) -> bool:
        """Raises Refused where results or gradients are further from float64 than the correctness gate allows; False where float64 found no memory."""
        values = self.values
        through = [i for i in range(len(self.results)) if f"upstream {i}" in values]
        wrt = [name for name in self.contract.differentiable if name in self.required]
        if cut := [name for name in wrt if name in self.cut]:
            said = f"no result leads back to {', '.join(cut)}: the autograd graph is cut"
            raise Refused("wrong", f"{self.where}: {said}")
        # some inputs may have nothing to do with a result through which nothing came
        whole = len(through) == len(self.results)
        if whole and (none := [name for name in wrt if name in self.none]):
            raise Refused("wrong", f"{self.where}: no gradient came to {', '.join(none)}")
        wrt = [name for name in wrt if through and f"gradient {name}" in values]
        answer = {
            n: values[kept] for n, kept in zip(self.contract.results, self.results, strict=True)
        }
        answer |= {f"d{name}": values[f"gradient {name}"] for name in wrt}
        inputs = {name: values[name] for name in self.case.inputs}
        upstream = [values[f"upstream {i}"] for i in through]
        options: dict[str, Any] = {"device": device, "through": through}
        try:
            options["working"] = self._working()
            standard = Standard(self.contract, self.case, inputs, upstream, wrt, **options)
            wrong, _ = standard.examine(answer)
        except torch.OutOfMemoryError:  # the judge's own lack
            return False
        except (*_MALFORMED, RuntimeError) as error:
            said = f"{self.where}: the reference takes no such arguments: {error_line(error)}"
            raise Refused("structure", said) from None
        if wrong:
            raise Refused("wrong", f"{self.where}: {wrong}")
        return True

    def _working(self) -> torch.dtype | None:
        """The dtype of the results where that is the coarser one, as under autocast; None where the arguments' own holds."""
        given = [each.dtype for each in self.case.inputs.values() if each.dtype in FLOATS]
        came = {self.tensors[name].dtype for name in self.results} | self.autocast
        if self.contract.in_place or came == {given[0]}:
            return None
        coarsest: torch.dtype = max((getattr(torch, name) for name in (*came, given[0])), key=_unit)
        return coarsest


def _unit(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def _form(dtype: Any, shape: Any) -> Input:
    if dtype not in (*FLOATS, "float64", "int64") or not all(
        isinstance(n, int) and n >= 0 for n in shape
    ):
        raise ValueError(f"a tensor {dtype} {shape}")
    return Input(tuple(shape), dtype)
