"""What the sweep has measured, by hardware: the settings of a file's marked constants, and which is best where.

They are in the ledger, not in the source: a constant in the source is what every machine starts from. Constants of one file act on each
other, so a setting is all of them together. Two files belong to the same search if they are equal but for their constants.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent import surface, tunables
from agent.figures import bits_in_short, pairs, time_in_short
from agent.records import UNFINISHED, Past
from agent.tunables import Tunable

SWEEP = "sweep"  # the proposer, whose notes have "path", "template", "from" and "values"
FAILED = 1.0  # score of a setting that did not build or was wrong: e times slower
UNKNOWN = "hardware that was not recorded"

Setting = tuple[str, ...]  # a choice for each constant, in the order of the file


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

    def only(self, names: Container[str]) -> Space:
        """The space of these constants alone."""
        return replace(self, tunables=tuple(each for each in self.tunables if each.name in names))

    def setting(self, values: Mapping[str, str]) -> Setting | None:
        """The setting with these values; None if one is no longer a choice."""
        chosen = tuple(values.get(each.name, "") for each in self.tunables)
        known = all(
            value in each.choices for value, each in zip(chosen, self.tunables, strict=True)
        )
        return chosen if known else None

    def moved(self, setting: Setting) -> str:
        """What differs from the file as it stands: `kRows 1 -> 4, kCols 16 -> 64`."""
        values = zip(self.tunables, setting, strict=True)
        return ", ".join(f"{at.name} {at.value} -> {new}" for at, new in values if at.value != new)


def spaces(
    tree: Path, target: str = "all", op: str | None = None, hardware: str | None = None
) -> list[Space]:
    """The files of a tree's surface with marked constants: those that count on hardware of this name, or without one all."""
    found = []
    for path in surface.files(tree):
        if not surface.editable(path, target, op):
            continue
        try:
            text = (tree / path).read_bytes().decode()  # its line ends stay
        except UnicodeDecodeError:  # the static gate says so, where it matters
            continue
        marked = [
            each for each in tunables.find(text) if hardware is None or each.applies_to(hardware)
        ]
        if marked:
            found.append(Space(path, text, tuple(marked), tunables.template(text)))
    return found


def measured(history: Iterable[Past]) -> list[Past]:
    """The experiments that measured a setting."""
    ended = (e for e in history if e.outcome.judged)
    return [e for e in ended if e.proposer == SWEEP and "template" in e.notes]


def chain(space: Space, experiments: Iterable[Past]) -> dict[Setting, float]:
    """A score for every setting that was measured on one hardware, lower is better; the first one seen has 0.

    A measurement compares a candidate with the incumbent of its time. Scores are chained through these pairs, by log(time ratio) for a
    kernel and by the difference in BPB for the model, so that settings that never met are still ordered. A measurement that the judge
    could not finish says nothing.
    """
    scores: dict[Setting, float] = {}
    for experiment in experiments:
        before, after = (space.setting(experiment.notes[key]) for key in ("from", "values"))
        if before is None or after is None or experiment.notes["template"] != space.template:
            continue
        if UNFINISHED in experiment.outcome.reason:
            continue
        outcome, model = experiment.outcome, not surface.is_kernel(space.path)
        change = outcome.bpb_change if model else outcome.speed
        step = FAILED if change is None else change if model else math.log(change)
        scores[after] = scores.setdefault(before, 0.0) + step
    return scores


def by_hardware(space: Space, experiments: Sequence[Past]) -> dict[str, dict[Setting, float]]:
    """The scores on each hardware on which the file was measured, in the order of the measurements."""
    names = dict.fromkeys(e.hardware for e in experiments)
    chained = {n: chain(space, [e for e in experiments if e.hardware == n]) for n in names}
    return {name: scores for name, scores in chained.items() if scores}


def report(tree: Path, history: Iterable[Past]) -> Iterator[str]:
    """By hardware, the best setting of each file of the tree, as a difference from the file's own."""
    experiments = measured(history)
    lines: dict[str, list[str]] = {}
    for whole in spaces(tree):
        of_file = [e for e in experiments if e.notes["path"] == whole.path]
        for name in dict.fromkeys(e.hardware for e in of_file):
            there = [e for e in of_file if e.hardware == name]
            space = whole.only(there[-1].notes["values"])
            if scores := chain(space, there):
                lines.setdefault(name, []).append(f"  {space.path}: {_best(space, scores, there)}")
    if lines:
        yield "settings that the sweep found best, by hardware; a run there proposes them first"
    for name, of_files in lines.items():
        yield f" {name or UNKNOWN}"
        yield from of_files


def _best(space: Space, scores: Mapping[Setting, float], experiments: Sequence[Past]) -> str:
    """The best setting and its figure, measured against the incumbent of its time, whose setting may not have been the source's."""
    best = min(scores, key=lambda setting: scores[setting])
    count = f"{len(scores)} settings measured"
    if best == space.current:
        return f"as the source has it; {count}"
    of_it = [e.outcome for e in experiments if space.setting(e.notes["values"]) == best]
    if not of_it:
        return f"{space.moved(best)}; {count}"
    last = of_it[-1]
    kernel = surface.is_kernel(space.path)
    figure = time_in_short(last) if kernel else bits_in_short(last)
    runs = f"{last.blocks or 'unknown'} blocks" if kernel else pairs(last.pairs)
    return f"{space.moved(best)}, {figure} against its incumbent ({runs}); {count}"
