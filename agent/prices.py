"""What models cost, and how many tokens they take: prices.toml, with the date and source of each figure, and what --price says."""

from __future__ import annotations

import datetime
import functools
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from agent.records import Usage

TABLE = Path(__file__).with_name("prices.toml")
MTOK = 1e6
WRITE = 1.25  # price of a cache write / price of input, the highest in the table
SNAPSHOT = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2})$")  # the date at the end of a name


class UnknownPrice(Exception):
    """No price is known for a model; the message says what to type."""

    def __init__(self, model: str) -> None:
        super().__init__(
            f"no price is known for {model}: give it in USD per million tokens, --price {model}=IN/OUT (0/0 for a local one)"
        )


@dataclass(frozen=True)
class Price:
    """USD per million tokens."""

    input: float
    output: float
    cache_read: float
    cache_write: float

    def cost(self, usage: Usage) -> float:
        """USD of what was used."""
        return (
            usage.input * self.input
            + usage.output * self.output
            + usage.cache_read * self.cache_read
            + usage.cache_write * self.cache_write
        ) / MTOK

    def most(self, tokens_in: int, tokens_out: int) -> float:
        """USD that a request can cost at most, however much of its prompt is read from or written to a cache."""
        dearest = max(self.input, self.cache_read, self.cache_write)
        return (tokens_in * dearest + tokens_out * self.output) / MTOK


@dataclass(frozen=True)
class Traits:
    """How many tokens a model takes and gives; the defaults are assumed of a model that is not in the table.

    `request`: fields that every request to the model carries, as its provider names them.
    """

    window: int = 128_000
    max_output: int = 16_384
    request: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A model of the table."""

    price: Price
    traits: Traits
    date: datetime.date
    source: str


@functools.cache
def table() -> Mapping[str, Entry]:
    """Every model of prices.toml by name."""
    rows = tomllib.loads(TABLE.read_text())
    return {name: _entry(dict(row)) for name, row in rows.items()}


def _entry(row: dict[str, Any]) -> Entry:
    price = Price(**{each.name: float(row.pop(each.name)) for each in fields(Price)})
    date, source = row.pop("date"), row.pop("source")
    return Entry(price, Traits(**row), date, source)


def find(model: str) -> Entry | None:
    """The entry of a model, or of the model of which it is a dated snapshot; None if the table has neither."""
    return table().get(model) or table().get(SNAPSHOT.sub("", model))


def traits_of(model: str) -> Traits:
    entry = find(model)
    return entry.traits if entry else Traits()


def tell_unlisted(models: Iterable[str], say: Callable[[str], None]) -> None:
    """Say what is assumed of models that are not in the table."""
    for model in models:
        if find(model) is None:
            traits = Traits()
            say(
                f"{model} is not in {TABLE.name}: assumed to have a window of {traits.window:,} tokens and answers of up to "
                f"{traits.max_output:,}"
            )


def price_of(model: str, given: Sequence[str] = ()) -> Price:
    """The price that `given` (each MODEL=IN/OUT or MODEL=IN/OUT/READ/WRITE) or else the table has. Raises UnknownPrice, ValueError."""
    named = dict(_parse(each) for each in given)
    entry = find(model)
    if model in named:
        return named[model]
    if entry is None:
        raise UnknownPrice(model)
    return entry.price


def _parse(given: str) -> tuple[str, Price]:
    """(model, price). Without the last two figures, reading from a cache costs as much as input, and writing to it WRITE times as much."""
    model, _, figures = given.rpartition("=")
    try:
        values = [float(each) for each in figures.split("/")]
    except ValueError:
        values = []
    if not model or len(values) not in (2, 4) or not all(0 <= v < math.inf for v in values):
        raise ValueError(
            f"--price {given}: expected MODEL=IN/OUT or MODEL=IN/OUT/READ/WRITE in USD per million tokens, as in my-model=0.5/2"
        )
    read, write = values[2:] or (values[0], WRITE * values[0])
    return model, Price(values[0], values[1], read, write)
