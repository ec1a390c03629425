"""Conversations in the form of the Messages API, and answers as it streams them.

Thinking goes back with its signature as it came. Arguments of tools are read from the text that the model wrote, since the SDK takes half
an object for a whole one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agent.records import Usage
from agent.research import wire
from agent.research.messages import (
    CUT,
    END,
    MAX_TOKENS,
    REFUSAL,
    TOOLS,
    Prompt,
    Reply,
    Results,
    ToolCall,
    Turn,
)

if TYPE_CHECKING:
    from anthropic.types import Message

CACHED: dict[str, Any] = {"cache_control": {"type": "ephemeral"}}
STOPS = {
    "end_turn": END,
    "stop_sequence": END,
    "tool_use": TOOLS,
    "max_tokens": MAX_TOKENS,
    "model_context_window_exceeded": MAX_TOKENS,
    "refusal": REFUSAL,
}


def body(prompt: Prompt) -> dict[str, Any]:
    """System, tools and messages of a request, cached up to each of the last two system blocks and the last two turns of ours."""
    written: dict[str, Any] = {"messages": _messages(prompt.turns)}
    if prompt.system:
        written["system"] = [{"type": "text", "text": text} for text in prompt.system]
        # the block before the last too: it stays the same when the incumbent moves
        for block in written["system"][-2:]:
            block.update(CACHED)
    if prompt.tools:
        written["tools"] = [
            {"name": tool.name, "description": tool.description, "input_schema": dict(tool.schema)}
            for tool in prompt.tools
        ]
    return written


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    written: list[dict[str, Any]] = []
    for turn in turns:
        role = "assistant" if isinstance(turn, Reply) else "user"
        if content := _content(turn):
            written.append({"role": role, "content": content})
    # Also where the request before ended: a turn of many calls has more blocks than a provider looks back over.
    for message in [each for each in written if each["role"] == "user"][-2:]:
        message["content"][-1] |= CACHED
    return written


def _content(turn: Turn) -> list[dict[str, Any]]:
    """The blocks of a turn, as new dicts; a reply of this provider goes back as it came."""
    if isinstance(turn, Reply):
        if turn.raw is not None:
            return [dict(block) for block in turn.raw]
        calls = [_tool_use(call) for call in turn.calls]
        return [*_text(turn.text), *calls]
    if not isinstance(turn, Results):
        return _text(turn.text)
    results = [
        {
            "type": "tool_result",
            "tool_use_id": result.id,
            "content": result.text or "(nothing)",
            "is_error": result.is_error,
        }
        for result in turn.results
    ]
    return [*results, *_text(turn.note)]


def _text(text: str) -> list[dict[str, Any]]:
    """A text block; none for blanks, which the API refuses."""
    return [{"type": "text", "text": text}] if text.strip() else []


def _tool_use(call: ToolCall) -> dict[str, Any]:
    given = dict(call.arguments or {})
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": given}


class Answer:
    """What has arrived of an answer so far; `gauge` estimates what an answer that breaks off has used."""

    def __init__(self, gauge: wire.Gauge) -> None:
        self._gauge = gauge
        self._message: Message | None = None
        self._json: dict[int, str] = {}  # arguments as they were written, by block
        self._bytes = 0

    def begin(self, message: Message) -> None:
        """`message` is the object that the SDK goes on filling."""
        self._message = message

    def take(self, event: Any) -> None:
        if event.type != "content_block_delta":
            return
        delta = event.delta
        if delta.type == "input_json_delta":
            self._json[event.index] = self._json.get(event.index, "") + delta.partial_json
        for name in ("text", "thinking", "partial_json"):
            self._bytes += wire.length(getattr(delta, name, ""))

    def billed(self) -> Usage | None:
        """What an answer that broke off will be billed for; None if it had not begun."""
        return _usage(self._message, self._gauge.tokens(self._bytes)) if self._message else None

    def reply(self, malformed: str) -> Reply:
        """The answer; `malformed` says what is wrong with the arguments that it ended in, if anything is."""
        message = self._message
        if message is None:
            return Reply("", (), Usage(), CUT)
        text = wire.whole("".join(b.text for b in message.content if b.type == "text"))
        calls = [
            self._call(index, block)
            for index, block in enumerate(message.content)
            if block.type == "tool_use"
        ]
        stop = STOPS.get(message.stop_reason or "", CUT)
        if calls and malformed:
            calls[-1] = replace(calls[-1], arguments=None, problem=malformed)
        if calls and (malformed or stop == END):
            stop = TOOLS
        at_least = self._gauge.tokens(self._bytes) if message.stop_reason is None else 0
        return Reply(text, tuple(calls), _usage(message, at_least), stop, _raw(message, calls))

    def _call(self, index: int, block: Any) -> ToolCall:
        """A call, with its arguments from the text that the model wrote or, if the block came in one piece, from the block."""
        given, problem = wire.arguments(self._json.get(index) or json.dumps(block.input))
        return ToolCall(block.id, block.name, given, problem)


def _usage(message: Message, output: int) -> Usage:
    """What the server says was used, but at least `output` tokens of output."""
    used = message.usage
    return Usage(
        input=used.input_tokens or 0,
        output=max(used.output_tokens or 0, output),
        cache_read=used.cache_read_input_tokens or 0,
        cache_write=used.cache_creation_input_tokens or 0,
    )


def _raw(message: Message, calls: Sequence[ToolCall]) -> tuple[Mapping[str, Any], ...]:
    """The blocks to send back: thinking has to come back with its signature, blank text must not."""
    uses = {call.id: _tool_use(call) for call in calls}
    blocks: list[Mapping[str, Any]] = []
    for block in message.content:
        if block.type == "text":
            blocks.extend(_text(wire.whole(block.text)))
        elif block.type == "thinking":
            kept = {"thinking": wire.whole(block.thinking), "signature": block.signature}
            blocks.append({"type": "thinking", **kept})
        elif block.type == "redacted_thinking":
            blocks.append({"type": "redacted_thinking", "data": block.data})
        elif block.type == "tool_use":
            blocks.append(uses[block.id])
    return tuple(blocks)
