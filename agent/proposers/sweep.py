"""The proposer that needs no key: it searches the `# tune:` constants of one file at a time with Optuna's TPE sampler.

It holds no state. Every call rebuilds the search from the ledger (agent/settings_found.py), so it goes on after a kill and learns from earlier
runs. What an earlier run found best on this hardware is proposed first and measured again. What was best on other hardware is tried next,
once, as a setting of which nothing is known here: its figures do not count.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent import settings_found, surface, tunables
from agent.proposers import Context, Workshop
from agent.records import GateResult, Proposal
from agent.settings_found import UNKNOWN, Setting, Space

NAME = settings_found.SWEEP
HEAD_START = 6  # experiments that a file of --start gets before the others have their turn
WORTH = 0.01  # a remembered setting this much better than the incumbent is proposed again
ASKS = 20  # times that the sampler is asked for a setting that is not known yet, before one is drawn at random


class Sweep:
    name = NAME
    ahead = False  # the next setting follows from how the last one ended

    def repair(self, proposal: Proposal, refusal: GateResult) -> Proposal | None:
        """A setting that fails is not repaired: another one is tried."""
        return None

    def propose(self, context: Context) -> Proposal | None:
        mine = settings_found.measured(context.history)
        here = [e for e in mine if e.run == context.run]

        def turn(space: Space) -> tuple[int, str]:
            tried = sum(e.notes["path"] == space.path for e in here)
            return (tried - HEAD_START * (space.path in context.brought), space.path)

        for space in sorted(spaces(context), key=turn):
            elsewhere = settings_found.by_hardware(space, mine)
            scores = elsewhere.pop(context.hardware, {})
            tried = {space.current} | {
                known
                for e in here
                if e.notes["template"] == space.template
                for end in ("from", "values")
                if (known := space.setting(e.notes[end])) is not None
            }
            setting, why = _choose(space, scores, elsewhere, tried, context.seed)
            if setting is not None:
                return _proposal(space, setting, why)
        return None


def create(workshop: Workshop) -> Sweep:
    return Sweep()


def spaces(context: Context) -> list[Space]:
    """The files of the target with constants that this device runs."""
    here = f"{context.device} {context.hardware}"
    found = settings_found.spaces(context.incumbent, context.target, context.op, here)
    return [space for space in found if _runs(space.path, context)]


def _runs(path: str, context: Context) -> bool:
    """Whether the file's constants matter on the device: on a CPU the C++, where an op has it; on a GPU Triton and CUDA."""
    if not surface.is_kernel(path):
        return True
    if context.device == "cpu":
        cpp = context.incumbent / "csrc" / f"{Path(path).stem}.cpp"
        return path.endswith((".cpp", ".h")) or (path.endswith(".py") and not cpp.exists())
    return not path.endswith(".cpp")


def _choose(
    space: Space,
    scores: Mapping[Setting, float],
    elsewhere: Mapping[str, Mapping[Setting, float]],
    tried: set[Setting],
    seed: int,
) -> tuple[Setting | None, str]:
    """A setting not yet tried in this run, and why: the best remembered, or the best on other hardware, or a new one, or a remembered one again."""
    remembered = sorted(
        (score, setting) for setting, score in scores.items() if setting not in tried
    )
    if remembered and remembered[0][0] < scores.get(space.current, 0.0) - WORTH:
        return remembered[0][1], "the best setting that an earlier run measured"
    for name, theirs in elsewhere.items():
        best = min(theirs, key=lambda setting: theirs[setting])
        worth = theirs[best] < theirs.get(space.current, 0.0) - WORTH
        if worth and best not in scores and best not in tried:
            return best, f"the best on {name or UNKNOWN}, not measured here"
    new = _ask(space, scores, tried, seed)
    if new is not None:
        return new, "a new setting"
    if remembered:
        return remembered[0][1], "all settings are known; measured again"
    return None, ""


def _ask(
    space: Space, scores: Mapping[Setting, float], tried: set[Setting], seed: int
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


def _draw(ranked: Sequence[Sequence[str]], known: set[Setting], rng: random.Random) -> Setting:
    """A random setting that is not known; there has to be one."""
    if math.prod(len(choices) for choices in ranked) <= 10_000:
        return rng.choice([each for each in itertools.product(*ranked) if each not in known])
    while (setting := tuple(rng.choice(choices) for choices in ranked)) in known:
        pass
    return setting


def _rank(choice: str) -> tuple[int, Any]:
    value = tunables.number_of(choice)
    return (1, str(value)) if isinstance(value, str) or value is None else (0, value)


def _proposal(space: Space, setting: Setting, why: str) -> Proposal:
    before, after = space.named(space.current), space.named(setting)
    return Proposal(
        hypothesis=f"{space.path}: {space.moved(setting)} ({why})",
        files={space.path: tunables.rewrite(space.text, after)},
        proposer=NAME,
        notes={"path": space.path, "template": space.template, "from": before, "values": after},
    )
