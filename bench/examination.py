"""One op of one tree under examination: cases laid out in the arena, asked of the runner, compared with float64.

The judge fills the arena with NaN before it lays out a call, so that rows lie between red zones (with what is huge and finite where torch itself
reads too far: bench/overread.py); it poisons the room for results; and afterwards everything it lent must be bitwise as it was, but for the
arguments that the op is meant to overwrite.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.arena import ALIGN, Where, place_call
from bench.comparison import Standard
from bench.contracts import Case, Contract
from bench.judge import Judge, Refused
from bench.overread import torch_overreads
from bench.protocol import extent

CALL_TIMEOUT_S = 90.0  # the first call may build
LIMIT_S = 900.0  # of all calls of an examination, which take 5 to 15 s

# What a byte makes of every floating dtype: a NaN; 1.3e36 in float32 and bfloat16, 61,280 in float16.
NAN, HUGE = 0xFF, 0x7B

Tensors = dict[str, Tensor]


@dataclass
class Laid:
    """A call in the arena, and private copies of what the judge put there."""

    case: Case
    call: dict[str, Any]
    inputs: Tensors
    upstream: list[Tensor]
    lent: tuple[int, int]  # bytes of the arena that must come back as they were

    @property
    def wrt(self) -> tuple[str, ...]:
        return tuple(self.call["wrt"])

    def names(self, contract: Contract) -> list[str]:
        """Of results and gradients, in the order of `places`."""
        return [*contract.results, *(f"d{name}" for name in self.wrt)]

    def places(self) -> list[Where]:
        return [*self.call["outputs"], *self.call["gradients"]]


class Examination:
    """Draws, lays, asks and compares. Every refusal is a `Refused` whose kind names the check.

    `impl`: the implementation that is asked; None is the public function as the trial calls it.
    """

    def __init__(
        self, contract: Contract, judge: Judge, seed: int, impl: str | None = None
    ) -> None:
        self.contract, self.judge, self.impl = contract, judge, impl
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.cases = 0
        self.used: dict[str, float] = {}  # share of the allowed error, by tensor
        self.until = time.monotonic() + LIMIT_S

    def lay(
        self,
        case: Case,
        wrt: Sequence[str] | None = None,
        *,
        layout: str = "contiguous",
        through: Sequence[int] | None = None,
        fresh: bool = True,
        values: Tensors | None = None,
        upstream: Sequence[Tensor] | None = None,
    ) -> Laid:
        """Lay out and fill a call. `layout` is how its gradients lie: contiguous, transposed, or expanded from one value.

        `values` are its inputs and `upstream` its gradients from upstream where they are not to be drawn; `fresh` forgets what is laid.
        """
        wrt = self.contract.wrt(case) if wrt is None else wrt
        arena = self.judge.arena
        if fresh:
            arena.reset()
        # anywhere, also beside a page's edge
        arena.used += ALIGN * self.rng.randrange(64)
        before = arena.used
        results, updates = self.contract.shapes(case), self.contract.updates
        call = place_call(
            arena, case, results, wrt, layout=layout, through=through, updates=updates
        )
        call["weights"] = [name for name in self.contract.weights if name in case.inputs]
        lent = [*call["inputs"].values(), *call["upstream"]]
        start = min((where["offset"] for where in lent), default=before) // ALIGN * ALIGN
        laid = Laid(case, call, {}, [], (start, arena.used))
        # else the image of a GPU's memory would first fetch what is overwritten here
        arena.written(*laid.lent)
        # float32 is multiplied by MKL, which reads no further
        halves = any(i.dtype in ("bfloat16", "float16") for i in case.inputs.values())
        overreads = halves and self.judge.device == "cpu" and torch_overreads()
        arena.bytes(*laid.lent).fill_(HUGE if overreads else NAN)
        self.fill(laid, values, upstream)
        return laid

    def again(self, laid: Laid, wrt: Sequence[str] | None = None) -> Laid:
        """The same contents, laid out once more, elsewhere; a standard made for them still holds."""
        wrt = laid.wrt if wrt is None else wrt
        return self.lay(laid.case, wrt, values=laid.inputs, upstream=laid.upstream)

    def fill(
        self, laid: Laid, values: Tensors | None = None, upstream: Sequence[Tensor] | None = None
    ) -> None:
        """Values into what is laid; they are drawn where none are given."""
        for name, wanted in laid.case.inputs.items():
            each = wanted.values(self.generator) if values is None else values[name]
            self.put(laid, name, each)
        laid.upstream = []
        for i, where in enumerate(laid.call["upstream"]):
            buffer = self.judge.arena.view(where)
            if upstream is not None:
                buffer.copy_(upstream[i])
            elif 0 in buffer.stride() and buffer.numel() > 1:
                buffer.as_strided((1,), (1,)).fill_(self.rng.uniform(-1, 1))
            else:
                drawn = torch.randn(buffer.shape, generator=self.generator)
                # sometimes one value for all, as `loss.mean()` sends
                buffer.copy_(drawn if self.rng.random() < 0.7 else torch.full_like(drawn, 0.37))
            laid.upstream.append(buffer.clone())

    def put(self, laid: Laid, name: str, values: Tensor) -> None:
        """Write an input, and remember what its buffer then holds."""
        buffer = self.judge.arena.view(laid.call["inputs"][name])
        if buffer.ndim and buffer.stride(0) == 0 and buffer.shape[0] > 1:
            buffer[:1].copy_(values[:1])
        else:
            buffer.copy_(values)
        laid.inputs[name] = buffer.clone()

    def ask(
        self,
        laid: Laid,
        do: str = "call",
        *,
        mode: str = "eager",
        passing: str = "lent",
        hold: bool = False,
        threads: int | None = None,
    ) -> Tensors:
        """Poison the room for results, let the runner answer, take the bytes, check what was lent, and restore what the op was to overwrite."""
        options = {"mode": mode, "passing": passing, "hold": hold, "threads": threads}
        return self.ask_all([laid], do, **options)[0]

    def ask_all(self, laid: Sequence[Laid], do: str, **options: Any) -> list[Tensors]:
        """As `ask`, for a request that concerns several calls at once."""
        arena = self.judge.arena
        before = [arena.bytes(*each.lent).clone() for each in laid]
        for each in laid:
            for where in each.places():
                arena.written(*extent(where))  # not fetched first, as in `lay`
                arena.view(where).fill_(float("nan"))
        calls = [each.call for each in laid]
        request: dict[str, Any] = {"call": calls[0]} if len(calls) == 1 else {"calls": calls}
        request |= {"op": self.contract.name, "impl": self.impl, **options}
        # with all calls before it no longer than LIMIT_S
        patience = min(CALL_TIMEOUT_S, max(0.1, self.until - time.monotonic()))
        try:
            self.judge.ask(do, timeout=patience, **request)
        except Refused as refused:
            what, said = do if do != "call" else options["mode"], str(refused)
            if refused.kind == "timeout" and time.monotonic() > self.until - 0.2:
                said = f"all its calls together have taken {LIMIT_S:.0f} s, and may take no more"
            raise Refused(refused.kind, f"{self.where(laid[0].case, what)}: {said}") from None
        for each, lent in zip(laid, before, strict=True):
            for name in self.contract.updates:
                arena.view(each.call["inputs"][name]).copy_(each.inputs[name])
            if not torch.equal(arena.bytes(*each.lent), lent):
                said = f"{self.where(each.case)}: {self._changed(each)}; work on a copy"
                raise Refused("mutation", said)
        return [
            {
                name: arena.view(where).clone()
                for name, where in zip(each.names(self.contract), each.places(), strict=True)
            }
            for each in laid
        ]

    def _changed(self, laid: Laid) -> str:
        for name, before in laid.inputs.items():
            if not same_bits(self.judge.arena.view(laid.call["inputs"][name]), before):
                return f"input {name} was changed by the call"
        return "memory beside the inputs, or an upstream gradient, was written"

    def standard(
        self,
        laid: Laid,
        *,
        upstream: Sequence[Tensor] | None = None,
        working: torch.dtype | None = None,
    ) -> Standard:
        """What float64 says of the values that the call's buffers hold; asked for only when the runner has answered."""
        return Standard(
            self.contract,
            laid.case,
            laid.inputs,
            laid.upstream if upstream is None else upstream,
            laid.wrt,
            device=self.judge.device,
            through=laid.call["through"],
            working=working,
        )

    def verify(
        self, laid: Laid, answer: Tensors, *, what: str = "", standard: Standard | None = None
    ) -> None:
        """Compare an answer with float64."""
        self.cases += 1
        wrong, used = (standard or self.standard(laid)).examine(answer)
        if wrong:
            raise Refused("wrong", f"{self.where(laid.case, what)}: {wrong}")
        for name, share in used.items():
            self.used[name] = max(self.used.get(name, 0.0), share)

    def right(
        self, laid: Laid, *, what: str = "", standard: Standard | None = None, **options: Any
    ) -> Tensors:
        """The answer to a call (`options` as of `ask`), which has to be right."""
        answer = self.ask(laid, **options)
        self.verify(laid, answer, what=what, standard=standard)
        return answer

    @property
    def named(self) -> str:
        return f"impl={self.impl or 'default'}"

    def where(self, case: Case, what: str = "") -> str:
        return f"{self.named}{' ' + what if what else ''}, {case.label()}"


def same_bits(a: Tensor, b: Tensor) -> bool:
    def raw(t: Tensor) -> Tensor:
        return t.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)

    return a.numel() == 0 or torch.equal(raw(a), raw(b))
