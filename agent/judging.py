"""What the loop asks of the judge, as one object: `Bench` asks the real one, and a test gives another.

In agent/ `judge` is such an object, all of bench; in bench/ a `Judge` is the judge's end of one runner (bench/judge.py).
`bench` is imported where it is used, because it imports torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bench.finding import Finding

if TYPE_CHECKING:
    from bench.data import Dataset
    from bench.interval import Spread
    from bench.speed import Comparison
    from bench.trial_result import TrialResult
    from bench.verdict import Verdict

Progress = Callable[[dict[str, Any]], None]


class Unfit(Exception):
    """The candidate failed while it was measured; the message says how."""


class MachineFault(RuntimeError):
    """The machine failed, and no candidate is to blame."""


class Judging(Protocol):
    """What a judge is asked. Trees are folders with kernels/, csrc/ and model/."""

    def ops(self) -> list[str]: ...

    def signature(self, op: str) -> inspect.Signature: ...

    def build(self, tree: Path, changed: Sequence[str]) -> Finding: ...

    def correctness(self, op: str, tree: Path) -> Finding: ...

    def compare(self, op: str, incumbent: Path, candidate: Path) -> Comparison:
        """Raises Unfit if an arm fails or a timed output is wrong."""
        ...

    def parity(self, incumbent: Path, candidate: Path) -> Finding: ...

    def trains(self, tree: Path) -> Finding:
        """Whether the model of a tree takes its first steps."""
        ...

    def profile(self, op: str | None, tree: Path, beside: Path | None = None) -> Mapping[str, Any]:
        """Where the time of an op goes, or without an op that of a training step, as bench/step_profile.py describes it.

        It is advice, never part of a verdict. `beside` is a second tree in which the op is timed too. Raises Unfit if the tree does not run.
        """
        ...

    def inspect(self, op: str, tree: Path) -> Mapping[str, Any]:
        """What compilers make of an op, as bench/inspection.py describes it. Raises Unfit if it does not compile."""
        ...

    def trial(
        self, tree: Path, seed: int, progress: Progress | None, split: str = "val"
    ) -> TrialResult:
        """Train the tree and score it on `split`; the test split is for the champion against the start, never for selection."""
        ...

    def revive(self, row: dict[str, Any]) -> TrialResult:
        """The result of which the ledger kept this row, made by its `as_json`."""
        ...

    def noise(self, trees: Mapping[str, Mapping[int, float]], start: str) -> Spread:
        """Spread of val_bpb from seed to seed. `trees`: val_bpb by tree and seed, in the order of the trials; `start`: the run's first tree."""
        ...

    def drifted(self, before: TrialResult, now: TrialResult, noise: Spread) -> str:
        """How two trials of one tree and seed differ by more than noise, in words; "" if they do not."""
        ...

    def decide(
        self,
        target: str,
        comparison: Mapping[str, Any] | None,
        incumbent: Sequence[TrialResult],
        candidate: Sequence[TrialResult],
        noise: Spread,
        *,
        words: int = 0,
    ) -> Verdict:
        """The verdict on paired trials. `comparison`: a Comparison as the ledger keeps it, a dict; `words`: of code that the candidate adds."""
        ...


@dataclass(frozen=True)
class Bench:
    """The judge of this checkout. Measurements draw fresh random inputs on every call."""

    device: str = "cpu"
    dataset: Dataset | None = None
    seconds: float = 300.0
    impl: str | None = None  # for every op, where a trial is run for comparison

    def ops(self) -> list[str]:
        from bench import contracts

        return contracts.ops()

    def signature(self, op: str) -> inspect.Signature:
        from bench import contracts

        return inspect.signature(contracts.contract(op).reference)

    def build(self, tree: Path, changed: Sequence[str]) -> Finding:
        from bench import builds

        found = builds.build(tree, changed)
        return replace(found, reason=_within(tree, found.reason))

    def correctness(self, op: str, tree: Path) -> Finding:
        from bench import correctness

        return correctness.check(op, tree, device=self.device)

    def compare(self, op: str, incumbent: Path, candidate: Path) -> Comparison:
        from bench import timing
        from bench.judge import Refused

        for last in (False, True):
            try:
                return timing.compare(op, incumbent, candidate, device=self.device)
            except Refused as refused:
                if refused.kind == "machine":
                    raise MachineFault(str(refused)) from None
                # a moment of the machine's may be why, and the runner may have been the incumbent's
                if last or refused.kind not in ("timeout", "crash"):
                    raise Unfit(str(refused)) from None
        raise AssertionError("the second try returns or raises")

    def parity(self, incumbent: Path, candidate: Path) -> Finding:
        from bench import parity

        return parity.probe(incumbent, candidate, self._data(), device=self.device)

    def trains(self, tree: Path) -> Finding:
        from bench import parity

        if self.dataset is None:
            return Finding(True, "the model is not trained here: that takes data")
        found = parity.trains(tree, self.dataset, device=self.device)
        return replace(found, reason=_within(tree, found.reason))

    def profile(self, op: str | None, tree: Path, beside: Path | None = None) -> Mapping[str, Any]:
        from bench import step_profile
        from bench.judge import Refused

        try:
            if op is not None:
                return step_profile.of_op(op, tree, beside=beside, device=self.device)
            data = self._data()
            return step_profile.of_step(
                tree, data.vocab_size, data.bos, device=self.device, impl=self._chosen(tree)
            )
        except Refused as refused:
            raise Unfit(_within(tree, str(refused))) from None

    def inspect(self, op: str, tree: Path) -> Mapping[str, Any]:
        from bench import inspection
        from bench.judge import Refused

        try:
            return inspection.of_op(op, tree)
        except Refused as refused:
            raise Unfit(_within(tree, str(refused))) from None

    def trial(
        self, tree: Path, seed: int, progress: Progress | None, split: str = "val"
    ) -> TrialResult:
        from bench import trial

        return trial.run_trial(
            tree,
            self._data(),
            seconds=self.seconds,
            seed=seed,
            device=self.device,
            split=split,
            impl=self._chosen(tree),
            progress=progress,
        )

    def revive(self, row: dict[str, Any]) -> TrialResult:
        from bench.trial_result import TrialResult

        return TrialResult(**row)

    def noise(self, trees: Mapping[str, Mapping[int, float]], start: str) -> Spread:
        from bench import noise

        return noise.noise_of(noise.unselected(trees, start))

    def drifted(self, before: TrialResult, now: TrialResult, noise: Spread) -> str:
        from bench import drift

        return drift.drifted(before, now, noise)

    def decide(
        self,
        target: str,
        comparison: Mapping[str, Any] | None,
        incumbent: Sequence[TrialResult],
        candidate: Sequence[TrialResult],
        noise: Spread,
        *,
        words: int = 0,
    ) -> Verdict:
        from bench import verdict
        from bench.speed import Comparison

        measured = None if comparison is None else Comparison(**comparison)
        return verdict.decide(target, measured, incumbent, candidate, noise, words=words)

    def _chosen(self, tree: Path) -> dict[str, str] | None:
        from bench import contracts

        return None if self.impl is None else dict.fromkeys(contracts.written(tree), self.impl)

    def _data(self) -> Dataset:
        if self.dataset is None:
            raise ValueError("this judge was made without data: pass `dataset`")
        return self.dataset


def _within(tree: Path, said: str) -> str:
    """What a compiler said, its paths relative to the tree: in a page of errors they take a third of it, and say where this machine keeps things."""
    return said.replace(f"{tree.resolve()}/", "").replace(f"{tree}/", "")
