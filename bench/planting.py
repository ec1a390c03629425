"""A NaN or an infinity planted in one element: whoever sees it must show it, whoever cannot must be right.

Who sees it is asked of the reference itself: evaluations in float64 that differ in that element alone. A NaN may spread further than that,
as far as it does in the reference (0 x NaN is NaN, where a kernel that skips the masked tile has a number); both are honest.
On a CPU it may also spread as torch itself spreads it on this machine (bench/overread.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from bench.comparison import evaluate
from bench.examination import Examination, Laid, Tensors
from bench.judge import Refused


@dataclass(frozen=True)
class Plant:
    """What is planted where: an index into one input, flat behind its first dimension where that is expanded."""

    name: str
    index: int
    value: float
    expanded: bool

    def into(self, inputs: Tensors, value: float) -> Tensors:
        changed = inputs[self.name].clone(memory_format=torch.contiguous_format)
        flat = changed.flatten(1) if self.expanded else changed.view(1, -1)
        flat[:, self.index % flat.shape[1]] = value
        return {**inputs, self.name: changed}


def plants(examination: Examination, laid: Laid) -> list[Plant]:
    """A NaN in each floating input, and an infinity where it has only one honest outcome."""
    found = []
    for name, values in laid.inputs.items():
        if values.is_floating_point() and values.numel():
            for value in (math.nan, examination.rng.choice((math.inf, -math.inf))):
                if math.isnan(value) or name in examination.contract.infinite:
                    index = examination.rng.randrange(values.numel())
                    expanded = laid.case.inputs[name].layout == "expanded" and values.ndim > 1
                    found.append(Plant(name, index, value, expanded))
    return found


def check(examination: Examination, laid: Laid) -> None:
    """Ask a laid, forward-only call again with each plant. Raises Refused with kind "nan" where one is swallowed or leaks."""
    honest = dict(laid.inputs)
    for plant in plants(examination, laid):
        examination.put(laid, plant.name, plant.into(honest, plant.value)[plant.name])
        answer = examination.ask(laid)
        examination.put(laid, plant.name, honest[plant.name])
        _judge(examination, laid, plant, answer)


def _judge(examination: Examination, laid: Laid, plant: Plant, answer: Tensors) -> None:
    contract, case = examination.contract, laid.case
    ordinary = float(laid.inputs[plant.name].double().abs().mean()) or 1.0

    def truth(value: float) -> Tensors:
        return evaluate(contract, case, plant.into(laid.inputs, value), (), (), torch.float64)

    # three values, since two may give the same: (a + r)^2 = (b + r)^2 of a sum that is squared
    one, planted = truth(ordinary), truth(plant.value)
    others = truth(-2.5 * ordinary), truth(1.7 * ordinary)
    repaired: Tensors = {}
    for name, got in answer.items():
        sees = (one[name] != others[0][name]) | (one[name] != others[1][name])
        blown = ~torch.isfinite(planted[name])
        shows = ~torch.isfinite(got.cpu())
        if got.shape[-1:] == laid.inputs[plant.name].shape[-1:] and got.ndim > 1:
            # results that share a sum with it may show it as well: a compensated sum with an infinity is a NaN
            shared = sees.any(-1, keepdim=True).expand_as(sees)
        else:
            shared = sees
        where = f"{plant.value} in {plant.name}[{plant.index}]"
        if bool((sees & blown & ~shows).any()):
            raise Refused(
                "nan",
                f"{examination.where(case)}: {where} is swallowed: {name} stays finite where it depends on it",
            )
        if bool((shows & ~blown & ~shared).any()) and not _spread_by_torch(
            examination, laid, plant, name
        ):
            raise Refused(
                "nan",
                f"{examination.where(case)}: {where} spreads to elements of {name} that do not depend on it",
            )
        free = shared | shows
        repaired[name] = torch.where(free, one[name], got.cpu().double()).to(got.dtype)
    if contract.criterion is None:
        finite = Laid(case, laid.call, plant.into(laid.inputs, ordinary), [], laid.lent)
        examination.verify(finite, repaired, what=f"beside a planted {plant.value}")


def _spread_by_torch(examination: Examination, laid: Laid, plant: Plant, result: str) -> bool:
    """Whether the plain implementation, in the dtype of the case, shows a plant in parts of a result that do not see it.

    Every second row is planted, then the others: which rows torch reads too far depends on how its threads divide them. And in tensors as they
    are laid, then in contiguous ones, as an implementation may make them.
    """
    if examination.judge.device != "cpu":  # the judge's processor is no measure of a GPU's kernel
        return False
    contract, case, arena = examination.contract, laid.case, examination.judge.arena
    honest = laid.inputs[plant.name]
    for parity in (0, 1):
        planted = honest.clone(memory_format=torch.contiguous_format)
        planted.view(-1, planted.shape[-1])[parity::2] = plant.value
        examination.put(laid, plant.name, planted)
        as_laid = {name: arena.view(where) for name, where in laid.call["inputs"].items()}
        truth = evaluate(contract, case, as_laid, (), (), torch.float64)[result]
        for each in (as_laid, {name: t.contiguous() for name, t in as_laid.items()}):
            plain = evaluate(contract, case, each, (), (), planted.dtype)[result]
            if bool((plain.isfinite() < truth.isfinite()).any()):
                examination.put(laid, plant.name, honest)
                return True
    examination.put(laid, plant.name, honest)
    return False
