"""The one comparer of this tree: is a result as close to float64 as the plain implementation in the same dtype is?

Allowed error = a factor x the largest of two errors over a few copies of the case (that of the plain implementation, and the effect of moving the
inputs by one unit in the last place), plus FLOOR units of the tensor's own magnitude. The factor is FACTOR where the error depends on luck (few
elements) or on the order of summation (float32). In bfloat16 and float16 the plain implementation rounds after every operation: for many elements the
factor falls to HALF_FACTOR, and the floor to one unit for the worst element and to a quarter for the norm, where a correct rounding is off by a fifth.
With FACTOR and FLOOR there too, a norm whose backward leaves out 1/rms would pass (5e-2 and 9e-2 on the trial's shapes; an honest one 2e-3); with a
factor of 2.5 and a whole unit, products of eight-bit numbers (1.1e-2) and a softmax over four fifths of the words (9e-3) would.

Errors are measured twice per tensor: relative to the norm, and at the worst element relative to the largest. The tolerance is never a constant: one
that fits 1e-3 lets everything pass at 1e-6.

A gradient may cancel to nearly nothing (RMSNorm over one element, a softmax over one key) where the terms that it is the sum of do not. These
are of size |upstream| |result| / |input|, and FLOOR float32 units of that are always allowed; the nearer the exact gradient comes to one such
unit, the more is allowed, up to FLOOR units of the working dtype. Where a contract names larger terms, FLOOR float32 units of those are allowed,
in every dtype: what is summed in float32 and then rounded has no other error.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.contracts import Case, Contract
from bench.threads import cores_for

FACTOR = 8.0
HALF_FACTOR = 1.5
HALF_FLOOR, HALF_WORST_FLOOR = 0.25, 1.0
FEW = 64  # elements
# The worst of many elements scatters more than their norm: at 16, an honest attention has been over by 13 % (dk, heavy-tailed keys).
WORST_FACTOR = 32.0
FLOOR = 8.0
COPIES = 3
TINY = 1e-30
LARGE = 100_000  # elements: beyond this a plain error is no longer a matter of luck, and one evaluation is enough

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """How far one tensor is from the truth, and how far it may be."""

    name: str
    error: float
    allowed: float
    worst: float  # error at the worst element, relative to the largest
    worst_allowed: float
    unlike: str = ""  # where one is finite and the other is not, in words

    @property
    def ok(self) -> bool:
        return self.error <= self.allowed and self.worst <= self.worst_allowed  # a NaN is never <=

    def describe(self) -> str:
        if self.unlike:
            return f"{self.name}: {self.unlike}"
        return (
            f"{self.name}: relative error {self.error:.2e} (allowed {self.allowed:.2e}), "
            f"worst element {self.worst:.2e} of the largest (allowed {self.worst_allowed:.2e})"
        )


def evaluate(
    contract: Contract,
    case: Case,
    inputs: Mapping[str, Tensor],
    upstream: Sequence[Tensor],
    wrt: Sequence[str],
    dtype: torch.dtype,
    through: Sequence[int] | None = None,
) -> Tensors:
    """The reference in `dtype`, as float64: results, and the gradients of `wrt` that flow back from the results `through` (all)."""
    arguments = {n: t.to(dtype) if t.is_floating_point() else t for n, t in inputs.items()}
    for name in wrt:
        arguments[name] = arguments[name].detach().requires_grad_()
    with torch.set_grad_enabled(bool(wrt)):
        results = contract.reference(**arguments, **case.scalars)
        results = results if isinstance(results, tuple) else (results,)
        found = dict(zip(contract.results, results, strict=True))
        if wrt:
            sources = [results[i] for i in (range(len(results)) if through is None else through)]
            grads = torch.autograd.grad(
                sources,
                [arguments[n] for n in wrt],
                [u.to(r.dtype) for u, r in zip(upstream, sources, strict=True)],
                materialize_grads=True,  # zero, of an input that has nothing to do with them
            )
            found.update({f"d{n}": g for n, g in zip(wrt, grads, strict=True)})
    return {name: t.detach().double() for name, t in found.items()}


class Standard:
    """What is right for one call, and how far from it an answer may be; made once, and used for any number of answers.

    `through` are the results that gradients flow back from (all); `working` replaces the dtype in which the plain implementation is run.
    References run on `device`.
    """

    def __init__(
        self,
        contract: Contract,
        case: Case,
        inputs: Mapping[str, Tensor],
        upstream: Sequence[Tensor],
        wrt: Sequence[str],
        *,
        device: str,
        through: Sequence[int] | None = None,
        working: torch.dtype | None = None,
    ) -> None:
        self.contract, self.case, self.device = contract, case, device
        self.inputs = {name: t.to(device) for name, t in inputs.items()}
        self.upstream = [u.to(device) for u in upstream]
        self.wrt, self.through = wrt, through
        floating = [t.dtype for t in inputs.values() if t.is_floating_point()]
        self.working = working or floating[0]
        self.criterion: Callable[[Tensor], str] | None = None
        with cores_for(contract.flops(case)):
            if contract.criterion is not None:
                (plain,) = self._evaluate(self.inputs, self.working).values()
                self.criterion = contract.criterion(case, self.inputs, plain)
                return
            self.truth = self._evaluate(self.inputs, torch.float64)
            terms = contract.terms
            self.named_terms = terms(self.inputs, self.upstream, case.scalars) if terms else {}
            self.allowed = self._allowed()

    def working_in(self, dtype: torch.dtype) -> Standard:
        """The same values, held to the plain implementation in another dtype. Not for a contract with a criterion of its own."""
        other = copy.copy(self)
        other.working = dtype
        with cores_for(self.contract.flops(self.case)):
            other.allowed = other._allowed()
        return other

    def examine(self, answer: Mapping[str, Tensor]) -> tuple[str, dict[str, float]]:
        """What is wrong with an answer ("" if nothing), and the share of the allowed error that each tensor used.

        The answer may lack gradients, where none were asked for.
        """
        answer = {name: t.to(self.device) for name, t in answer.items()}
        if self.criterion is not None:
            (result,) = self.contract.results
            return self.criterion(answer[result]), {}
        differences = [self._difference(name, got) for name, got in answer.items()]
        used = {d.name: d.error / d.allowed for d in differences if d.allowed}
        return next((d.describe() for d in differences if not d.ok), ""), used

    def _difference(self, name: str, got: Tensor) -> Difference:
        exact = self.truth[name]
        came, wanted = got.double(), exact.to(got.dtype).double()
        error, worst = _errors(came, wanted, exact)
        allowed, worst_allowed = (each + self._stored(got.dtype) for each in self.allowed[name])
        return Difference(name, error, allowed, worst, worst_allowed, _unlike(came, wanted))

    def _stored(self, dtype: torch.dtype) -> float:
        """The rounding error of a result that is stored in fewer bits than the op works in, as an optimizer's state may be, rounded at random."""
        eps = torch.finfo(dtype).eps
        return eps if eps > torch.finfo(self.working).eps else 0.0

    def _evaluate(self, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> Tensors:
        return evaluate(
            self.contract, self.case, inputs, self.upstream, self.wrt, dtype, self.through
        )

    def _allowed(self) -> dict[str, tuple[float, float]]:
        """(norm-relative, max-relative) error that each tensor may have."""
        spread = self._spread()
        found = {}
        for name in self.truth:
            factor, floor, worst_floor = self._generosity(name)
            eps, terms = torch.finfo(self.working).eps, self._for_terms(name)
            found[name] = (
                factor * spread[name].error + floor * eps + terms,
                WORST_FACTOR * spread[name].worst + worst_floor * eps + terms,
            )
        return found

    def _spread(self) -> dict[str, _Spread]:
        """Errors of the plain implementation, and effects of the last place of the inputs, over a few copies of the case."""
        found = {name: _Spread() for name in self.truth}
        copies = COPIES if sum(t.numel() for t in self.inputs.values()) < LARGE else 0
        for number in range(1 + copies):
            moved = self.inputs if number == 0 else _moved(self.inputs, self.working, number)
            truth = self.truth if number == 0 else self._evaluate(moved, torch.float64)
            plain = self._evaluate(moved, self.working)
            if not all(bool(torch.isfinite(t).all()) for t in plain.values()):
                # it overflowed, where computing in float32 would not
                plain = self._evaluate(moved, torch.float32)
            for name, exact in truth.items():
                found[name].add(*_errors(plain[name].to(self.working).double(), exact))
                if number:
                    found[name].add(*_errors(exact, self.truth[name]))
        return found

    def _generosity(self, name: str) -> tuple[float, float, float]:
        """(factor, floor of the norm, floor of the worst element), floors in units of the working dtype."""
        if self.working == torch.float32:
            return FACTOR, FLOOR, FLOOR
        luck = min(1.0, math.sqrt(FEW / max(1, self.truth[name].numel())))
        return (
            HALF_FACTOR + (FACTOR - HALF_FACTOR) * luck,
            HALF_FLOOR + (HALF_WORST_FLOOR - HALF_FLOOR) * luck,
            HALF_WORST_FLOOR,
        )

    def _for_terms(self, name: str) -> float:
        """What is always allowed for the terms that a tensor is the sum of."""
        eps, single = torch.finfo(self.working).eps, torch.finfo(torch.float32).eps
        norm = max(float(self.truth[name].norm()), TINY)
        named, terms = self.named_terms.get(name, 0.0) / norm, self._size_of_terms(name) / norm
        worth = max(single, eps * min(1.0, terms * eps))
        return FLOOR * max(terms * worth, named * single)

    def _size_of_terms(self, name: str) -> float:
        """Norm of the terms that a gradient is the sum of."""
        if name in self.contract.results:
            return 0.0
        flows = range(len(self.contract.results)) if self.through is None else self.through
        pushed = math.sqrt(
            sum(
                float(u.double().square().sum())
                * float(self.truth[list(self.contract.results)[i]].square().sum())
                for u, i in zip(self.upstream, flows, strict=True)
            )
        )
        return pushed / max(float(self.inputs[name[1:]].double().norm()), TINY)


class _Spread:
    """Largest errors seen."""

    def __init__(self) -> None:
        self.error = self.worst = 0.0

    def add(self, error: float, worst: float) -> None:
        if error < float("inf"):
            self.error, self.worst = max(self.error, error), max(self.worst, worst)


def _moved(inputs: Mapping[str, Tensor], working: torch.dtype, seed: int) -> Tensors:
    """Inputs moved by one unit in the last place, up or down at random."""
    generator = torch.Generator().manual_seed(seed)

    def move(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        sign = torch.randint(0, 2, t.shape, generator=generator).to(t.device) * 2.0 - 1.0
        return (t.double() * (1 + sign * torch.finfo(working).eps)).to(t.dtype)

    return {name: move(t) for name, t in inputs.items()}


def _unlike(got: Tensor, wanted: Tensor) -> str:
    """Where one is finite and the other is not, in words; "" if nowhere."""
    apart = (torch.isfinite(got) != torch.isfinite(wanted)).nonzero()
    if not len(apart):
        return ""
    first = tuple(apart[0].tolist())
    return (
        f"{len(apart):,} of {got.numel():,} elements are finite where they must not be, or the reverse; the first, {first}, "
        f"is {float(got[first]):.4g} and should be {float(wanted[first]):.4g}"
    )


def _errors(got: Tensor, wanted: Tensor, unrounded: Tensor | None = None) -> tuple[float, float]:
    """(norm-relative, max-relative) error; infinite where one is finite and the other is not."""
    finite = torch.isfinite(wanted)
    if not torch.equal(finite, torch.isfinite(got)):
        return float("inf"), float("inf")
    exact = wanted if unrounded is None else unrounded
    difference = torch.where(finite, got - exact, 0.0)
    reference = torch.where(finite, exact, 0.0)
    if difference.numel() == 0:
        return 0.0, 0.0
    norm, largest = (max(float(x), TINY) for x in (reference.norm(), reference.abs().max()))
    return float(difference.norm()) / norm, float(difference.abs().max()) / largest
