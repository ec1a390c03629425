"""Which timed calls are compared with float64, and the comparison.

One call of every block is copied out while the clock runs, and all arms answer it from the same inputs. The call in which their answers
differ most is kept, and so are one drawn at random and the last: an answer that is stale, or cheap now and then, is the one that differs.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from bench.comparison import Standard
from bench.judge import Refused
from bench.staging import Contents, Stage
from bench.threads import one_thread

# One call is compared, and then as many more as begin within this time: float64 takes 0.05 s for some (a norm), 2 for others (a loss over
# 8192 words).
MORE_S = 1.0
# Elements of a tensor by which two answers are compared between blocks.
SAMPLED = 1 << 16


@dataclass(frozen=True)
class _Call:
    """Private copies of the inputs of one call, and of what each arm answered."""

    inputs: dict[str, Tensor]
    upstream: list[Tensor]
    answers: dict[str, dict[str, Tensor]]


class Audit:
    """The calls of one measurement. `stages`: each arm's input sets, the incumbent's first."""

    def __init__(
        self, contents: Contents, stages: Mapping[str, Stage], device: str, rng: random.Random
    ) -> None:
        self.contents, self.stages, self.device, self.rng = contents, stages, device, rng
        self.seen = 0
        self.largest = -1.0
        self.worst: _Call | None = None
        self.drawn: _Call | None = None

    def see(self, number: int) -> None:
        """Every arm has just answered set `number`. Raises Refused at once for an answer that is not finite."""
        first, *others = [stage.answer() for stage in self.stages.values()]
        apart = max((_distance(other, first, self.rng) for other in others), default=0.0)
        self.seen += 1
        self.number = number
        largest, drawn = apart > self.largest, self.rng.random() * self.seen < 1.0
        call = self._copy(number) if largest or drawn else None
        if largest:
            self.largest, self.worst = apart, call
        if drawn:
            self.drawn = call
        if math.isinf(apart):
            self.run()

    def run(self) -> None:
        """Raises Refused for the first answer that is wrong."""
        until = time.monotonic() + MORE_S
        assert self.worst is not None
        with one_thread():
            self._examine(self.worst)
            for call in (self._copy(self.number), self.drawn):
                if call is not None and call is not self.worst and time.monotonic() < until:
                    self._examine(call)

    def _copy(self, number: int) -> _Call:
        stages = list(self.stages.values())
        inputs, upstream = stages[0].inputs(number)
        return _Call(
            {name: t.clone() for name, t in inputs.items()},
            [t.clone() for t in upstream],
            {
                name: {result: t.clone() for result, t in stage.answer().items()}
                for name, stage in self.stages.items()
            },
        )

    def _examine(self, call: _Call) -> None:
        """All arms, the candidate's first."""
        asked, case, wrt = self.contents.asked, self.contents.case, self.contents.wrt
        standard = Standard(asked, case, call.inputs, call.upstream, wrt, device=self.device)
        for name in reversed(call.answers):
            wrong, _ = standard.examine(call.answers[name])
            if wrong:
                raise Refused(
                    "wrong", f"an output of a timed call ({name}, {case.label()}) is wrong: {wrong}"
                )


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor], rng: random.Random) -> float:
    """How far two answers are apart, relative to the norm, in the tensor where they differ most; infinite if one is not finite."""
    return max(_apart(a[name], b[name], rng) for name in a)


def _apart(a: Tensor, b: Tensor, rng: random.Random) -> float:
    step = -(-a.numel() // SAMPLED)
    start = rng.randrange(step)
    x, y = (t.flatten()[start::step].double() for t in (a, b))
    distance = float((x - y).norm()) / max(float(y.norm()), 1e-30)
    return distance if math.isfinite(distance) else math.inf
