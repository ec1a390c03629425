"""The proposer that researches with Claude, through the official SDK of the Messages API.

Answers are streamed, so that a slow one is seen to live: what times out is a silence, never a long answer. The system blocks and the
conversation up to its last turn are cached. The SDK retries nothing itself: agent.research.patience waits, for as long as it takes.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agent import prices
from agent.proposers import Workshop
from agent.research import wire
from agent.research.messages import (
    CUT,
    END,
    MAX_TOKENS,
    REFUSAL,
    TOOLS,
    ModelUnusable,
    Prompt,
    Reply,
    Results,
    ToolCall,
    Transient,
    Turn,
    Usage,
)

if TYPE_CHECKING:
    from anthropic.types import Message

    from agent.research.researcher import Researcher

NAME = "anthropic"
DEFAULT_MODEL = "claude-opus-5-5"
KEY = "ANTHROPIC_API_KEY"
SILENCE_S = 300.0  # without a byte, pings included, after which a request is sent again
CONNECT_S = 10.0
CACHED: dict[str, Any] = {"cache_control": {"type": "ephemeral"}}
STOPS = {
    "end_turn": END,
    "stop_sequence": END,
    "tool_use": TOOLS,
    "max_tokens": MAX_TOKENS,
    "model_context_window_exceeded": MAX_TOKENS,
    "refusal": REFUSAL,
}


def create(workshop: Workshop) -> Researcher:
    """A researcher with the models that were asked for, or DEFAULT_MODEL. Raises agent.lab.Unusable."""
    from agent.research.researcher import Researcher

    names, url = workshop.settings.models or (DEFAULT_MODEL,), workshop.settings.base_url
    models = [MessagesModel(name, url, stop=workshop.stop) for name in names]
    return Researcher(NAME, workshop, models)


class MessagesModel:
    """One model behind the Messages API at `base_url`, by default Anthropic's own; `key` is by default ANTHROPIC_API_KEY.

    Once `stop` is set, an answer under way is given up.
    """

    def __init__(
        self,
        name: str,
        base_url: str | None = None,
        key: str | None = None,
        stop: threading.Event | None = None,
        silence_s: float = SILENCE_S,
    ) -> None:
        import anthropic
        import httpx2

        key = key or os.environ.get(KEY) or wire.NO_KEY
        traits = prices.traits_of(name)
        self.name, self.window, self.max_output = name, traits.window, traits.max_output
        self._request = traits.request
        self._stop = stop or threading.Event()
        self._client = anthropic.Anthropic(
            api_key=key,
            base_url=base_url,
            max_retries=0,
            timeout=httpx2.Timeout(silence_s, connect=CONNECT_S),
            # Compatible servers know the key by this header; Anthropic's own takes the SDK's.
            default_headers={"x-api-key": key} if base_url else None,
        )
        url = str(self._client.base_url).rstrip("/")
        self._line = wire.Line(url, name, KEY, lambda: str(self._client.api_key))
        self._gauge = wire.Gauge()
        self._counts = True  # whether the server counts tokens

    def check(self) -> None:
        """Ask for the model, which costs nothing; where a server does not list its models, ask it for a word."""
        import anthropic

        try:
            self._client.models.retrieve(self.name)
        except anthropic.NotFoundError:
            if names := self._names():
                raise ModelUnusable(
                    f"{self._line.url} has no {self.name}: choose one with --model, as {', '.join(names)}"
                ) from None
            self._ask_for_a_word()
        except anthropic.APIConnectionError as error:
            raise ModelUnusable(f"no answer from {self._line.broken(error)}") from None
        except anthropic.APIStatusError as error:
            failure = self._failed(error)
            if not isinstance(failure, Transient):  # who is busy is there
                raise ModelUnusable(str(failure)) from None

    def _names(self) -> list[str]:
        import anthropic

        try:
            return [model.id for model in self._client.models.list(limit=20).data]
        except anthropic.APIStatusError:
            return []

    def _ask_for_a_word(self) -> None:
        import anthropic

        try:
            self._client.messages.create(
                model=self.name, max_tokens=16, messages=[{"role": "user", "content": "Say yes."}]
            )
        except anthropic.APIStatusError as failure:
            if not isinstance(said := self._failed(failure), Transient):
                raise ModelUnusable(str(said)) from None

    def count(self, prompt: Prompt) -> int:
        """As the server counts, or, where it does not, estimated from what it has billed."""
        import anthropic

        body = self._body(prompt)
        if self._counts:
            try:
                return self._client.messages.count_tokens(**body).input_tokens
            except anthropic.NotFoundError:
                self._counts = False
            except anthropic.APIStatusError as error:
                raise self._failed(error) from None
            except anthropic.APIConnectionError as error:
                raise self._line.broken(error) from None
        return self._gauge.tokens(wire.size(body))

    def reply(self, prompt: Prompt, max_output: int) -> Reply:
        import anthropic
        import httpx2

        body = self._body(prompt)
        heard = _Heard(self._gauge)
        malformed = ""
        try:
            with self._client.messages.stream(max_tokens=max_output, **body) as stream:
                for event in stream:
                    if event.type == "message_start":
                        heard.begin(stream.current_message_snapshot)
                    heard.take(event)
                    if self._stop.is_set():
                        raise Transient("the run was stopped in an answer", billed=heard.billed())
        except anthropic.APIStatusError as error:
            raise self._failed(error, heard.billed()) from None
        except (anthropic.APIConnectionError, httpx2.TransportError) as error:
            raise self._line.broken(error, heard.billed()) from None
        except ValueError as error:  # the SDK reads arguments as they come, and these are no JSON
            malformed = self._line.clean(str(error))
        reply = heard.reply(malformed)
        used = reply.usage
        self._gauge.learn(wire.size(body), used.input + used.cache_read + used.cache_write)
        return reply

    def _failed(self, error: Any, billed: Usage | None = None) -> Exception:
        return self._line.failed(error.status_code, error.body, error.response.headers, billed)

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        """A request, but for the length of its answer."""
        body: dict[str, Any] = {
            "model": self.name,
            "messages": _messages(prompt.turns),
            **self._request,
        }
        if prompt.system:
            *blocks, last = ({"type": "text", "text": text} for text in prompt.system)
            body["system"] = [*blocks, last | CACHED]
        if prompt.tools:
            body["tools"] = [
                {"name": t.name, "description": t.description, "input_schema": dict(t.schema)}
                for t in prompt.tools
            ]
        return body


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for turn in turns:
        role = "assistant" if isinstance(turn, Reply) else "user"
        if content := _content(turn):
            messages.append({"role": role, "content": content})
    messages[-1]["content"][-1] |= CACHED
    return messages


def _content(turn: Turn) -> list[dict[str, Any]]:
    """The blocks of a turn, which are new dicts; a reply of this provider goes back as it came."""
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


class _Heard:
    """What has come of an answer so far."""

    def __init__(self, gauge: wire.Gauge) -> None:
        self._gauge = gauge
        self._message: Message | None = None
        self._json: dict[int, str] = {}  # arguments as they were written, by block
        self._bytes = 0

    def begin(self, message: Message) -> None:
        """`message` is what the SDK goes on filling."""
        self._message = message

    def take(self, event: Any) -> None:
        if event.type != "content_block_delta":
            return
        delta = event.delta
        if delta.type == "input_json_delta":
            self._json[event.index] = self._json.get(event.index, "") + delta.partial_json
        for name in ("text", "thinking", "partial_json"):
            self._bytes += len(getattr(delta, name, "").encode())

    def billed(self) -> Usage | None:
        """What an answer that broke off will be billed for; None if it had not begun."""
        return _usage(self._message, self._gauge.tokens(self._bytes)) if self._message else None

    def reply(self, malformed: str) -> Reply:
        """The answer; `malformed` says what is wrong with the arguments that it ended in, if anything is."""
        message = self._message
        if message is None:
            return Reply("", (), Usage(), CUT)
        text = "".join(block.text for block in message.content if block.type == "text")
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
        """With its arguments as they were written, or, where the block came whole, as they are."""
        given, problem = wire.arguments(self._json.get(index) or json.dumps(block.input))
        return ToolCall(block.id, block.name, given, problem)


def _usage(message: Message, output: int) -> Usage:
    """What the server says was used, with at least so many tokens of output."""
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
            blocks.extend(_text(block.text))
        elif block.type == "thinking":
            kept = {"thinking": block.thinking, "signature": block.signature}
            blocks.append({"type": "thinking", **kept})
        elif block.type == "redacted_thinking":
            blocks.append({"type": "redacted_thinking", "data": block.data})
        elif block.type == "tool_use":
            blocks.append(uses[block.id])
    return tuple(blocks)
