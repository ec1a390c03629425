"""The proposer that needs no key: it searches the `# tune:` constants of one file at a time with Optuna's TPE sampler.

It holds no state. Every call rebuilds the search from the ledger, so it goes on after a kill and learns from earlier runs: two files
belong to the same search when they are equal but for their constants. A measurement compares a candidate with the incumbent of its
time; scores are chained through those pairs, log(time ratio) for a kernel and the difference in BPB for the model, so that settings
which never met are still ordered. What an earlier run found best is proposed first and measured again.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import surface, tunables
from agent.proposers import Context, Workshop
from agent.records import LOST, OPEN, GateResult, Past, Proposal
from agent.tunables import Tunable

NAME = "sweep"
HEAD_START = 6  # experiments that a file of --start gets before the others have their turn
WORTH = 0.01  # a remembered setting this much better than the incumbent is proposed again
FAILED = 1.0  # score of a setting that did not build or was wrong: e times slower
ASKS = 20  # times the sampler is asked for a setting that is not known yet, before one is drawn

Setting = tuple[str, ...]  # one choice a constant, in the order of the file


@dataclass(frozen=True)
class Space:
    """The settings of one file."""

    path: str
    text: str
    tunables: tuple[Tunable, ...]
    template: str

    @property
    def current(self) -> Setting:
        return tuple(each.value for each in self.tunables)

    def named(self, setting: Setting) -> dict[str, str]:
        return {each.name: value for each, value in zip(self.tunables, setting, strict=True)}

    def setting(self, values: Mapping[str, str]) -> Setting | None:
        """The setting with these values; None if one is no longer a choice."""
        chosen = tuple(values.get(each.name, "") for each in self.tunables)
        known = all(
            value in each.choices for value, each in zip(chosen, self.tunables, strict=True)
        )
        return chosen if known else None


class Sweep:
    name = NAME
    ahead = 0  # the next setting follows from how the last one ended

    def repair(self, proposal: Proposal, refusal: GateResult) -> Proposal | None:
        """A setting that fails is not mended: another one is tried."""
        return None

    def propose(self, context: Context) -> Proposal | None:
        mine = [
            e
            for e in context.history
            if e.proposer == NAME and e.outcome.status not in (LOST, *OPEN)
        ]
        here = [e for e in mine if e.run == context.run]

        def turn(space: Space) -> tuple[int, str]:
            tried = sum(e.notes["path"] == space.path for e in here)
            return (tried - HEAD_START * (space.path in context.brought), space.path)

        for space in sorted(spaces(context), key=turn):
            of_file = [e for e in mine if e.notes["template"] == space.template]
            scores = chain(space, of_file)
            tried = {
                space.setting(e.notes[end])
                for e in of_file
                if e.run == context.run
                for end in ("from", "values")
            }
            setting, why = _choose(space, scores, tried | {space.current}, context.seed)
            if setting is not None:
                return _proposal(space, setting, why)
        return None


def create(workshop: Workshop) -> Sweep:
    return Sweep()


def spaces(context: Context) -> list[Space]:
    """The files of the target with constants that this device runs."""
    found = []
    for folder in surface.FOLDERS:
        for file in sorted((context.incumbent / folder).glob("*")):
            path = f"{folder}/{file.name}"
            if not surface.editable(path, context.target, context.op) or not _runs(path, context):
                continue
            text = file.read_text()
            # A name that stands again (#2) is its value for another instruction set or device.
            marked = tuple(each for each in tunables.find(text) if "#" not in each.name)
            if marked:
                found.append(Space(path, text, marked, tunables.template(text)))
    return found


def _runs(path: str, context: Context) -> bool:
    """Whether the file's constants matter on the device: on a CPU the C++, where an op has it; on a GPU Triton and CUDA."""
    if not surface.is_kernel(path):
        return True
    if context.device == "cpu":
        cpp = context.incumbent / "csrc" / f"{Path(path).stem}.cpp"
        return path.endswith((".cpp", ".h")) or (path.endswith(".py") and not cpp.exists())
    return not path.endswith(".cpp")


def chain(space: Space, experiments: Iterable[Past]) -> dict[Setting, float]:
    """A score for every setting that was measured, lower is better; the first one seen has 0."""
    scores: dict[Setting, float] = {}
    for experiment in experiments:
        before, after = (space.setting(experiment.notes[key]) for key in ("from", "values"))
        if before is None or after is None:
            continue
        outcome, model = experiment.outcome, not surface.is_kernel(space.path)
        change = outcome.bpb_change if model else outcome.speed
        step = FAILED if change is None else change if model else math.log(change)
        scores[after] = scores.setdefault(before, 0.0) + step
    return scores


def _choose(
    space: Space, scores: Mapping[Setting, float], tried: set[Setting | None], seed: int
) -> tuple[Setting | None, str]:
    """A setting not yet tried in this run: the best remembered, else a new one, else a remembered one again."""
    remembered = sorted(
        (score, setting) for setting, score in scores.items() if setting not in tried
    )
    if remembered and remembered[0][0] < scores.get(space.current, 0.0) - WORTH:
        return remembered[0][1], "the best setting that an earlier run measured"
    new = _ask(space, scores, tried, seed)
    if new is not None:
        return new, "not measured yet"
    if remembered:
        return remembered[0][1], "all settings are known; measured again"
    return None, ""


def _ask(
    space: Space, scores: Mapping[Setting, float], tried: set[Setting | None], seed: int
) -> Setting | None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranked = [sorted(each.choices, key=_rank) for each in space.tunables]
    known = {*scores, *tried}
    free = math.prod(len(choices) for choices in ranked) - len(known)
    if free <= 0:
        return None
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        each.name: optuna.distributions.IntDistribution(0, len(choices) - 1)
        for each, choices in zip(space.tunables, ranked, strict=True)
    }
    sampler = optuna.samplers.TPESampler(seed=seed + len(known), n_startup_trials=4)
    study = optuna.create_study(sampler=sampler)
    for setting, score in (scores or {space.current: 0.0}).items():
        params = {
            e.name: c.index(v) for e, c, v in zip(space.tunables, ranked, setting, strict=True)
        }
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=score)
        )
    for _ in range(ASKS):
        asked = study.ask(distributions).params
        setting = tuple(
            choices[asked[e.name]] for e, choices in zip(space.tunables, ranked, strict=True)
        )
        if setting not in known:
            return setting
    return _draw(ranked, known, random.Random(seed + len(known)))


def _draw(
    ranked: Sequence[Sequence[str]], known: set[Setting | None], rng: random.Random
) -> Setting:
    """A setting that is not known, of which there is at least one."""
    if math.prod(len(choices) for choices in ranked) <= 10_000:
        return rng.choice([each for each in itertools.product(*ranked) if each not in known])
    while (setting := tuple(rng.choice(choices) for choices in ranked)) in known:
        pass
    return setting


def _rank(choice: str) -> tuple[int, Any]:
    value = tunables.number_of(choice)
    return (1, value) if isinstance(value, str) or value is None else (0, value)


def _proposal(space: Space, setting: Setting, why: str) -> Proposal:
    before, after = space.named(space.current), space.named(setting)
    moved = ", ".join(
        f"{name} {before[name]} -> {after[name]}" for name in after if before[name] != after[name]
    )
    return Proposal(
        hypothesis=f"{space.path}: {moved} ({why})",
        files={space.path: tunables.rewrite(space.text, after)},
        proposer=NAME,
        notes={"path": space.path, "template": space.template, "from": before, "values": after},
    )
