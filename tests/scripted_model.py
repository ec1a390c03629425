"""A model that plays a script, in the process: a part like any other, given to the constructor of what asks models.

It is as strict as a server: a prompt whose calls and results do not belong together, or that has an empty message, is an error of the
test. It counts four characters a token and bills what the prompt shares with the one before as read from the cache.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

from agent.records import Usage
from agent.research.messages import (
    END,
    TOOLS,
    ModelUnusable,
    Prompt,
    Reply,
    Results,
    ToolCall,
    User,
)

Move = Reply | Exception | Callable[[Prompt], "Move"]
_ids = itertools.count(1)


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(f"call-{next(_ids)}", name, arguments)


def malformed(name: str, problem: str) -> ToolCall:
    return ToolCall(f"call-{next(_ids)}", name, None, problem)


def calls(*made: ToolCall, text: str = "", stop: str = TOOLS) -> Reply:
    return Reply(text, made, Usage(), stop)


def says(text: str, stop: str = END) -> Reply:
    return Reply(text, (), Usage(), stop)


def texts(prompt: Prompt) -> list[str]:
    """Everything that the model reads, in order."""
    read = [*prompt.system]
    read += [f"{t.name} {t.description} {json.dumps(t.schema)}" for t in prompt.tools]
    for turn in prompt.turns:
        match turn:
            case User(text):
                read.append(text)
            case Reply():
                read.append(turn.text)
                read += [f"{c.name} {json.dumps(c.arguments)}" for c in turn.calls]
            case Results(results, note):
                read += [each.text for each in results]
                read.append(note)
    return read


def last(prompt: Prompt) -> str:
    """What the model was told last."""
    turn = prompt.turns[-1]
    if isinstance(turn, User):
        return turn.text
    assert isinstance(turn, Results)
    return "\n".join([*(each.text for each in turn.results), turn.note]).strip()


def insist(prompt: Prompt) -> None:
    """What the real servers insist on."""
    turns = prompt.turns
    assert isinstance(turns[0], User)
    assert not isinstance(turns[-1], Reply)
    for before, turn in itertools.pairwise((None, *turns)):
        if isinstance(turn, Results):
            assert isinstance(before, Reply)
            assert [r.id for r in turn.results] == [c.id for c in before.calls]
        else:
            assert not (isinstance(before, Reply) and before.calls), "calls without results"
        if isinstance(turn, User):
            assert turn.text.strip()
        if isinstance(turn, Reply):
            assert turn.text.strip() or turn.calls, "an empty message"
            assert all(each.arguments is not None for each in turn.calls)


class Scripted:
    """Plays `moves` one after the other: a reply, an exception to raise, or a function of the prompt that gives one."""

    def __init__(
        self,
        moves: Iterable[Move] = (),
        name: str = "scripted",
        window: int = 200_000,
        max_output: int = 8_000,
        unusable: str = "",
    ) -> None:
        self.name, self.window, self.max_output, self.unusable = name, window, max_output, unusable
        self.moves = iter(moves)
        self.prompts: list[Prompt] = []
        self.rooms: list[int] = []  # max_output of each request

    def check(self) -> None:
        if self.unusable:
            raise ModelUnusable(self.unusable)

    def count(self, prompt: Prompt) -> int:
        return sum(len(text) for text in texts(prompt)) // 4 + 1

    def reply(self, prompt: Prompt, max_output: int) -> Reply:
        insist(prompt)
        assert 0 < max_output <= self.max_output
        assert self.count(prompt) + max_output <= self.window, "sent though it does not fit"
        cached = self._shared(prompt)
        self.prompts.append(prompt)
        self.rooms.append(max_output)
        move = next(self.moves, None)
        assert move is not None, f"the script is at its end; told last: {last(prompt)}"
        while callable(move):
            move = move(prompt)
        if isinstance(move, Exception):
            raise move
        written = len(move.text) + sum(len(json.dumps(c.arguments)) for c in move.calls)
        usage = Usage(self.count(prompt) - cached, written // 4 + 1, cache_read=cached)
        return Reply(move.text, move.calls, usage, move.stop, move.raw)

    def _shared(self, prompt: Prompt) -> int:
        """Tokens at the front that the prompt before had too."""
        if not self.prompts:
            return 0
        pairs = zip(texts(prompt), texts(self.prompts[-1]), strict=False)
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
        return sum(len(text) for text, _ in same) // 4
