"""How long an experiment takes on this machine: as the ledger has measured it or, where it has not, as is assumed; each figure says which.

Experiments go through the gates one after another. Each gate passes a share of them, and what is left is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agent import gates
from agent.champion import PAIRS
from agent.machine import DEVICE
from agent.proposers import PAID
from agent.records import Experiment, Settings
from bench.plan import BASELINES

ENOUGH = 10  # measurements, to take them and not the assumption
TRIAL = "trial"
# Seconds of a gate and the share that it passes, for a proposer that has read the agenda and may check its draft first.
ASSUMED = {
    "scope": (0.1, 0.95),
    "static": (1.0, 0.95),
    "build": (20.0, 0.9),
    "correctness": (10.0, 0.8),
    "microbench": (20.0, 0.35),
    "parity": (20.0, 0.95),
}
# Gates that pass a change of the model at once.
KERNEL_GATES = frozenset({"build", "microbench", "parity"})
TRIALS = {"kernels": 1.1, "model": 1.7, "all": 1.4}  # of a candidate, until its verdict
SET_UP_S = 45.0  # of a trial, beside its own length: start, compilation, scoring
CLOSING = 2 * PAIRS  # trials of start and champion at the end
# Seconds that a proposer takes for a proposal: low, expected, high.
SOME_PROGRAM = (120.0, 480.0, 1500.0)  # as --command runs, or one that is not named here
THINKING = {
    "sweep": (0.1, 0.5, 2.0),
    "replay": (0.1, 0.1, 0.5),
    "anthropic": (90.0, 240.0, 720.0),
    "openai": (90.0, 240.0, 720.0),
    "placebo": (0.1, 0.1, 0.5),
}


@dataclass(frozen=True)
class Stage:
    """A gate or the trial: the share of experiments that reach it, and its seconds for one. `known`: measurements, 0 if assumed."""

    name: str
    reached: float
    seconds: float
    known: int


@dataclass(frozen=True)
class Pace:
    """Seconds of an experiment: `judged` from its first gate to its end, `device` of them on the device.

    `baseline` is spent once at the start, `closing` at the end.
    """

    stages: tuple[Stage, ...]
    thinking: tuple[float, float, float]  # of the proposer: low, expected, high
    ahead: bool
    baseline: float
    closing: float

    @property
    def judged(self) -> float:
        return sum(stage.reached * stage.seconds for stage in self.stages)

    @property
    def device(self) -> float:
        on_device = {TRIAL, *(name for name, use in gates.USES.items() if use == DEVICE)}
        return sum(s.reached * s.seconds for s in self.stages if s.name in on_device)

    def interval(self, thinking: float) -> float:
        """Seconds from one experiment to the next."""
        return max(thinking, self.judged) if self.ahead else thinking + self.judged


def pace(settings: Settings, proposer: str, experiments: Iterable[Experiment]) -> Pace:
    """The pace of a night with these settings.

    `experiments`: those judged by the same standard, in runs with the same device, target and
    length of a trial.
    """
    ended = [e for e in experiments if e.outcome.judged]
    judged = sum(bool(e.gates) for e in ended)  # some rows hold no proposal
    stages, left = [], judged / len(ended) if len(ended) >= ENOUGH else 1.0
    for name, _ in gates.GATES:
        stage, passing = _gate(name, left, settings.target, ended)
        stages.append(stage)
        left *= passing
    trained = [e.outcome.device_seconds for e in ended if e.outcome.device_seconds > 0]
    trial = settings.seconds + SET_UP_S
    known = len(trained) if len(trained) >= ENOUGH else 0
    seconds = sum(trained) / known if known else TRIALS[settings.target] * trial
    stages.append(Stage(TRIAL, left, seconds, known))
    return Pace(
        tuple(stages),
        THINKING.get(proposer, SOME_PROGRAM),
        proposer in PAID,
        BASELINES * trial,
        CLOSING * trial,
    )


def _gate(
    name: str, reached: float, target: str, experiments: Sequence[Experiment]
) -> tuple[Stage, float]:
    """A gate as a stage, and the share of what reaches it that passes in the end, after repairs."""
    of_gate = [[result for result in e.gates if result.name == name] for e in experiments]
    there = [results for results in of_gate if results]
    if len(there) >= ENOUGH:
        seconds = sum(result.seconds for results in there for result in results) / len(there)
        passing = sum(results[-1].passed for results in there) / len(there)
        return Stage(name, reached, seconds, len(there)), passing
    if target == "model" and name in KERNEL_GATES:
        return Stage(name, reached, 0.0, 0), 1.0
    seconds, passing = ASSUMED[name]
    return Stage(name, reached, seconds, 0), passing
