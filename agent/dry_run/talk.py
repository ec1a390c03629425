"""What a proposal takes of a model, in tokens and money: as the ledger has measured it, or else as in a session of the usual length."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from agent import surface
from agent.dry_run.pace import ENOUGH
from agent.lab import Lab, Unusable
from agent.ledger import Ledger
from agent.prices import MTOK, Price, UnknownPrice, price_of, traits_of
from agent.proposers import Context
from agent.records import Settings, Usage

CHARACTERS = 3.5  # per token, in code and English
TURNS = (7, 16, 36)  # replies of a model for a proposal, repairs included
OUTPUT = (500, 900, 1_400)  # tokens of a reply, its thinking included
ANSWER = (900, 1_500, 2_000)  # tokens of what the tools answer to it
SPREAD = (0.4, 1.0, 2.5)  # of a proposal's cost about its mean, where only the mean is known
FIRST = 12_000  # characters of a first message: the task, a profile, the memory


@dataclass(frozen=True)
class Talk:
    """What a proposal takes of a model, one figure per case. `known`: how many proposals were measured, 0 if it is assumed."""

    model: str
    usage: tuple[Usage, Usage, Usage]
    price: Price
    known: int

    def usd(self, case: int) -> float:
        return self.price.cost(self.usage[case])

    def uncached(self, case: int) -> float:
        """USD of the same requests if nothing were cached."""
        used = self.usage[case]
        return (used.prompt * self.price.input + used.output * self.price.output) / MTOK

    def tokens(self, case: int) -> int:
        used = self.usage[case]
        return used.prompt + used.output


def talk(lab: Lab, ledger: Ledger, model: str, settings: Settings) -> Talk:
    """What a proposal takes of `model` with these settings. Raises Unusable where its price is not known."""
    try:
        price = price_of(model, settings.prices)
    except (UnknownPrice, ValueError) as error:
        raise Unusable(str(error)) from None
    measured = _measured(ledger, model)
    if measured is not None:
        mean, known = measured
        low, expected, high = (_scaled(mean, factor) for factor in SPREAD)
        return Talk(model, (low, expected, high), price, known)
    prefix = _prefix(lab, settings)
    bound = _longest(model)
    low, expected, high = (
        conversation(prefix, turns, output, answer, bound)
        for turns, output, answer in zip(TURNS, OUTPUT, ANSWER, strict=True)
    )
    return Talk(model, (low, expected, high), price, 0)


def conversation(prefix: int, turns: int, output: int, answer: int, bound: int) -> Usage:
    """The tokens of a session: each request reads what the one before left in the cache, and writes what is new.

    The prefix is written once per session, since a cache of five minutes does not outlive a trial; at `bound` a conversation is compacted.
    """
    read = written = 0
    length, cached = prefix, 0
    for _ in range(turns):
        read, written = read + cached, written + length - cached
        cached = length
        length += output + answer
        if length > bound:
            length, cached = max(prefix, bound // 2), prefix
    return Usage(output=turns * output, cache_read=read, cache_write=written)


def _measured(ledger: Ledger, model: str) -> tuple[Usage, int] | None:
    """Mean tokens of a proposal in the runs that asked this model alone, and how many there were; None if too few."""
    total, known = Usage(), 0
    for run in ledger.runs():
        asked = [past for past in ledger.history(run.id) if past.model]
        if {past.model for past in asked} == {model}:
            calls = ledger.accounts.calls(run.id)
            total = Usage(
                total.input + calls.tokens_in, total.output + calls.tokens_out,
                total.cache_read + calls.cache_read, total.cache_write + calls.cache_write,
            )  # fmt: skip
            known += len(asked)
    return (_scaled(total, 1 / known), known) if known >= ENOUGH else None


def _scaled(usage: Usage, factor: float) -> Usage:
    counts = (usage.input, usage.output, usage.cache_read, usage.cache_write)
    return Usage(*(round(count * factor) for count in counts))


def _prefix(lab: Lab, settings: Settings) -> int:
    """Tokens of the first request: the prefix as it would be sent, the tools, the first message."""
    from agent.research import prompt
    from agent.research.menu import ToolLimits, menu

    repository = lab.repository()
    head = repository.resolve("HEAD")
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        repository.export(head, tree, surface.FOLDERS)
        context = Context(
            "", head, tree, settings.target, settings.op, settings.device, settings.seed,
            agenda=lab.agenda(),
        )  # fmt: skip
        blocks = prompt.system(context)
    tools = menu(ToolLimits(), [], surface.describe(settings.target, settings.op))
    said = sum(len(tool.name + tool.description + json.dumps(tool.schema)) for tool in tools)
    return round((sum(map(len, blocks)) + said + FIRST) / CHARACTERS)


def _longest(model: str) -> int:
    """Tokens at which a conversation with this model is compacted."""
    from agent.research.session import BOUNDS

    return BOUNDS.longest(traits_of(model).window)
