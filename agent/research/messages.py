"""A conversation with a model, in the form of no particular provider.

A session builds `Prompt`s and reads `Reply`s; a provider (agent/proposers/anthropic.py, openai.py) is a `Model` that carries them over
its wire. A conversation only grows at its end, so that what a provider has cached of it stays valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from agent.records import Usage

# Why a reply ended: the model was done, wants its tools, ran out of tokens, declined, or its stream broke off in the middle.
END, TOOLS, MAX_TOKENS, REFUSAL, CUT = "end", "tools", "max_tokens", "refusal", "cut"


@dataclass(frozen=True)
class Tool:
    """A function the model may call; `schema` is the JSON schema of its arguments, additionalProperties false."""

    name: str
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class ToolCall:
    """What the model calls; `arguments` are None if they are no JSON object, and `problem` says what is wrong."""

    id: str
    name: str
    arguments: Mapping[str, Any] | None
    problem: str = ""


@dataclass(frozen=True)
class ToolResult:
    """The answer to the call of the same id."""

    id: str
    text: str
    is_error: bool = False


@dataclass(frozen=True)
class Reply:
    """A model's turn; `stop` is one of END, TOOLS, MAX_TOKENS, REFUSAL, CUT.

    `raw` is the provider's own content (thinking blocks with their signatures), which goes back as it came.
    """

    text: str
    calls: tuple[ToolCall, ...]
    usage: Usage
    stop: str
    raw: Any = None


@dataclass(frozen=True)
class User:
    """What the lab says to the model."""

    text: str


@dataclass(frozen=True)
class Results:
    """The answers to all calls of the reply before, and what else the lab has to say."""

    results: tuple[ToolResult, ...]
    note: str = ""


Turn = User | Reply | Results


@dataclass(frozen=True)
class Prompt:
    """A whole request; `system` are the stable blocks, cached up to the last."""

    system: tuple[str, ...]
    tools: tuple[Tool, ...]
    turns: tuple[Turn, ...]


class Model(Protocol):
    """An LLM behind some wire. `window` and `max_output` are tokens."""

    name: str
    window: int
    max_output: int

    def check(self) -> None:
        """One cheap request; raises ModelUnusable with one clear line: a wrong key, a wrong model, a dead endpoint."""
        ...

    def count(self, prompt: Prompt) -> int:
        """Tokens of the prompt, never more than 5 % too few; may ask the server."""
        ...

    def reply(self, prompt: Prompt, max_output: int) -> Reply:
        """The model's next turn, at most `max_output` tokens; raises Transient or Rejected."""
        ...


class Transient(Exception):
    """The request may be sent again: 429, 529, 5xx, time-outs, cut streams, no connection.

    `retry_after`: seconds the server asked for. `billed`: what was nevertheless used; None where nothing was. `unknown`: the request was
    taken and never answered, so that nobody knows what was used.
    """

    def __init__(
        self,
        message: str,
        retry_after: float | None = None,
        billed: Usage | None = None,
        *,
        unknown: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after, self.billed, self.unknown = retry_after, billed, unknown


class Rejected(Exception):
    """The request itself is wrong (400, 413, 422): sending it again would not help. `billed`: what was nevertheless used."""

    def __init__(self, message: str, billed: Usage | None = None) -> None:
        super().__init__(message)
        self.billed = billed


class ModelUnusable(Exception):
    """No request to this model can succeed; the message is one line that says what to change."""
