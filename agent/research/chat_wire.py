"""Conversations in the form of chat completions, and answers as the many servers of this form stream them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

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
    ToolResult,
    Turn,
    User,
)

STOPS = {
    "stop": END,
    "tool_calls": TOOLS,
    "function_call": TOOLS,
    "length": MAX_TOKENS,
    "content_filter": REFUSAL,
}
THOUGHTS = ("reasoning_content", "reasoning")  # which some servers want back with the calls


def body(prompt: Prompt) -> dict[str, Any]:
    """Messages and tools of a request."""
    written: dict[str, Any] = {"messages": _messages(prompt)}
    if prompt.tools:
        written["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": dict(tool.schema),
                },
            }
            for tool in prompt.tools
        ]
    return written


def used(told: Mapping[str, Any]) -> Usage:
    """What a server says it used; the prompt's tokens include those of the cache."""
    details = told.get("prompt_tokens_details") or {}
    total = int(told.get("prompt_tokens") or 0)
    read = int(details.get("cached_tokens") or told.get("prompt_cache_hit_tokens") or 0)
    written = int(details.get("cache_write_tokens") or 0)
    output = int(told.get("completion_tokens") or 0)
    # xAI and Gemini leave a model's thoughts out of it and bill them: the total has them.
    output = max(output, int(told.get("total_tokens") or 0) - total)
    return Usage(max(0, total - read - written), output, read, written)


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    system = "\n\n".join(prompt.system)
    written: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for turn in prompt.turns:
        written.extend(_turn(turn))
    return written


def _turn(turn: Turn) -> list[dict[str, Any]]:
    if isinstance(turn, User):
        return [{"role": "user", "content": turn.text}]
    if isinstance(turn, Results):
        note = [{"role": "user", "content": turn.note}] if turn.note else []
        return [*map(_result, turn.results), *note]
    return [dict(turn.raw) if turn.raw is not None else _assistant(turn.text, turn.calls)]


def _result(result: ToolResult) -> dict[str, Any]:
    """There is no field for an error, so its text says that it is one."""
    text = f"error: {result.text}" if result.is_error else result.text
    return {"role": "tool", "tool_call_id": result.id, "content": text}


def _assistant(text: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments or {})},
            }
            for call in calls
        ]
    return message


def _text(content: Any) -> str:
    """The text of a content: a string or, with some servers, a list of parts, of which those of type text count."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


class Answer:
    """What has arrived of an answer so far."""

    def __init__(self) -> None:
        self.usage: Mapping[str, Any] | None = None
        self.began = self.done = False  # set by its first choice, and by its stop or its [DONE]
        self.bytes = 0  # of text, thoughts and arguments
        self._stop: str | None = None
        self._text = ""
        self._refused = False
        self._thoughts: dict[str, str] = {}
        self._calls: list[dict[str, Any]] = []  # index, id, name, arguments as they were written

    def take(self, chunk: Mapping[str, Any]) -> None:
        self.done = self.done or not chunk
        self.usage = chunk.get("usage") or self.usage
        for choice in (chunk.get("choices") or [])[:1]:
            self.began = True
            self._delta(choice.get("delta") or choice.get("message") or {})
            if choice.get("finish_reason"):
                self._stop, self.done = choice["finish_reason"], True

    def _delta(self, delta: Mapping[str, Any]) -> None:
        text = _text(delta.get("content") or "")
        self._text += text
        self._refused = self._refused or bool(delta.get("refusal"))
        self.bytes += wire.length(text)
        for name in THOUGHTS:
            if thought := delta.get(name):
                self._thoughts[name] = self._thoughts.get(name, "") + thought
                self.bytes += wire.length(thought)
        for part in delta.get("tool_calls") or ():
            self._part(part)

    def _part(self, part: Mapping[str, Any]) -> None:
        """A call, or a further piece of one: of the last with this index or, without an index, of the last of all. A new id is a new call."""
        function = part.get("function") or {}
        index, id_ = part.get("index"), part.get("id")
        call = next(
            (c for c in reversed(self._calls) if index is None or c["index"] == index), None
        )
        if call is None or (id_ and call["id"] and id_ != call["id"]):
            call = {"index": index, "id": "", "name": "", "arguments": ""}
            self._calls.append(call)
        call["id"] = call["id"] or id_ or ""
        call["name"] = call["name"] or function.get("name") or ""
        given = function.get("arguments") or ""
        given = given if isinstance(given, str) else json.dumps(given)
        call["arguments"] += given
        self.bytes += wire.length((function.get("name") or "") + given)

    def reply(self, usage: Usage) -> Reply:
        calls = tuple(
            ToolCall(
                wire.whole(call["id"]) or f"call_{number}",
                wire.whole(call["name"]),
                *wire.arguments(call["arguments"]),
            )
            for number, call in enumerate(self._calls)
        )
        stop = STOPS.get(self._stop or "", END) if self.done else CUT
        if self._refused:
            stop = REFUSAL
        elif calls and stop == END:
            stop = TOOLS
        text = wire.whole(self._text)
        thoughts = {name: wire.whole(thought) for name, thought in self._thoughts.items()}
        raw = _assistant(text, calls) | thoughts
        return Reply(text, calls, usage, stop, raw)
