"""The proposer that researches with any model behind chat completions: OpenAI, DeepSeek, aggregators, vLLM, Ollama (--base-url).

Plain HTTP, since what the endpoints have in common is the wire and not a library. It is lenient with servers that tell no usage (then
estimated, and said so), number no tool calls, or answer whole instead of in a stream.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from agent import prices
from agent.lab import Unusable
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
    Rejected,
    Reply,
    Results,
    Tool,
    ToolCall,
    Transient,
    Turn,
    Usage,
    User,
)

if TYPE_CHECKING:
    from agent.research.researcher import Researcher

NAME = "openai"
OPENAI = "https://api.openai.com/v1"
DEFAULT_MODEL = "gpt-6-sol"  # at OpenAI; elsewhere the one model that an endpoint has
KEY = "OPENAI_API_KEY"
SILENCE_S = (
    600.0  # without a byte: a local server reads a long prompt for minutes before its first word
)
CONNECT_S = 10.0
LISTED = 12  # models that a message names
STOPS = {
    "stop": END,
    "tool_calls": TOOLS,
    "function_call": TOOLS,
    "length": MAX_TOKENS,
    "content_filter": REFUSAL,
}
THOUGHTS = ("reasoning_content", "reasoning")  # which some servers want back with the calls
TRY = Prompt(
    (),
    (Tool("yes", "Say yes.", {"type": "object", "properties": {}, "additionalProperties": False}),),
    (User("Call the tool."),),
)


def create(workshop: Workshop) -> Researcher:
    """A researcher with the models that were asked for, or the default one. Raises agent.lab.Unusable."""
    from agent.research.researcher import Researcher

    settings, url = workshop.settings, workshop.settings.base_url or OPENAI
    names = settings.models or (DEFAULT_MODEL if url == OPENAI else only_model(url),)
    models = [ChatModel(name, url, stop=workshop.stop, say=workshop.screen.say) for name in names]
    return Researcher(NAME, workshop, models)


def only_model(url: str) -> str:
    """The one model of an endpoint; raises Unusable, with their names, where it has none or several."""
    names = ChatModel("", url).names()
    if len(names) != 1:
        listed = ", ".join(names[:LISTED]) or "no model that it would list"
        raise Unusable(f"{url} has {listed}: choose one with --model")
    return names[0]


class ChatModel:
    """One model behind chat completions at `base_url` (which ends in /v1 as a rule); `key` is by default OPENAI_API_KEY.

    Once `stop` is set, an answer under way is given up. `say` gets a line if the server does not tell what it used.
    """

    def __init__(
        self,
        name: str,
        base_url: str = OPENAI,
        key: str | None = None,
        stop: threading.Event | None = None,
        say: Callable[[str], None] = lambda text: None,
        silence_s: float = SILENCE_S,
    ) -> None:
        import httpx2

        key = key or os.environ.get(KEY) or wire.NO_KEY
        traits = prices.traits_of(name)
        self.name, self.window, self.max_output = name, traits.window, traits.max_output
        self._url, self._request = base_url.rstrip("/"), traits.request
        # OpenAI's models that reason take the newer word alone; other servers may know the older one alone.
        openai = urlsplit(base_url).hostname == urlsplit(OPENAI).hostname
        self._limit = "max_completion_tokens" if openai else "max_tokens"
        self._stop, self._say = stop or threading.Event(), say
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx2.Timeout(silence_s, connect=CONNECT_S),
            follow_redirects=True,
        )
        self._line = wire.Line(self._url, name, KEY, self._key)
        self._gauge = wire.Gauge()
        self._told = True  # whether the server tells what it used

    def _key(self) -> str:
        return str(self._client.headers["Authorization"]).removeprefix("Bearer ")

    def check(self) -> None:
        """Have the model call a tool in 16 tokens: no listing shows that a key, a model and its tools work together."""
        import httpx2

        try:
            for _ in self._stream(self._body(TRY, 16)):
                pass
        except httpx2.TransportError as error:
            raise ModelUnusable(f"no answer from {self._line.broken(error)}") from None
        except (ModelUnusable, Rejected) as error:
            names = [] if (listed := self.names()) and self.name in listed else listed
            offer = f"; it has {', '.join(names[:LISTED])}" if names else ""
            raise ModelUnusable(f"{error}{offer}") from None
        except Transient:
            return  # who is busy is there

    def names(self) -> list[str]:
        """The models that the endpoint lists; none where it lists none."""
        import httpx2

        try:
            answer = self._client.get(f"{self._url}/models")
            return [str(model["id"]) for model in answer.json()["data"]]
        except (httpx2.TransportError, ValueError, KeyError, TypeError):
            return []

    def count(self, prompt: Prompt) -> int:
        """Estimated from the prompts that were billed; until then from bytes."""
        return self._gauge.tokens(wire.size(self._body(prompt, self.max_output)))

    def reply(self, prompt: Prompt, max_output: int) -> Reply:
        import httpx2

        body = self._body(prompt, max_output)
        heard = _Heard()
        try:
            for chunk in self._stream(body):
                heard.take(chunk)
                if chunk.get("error"):
                    raise self._line.failed(200, chunk, {}, self._billed(heard, body))
                if self._stop.is_set():
                    billed = self._billed(heard, body)
                    raise Transient("the run was stopped in an answer", billed=billed)
        except httpx2.TransportError as error:
            raise self._line.broken(error, self._billed(heard, body)) from None
        if heard.usage is None and self._told:
            self._told = False
            self._say(f"{self.name} does not tell what it uses: its tokens are estimated")
        return heard.reply(self._usage(heard, body))

    def _stream(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks of an answer; {} for its end. A server that does not stream sends one."""
        with self._client.stream("POST", f"{self._url}/chat/completions", json=body) as answer:
            if not answer.is_success:
                raise self._line.failed(answer.status_code, answer.read(), answer.headers)
            if "event-stream" not in answer.headers.get("content-type", ""):
                yield self._chunk(answer.read().decode(errors="replace"))
                return
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    data = line.removeprefix("data:").strip()
                    yield {} if data == "[DONE]" else self._chunk(data)

    def _chunk(self, text: str) -> dict[str, Any]:
        chunk, problem = wire.arguments(text)
        return {"error": f"a chunk that is {problem}"} if chunk is None else dict(chunk)

    def _billed(self, heard: _Heard, body: Mapping[str, Any]) -> Usage | None:
        """What an answer that broke off will be billed for; None if it had not begun."""
        return self._usage(heard, body) if heard.began else None

    def _usage(self, heard: _Heard, body: Mapping[str, Any]) -> Usage:
        """What the server says it used, or an estimate."""
        prompt = wire.size(body)
        if heard.usage is None:
            return Usage(self._gauge.tokens(prompt), self._gauge.tokens(heard.bytes))
        told = heard.usage
        details = told.get("prompt_tokens_details") or {}
        total = int(told.get("prompt_tokens") or 0)
        read = int(details.get("cached_tokens") or told.get("prompt_cache_hit_tokens") or 0)
        written = int(details.get("cache_write_tokens") or 0)
        self._gauge.learn(prompt, total)
        rest = max(0, total - read - written)
        return Usage(rest, int(told.get("completion_tokens") or 0), read, written)

    def _body(self, prompt: Prompt, max_output: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.name,
            "messages": _messages(prompt),
            "stream": True,
            "stream_options": {"include_usage": True},
            self._limit: max_output,
            **self._request,
        }
        if prompt.tools:
            body["tools"] = [
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
        return body


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    system = "\n\n".join(prompt.system)
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for turn in prompt.turns:
        messages.extend(_turn(turn))
    return messages


def _turn(turn: Turn) -> list[dict[str, Any]]:
    if isinstance(turn, User):
        return [{"role": "user", "content": turn.text}]
    if isinstance(turn, Results):
        note = [{"role": "user", "content": turn.note}] if turn.note else []
        return [*map(_result, turn.results), *note]
    return [dict(turn.raw) if turn.raw is not None else _assistant(turn.text, turn.calls)]


def _result(result: Any) -> dict[str, Any]:
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


class _Heard:
    """What has come of an answer so far."""

    def __init__(self) -> None:
        self.usage: Mapping[str, Any] | None = None
        self.began = self.done = False  # by its first choice; by its stop or its [DONE]
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
        text = delta.get("content") or ""
        self._text += text
        self._refused = self._refused or bool(delta.get("refusal"))
        self.bytes += len(text.encode())
        for name in THOUGHTS:
            if thought := delta.get(name):
                self._thoughts[name] = self._thoughts.get(name, "") + thought
                self.bytes += len(thought.encode())
        for part in delta.get("tool_calls") or ():
            self._part(part)

    def _part(self, part: Mapping[str, Any]) -> None:
        """A call, or more of one: of the last with its index, or of the last of all where there is none; a new id is a new call."""
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
        self.bytes += len((function.get("name") or "").encode()) + len(given.encode())

    def reply(self, usage: Usage) -> Reply:
        calls = tuple(
            ToolCall(
                call["id"] or f"call_{number}", call["name"], *wire.arguments(call["arguments"])
            )
            for number, call in enumerate(self._calls)
        )
        stop = STOPS.get(self._stop or "", END) if self.done else CUT
        if self._refused:
            stop = REFUSAL
        elif calls and stop == END:
            stop = TOOLS
        raw = _assistant(self._text, calls) | self._thoughts
        return Reply(self._text, calls, usage, stop, raw)
