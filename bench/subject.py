"""The op under the correctness gate: what its checks share while one implementation after another is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.comparison import Standard
from bench.contracts import Case, Contract
from bench.examination import Examination, Laid, Tensors


@dataclass(frozen=True)
class Known:
    """A call that was answered rightly, and what float64 says of it."""

    laid: Laid
    answer: Tensors
    standard: Standard


@dataclass
class Subject:
    """`default`: the name of the device's choice; `drawn`: the cases drawn for the implementation at hand; `known`: calls of the trial found right."""

    exam: Examination
    default: str
    drawn: list[Case] = field(default_factory=list)
    known: list[Known] = field(default_factory=list)

    @property
    def contract(self) -> Contract:
        return self.exam.contract

    @property
    def trial(self) -> list[Case]:
        """The shapes of a training run on this device; how often the model calls each does not matter to this gate."""
        return [replace(case, calls=1) for case in self.contract.trial[self.exam.judge.device]]

    def wide(self) -> Case:
        """The drawn case with the most elements: compile and autocast want a representative one."""
        return max(self.drawn, key=lambda c: sum(i.span() for i in c.inputs.values()))

    def answered(self, laid: Laid, **options: Any) -> Known:
        """A call that is asked now (`options` as of Examination.ask), and has to be right."""
        answer = self.exam.ask(laid, **options)
        standard = self.exam.standard(laid)
        self.exam.verify(laid, answer, standard=standard)
        return Known(laid, answer, standard)

    def known_call(self, wrt: Sequence[str] | None = None) -> tuple[Laid, Standard]:
        """One of the known calls, laid out again."""
        known = self.exam.rng.choice(self.known)
        return self.exam.again(known.laid, wrt), known.standard


def in_dtype(dtype: str, case: Case) -> Case:
    """A case in another floating dtype."""
    if dtype == "int64":
        return case
    inputs = {
        n: replace(i, dtype=dtype) if i.dtype != "int64" else i for n, i in case.inputs.items()
    }
    return replace(case, inputs=inputs)
