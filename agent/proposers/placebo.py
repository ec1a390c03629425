"""The proposer of nothing: every proposal changes tokens and no behaviour, so that whatever is kept of it is a false keep.

A local variable gets another name, half of the time two functions change places as well, and a comment says so. All of it follows from the
seed and the proposal's number, so that a resumed run goes on with the next. The scope gate passes them all: a name is a token, so none is
idle; each name has random letters, so none is the patch of another; and what similarity compares, with names numbered and order left out,
is empty, which is too little to be called the same.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable

from agent import placebo_cpp, placebo_python, standard, surface
from agent.proposers import Context, Workshop
from agent.records import LOST, GateResult, Proposal

SUFFIX = 4  # letters
_SWAPPED = 0.5  # share of the proposals


class Placebo:
    name = standard.PLACEBO
    ahead = False  # a proposal takes no time, so there is nothing to gain

    def propose(self, context: Context) -> Proposal | None:
        mine = [p for p in context.history if p.run == context.run and p.proposer == self.name]
        place = sum(past.outcome.status != LOST for past in mine)
        rng = random.Random(f"placebo {context.seed} {place}")
        paths = _paths(context)
        rng.shuffle(paths)
        for path in paths:
            made = change(path, (context.incumbent / path).read_text(), rng)
            if made is not None:
                text, said = made
                return Proposal(f"placebo: {path}: {said}", {path: text}, self.name)
        return None

    def repair(self, proposal: Proposal, refusal: GateResult) -> Proposal | None:
        """A placebo that is refused is counted, not repaired."""
        return None


def create(workshop: Workshop) -> Placebo:
    return Placebo()


def change(path: str, text: str, rng: random.Random) -> tuple[str, str] | None:
    """The text with a null change, and what was done; None if the file offers none."""
    null = placebo_python if path.endswith(".py") else placebo_cpp
    suffix = "".join(rng.choices(string.ascii_lowercase, k=SUFFIX))
    swap = rng.random() < _SWAPPED
    renamed = null.rename(text, suffix, rng)
    if renamed is None:
        return None
    text, said = renamed
    reorder: Callable[[str, random.Random], tuple[str, str] | None] = null.reorder
    if swap and (swapped := reorder(text, rng)) is not None:
        text, said = swapped[0], f"{said}; {swapped[1]}"
    comment = "#" if path.endswith(".py") else "//"
    return f"{text.rstrip()}\n{comment} {suffix}: {said}\n", said


def _paths(context: Context) -> list[str]:
    """Files of the surface whose code this device runs."""
    other = ".cu" if context.device == "cpu" else ".cpp"
    return [
        path for path in surface.files(context.incumbent)
        if surface.editable(path, context.target, context.op) and not path.endswith((other, ".h"))
    ]  # fmt: skip
