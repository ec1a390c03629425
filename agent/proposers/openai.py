"""The proposer that researches with any model behind chat completions: OpenAI, DeepSeek, aggregators, vLLM, Ollama (--base-url).

Plain HTTP, since what the endpoints have in common is the wire and not a library. It accepts servers that do not tell their usage (it is
then estimated, and the run says so), that do not number tool calls, or that answer in one piece instead of a stream.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from agent import prices
from agent.lab import Unusable
from agent.proposers import Workshop
from agent.records import Usage
from agent.research import chat_wire, wire
from agent.research.messages import (
    ModelUnusable,
    Prompt,
    Rejected,
    Reply,
    Tool,
    Transient,
    User,
)

if TYPE_CHECKING:
    from agent.research.researcher import Researcher

NAME = "openai"
OPENAI = "https://api.openai.com/v1"
DEFAULT_MODEL = "gpt-6-sol"  # at OpenAI; elsewhere the one model that an endpoint has
KEY = "OPENAI_API_KEY"
# Without a byte: a local server reads a long prompt for minutes before its first word.
SILENCE_S = 600.0
BROKEN_OFF = 5  # answers in a row that may end in an error without a status
# How endpoints name the most tokens that a model takes: in their lists, and when they refuse more.
WINDOWS = ("max_model_len", "context_length", "context_window")
TOO_LONG = re.compile(r"context (?:length|size|window)\D{0,40}(\d[\d,]{3,})", re.I)
TRY = Prompt(
    (),
    (Tool("yes", "Say yes.", {"type": "object", "properties": {}, "additionalProperties": False}),),
    (User("Call the tool."),),
)
# How they refuse a longer answer than the model gives: at most 4096; <= 12288; the range [1, 8192].
TOO_MUCH = re.compile(
    r"max_(?:completion_)?tokens.*?(?:at most|less than or equal to|<=|\[\d+,)\D{0,4}(\d[\d,]*)",
    re.I,
)


def create(workshop: Workshop) -> Researcher:
    """A researcher with the models that were asked for, or the default one. Raises agent.lab.Unusable."""
    from agent.research.researcher import Researcher

    settings, url = workshop.settings, workshop.settings.base_url or OPENAI
    names = settings.models or (DEFAULT_MODEL if url == OPENAI else only_model(url),)
    prices.tell_unlisted(names, workshop.screen.say)
    models = [ChatModel(name, url, stop=workshop.stop, say=workshop.screen.say) for name in names]
    return Researcher(NAME, workshop, models)


def _status(chunk: Mapping[str, Any]) -> int:
    """The status that an error inside an answer of status 200 gives as its own; 200 if it gives none."""
    error = chunk.get("error")
    code = error.get("code") if isinstance(error, Mapping) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 200


def only_model(url: str) -> str:
    """The one model of an endpoint. Raises Unusable if it has none or several, which the message names."""
    model = ChatModel("", url)
    names = model.names()
    if not names:
        try:
            model.reach()
        except ModelUnusable as error:
            raise Unusable(str(error)) from None
    if len(names) != 1:
        listed = ", ".join(names[: wire.LISTED]) or "no model that it would list"
        raise Unusable(f"{url} has {listed}: choose one with --model")
    return names[0]


class ChatModel:
    """One model behind chat completions at `base_url` (which mostly ends in /v1); `key` is by default OPENAI_API_KEY.

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

        key = wire.key_of(key, KEY)
        traits = prices.traits_of(name)
        self.name, self.window, self.max_output = name, traits.window, traits.max_output
        self._url, self._request = base_url.rstrip("/"), traits.request
        # OpenAI's reasoning models take only the newer name; other servers may know only the older one.
        openai = urlsplit(base_url).hostname == urlsplit(OPENAI).hostname
        self._limit = "max_completion_tokens" if openai else "max_tokens"
        self._stop, self._say = stop or threading.Event(), say
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx2.Timeout(silence_s, connect=wire.CONNECT_S),
            follow_redirects=True,
        )
        self._endpoint = wire.Endpoint(self._url, name, KEY, self._key)
        self._gauge = wire.Gauge()
        self._told = True  # whether the server tells what it used
        self._doubted = False  # whether it was said that the server cuts prompts
        self._broken_off = 0  # answers in a row that ended in an error without a status

    def _key(self) -> str:
        return str(self._client.headers["Authorization"]).removeprefix("Bearer ")

    def check(self) -> None:
        """Have the model call a tool within 16 tokens: no listing shows that a key, a model and its tools work together."""
        import httpx2

        try:
            answered = False
            for chunk in self._stream(self._body(TRY, 16)):
                if chunk.get("error"):
                    status = _status(chunk)
                    if status == 200:
                        raise ModelUnusable(
                            f"{self._url}: {self._endpoint.clean(wire.words(chunk))}"
                        )
                    raise self._endpoint.failed(status, chunk, {})
                answered = answered or "choices" in chunk
            if not answered:
                raise ModelUnusable(
                    f"{self._url} answers, but not as a chat endpoint: is --base-url right? Most end in /v1"
                )
            for window in self._windows():
                self._narrow(window)
        except httpx2.RequestError as error:
            raise ModelUnusable(f"no answer from {self._endpoint.broken(error)}") from None
        except (ModelUnusable, Rejected) as error:
            names = [] if (listed := self.names()) and self.name in listed else listed
            offer = f"; it has {', '.join(names[: wire.LISTED])}" if names else ""
            raise ModelUnusable(f"{error}{offer}") from None
        except Transient:
            return  # who is busy is there

    def reach(self) -> None:
        """Raises ModelUnusable if nobody answers at the endpoint, or if it wants another key."""
        import httpx2

        try:
            found = self._client.get(f"{self._url}/models")
        except httpx2.RequestError as error:
            raise ModelUnusable(f"no answer from {self._endpoint.broken(error)}") from None
        if found.status_code == 401:
            raise self._endpoint.failed(401, found.text, found.headers)

    def names(self) -> list[str]:
        """The models that the endpoint lists; none where it lists none."""
        return [str(row["id"]) for row in self._rows()]

    def _rows(self) -> list[Mapping[str, Any]]:
        import httpx2

        try:
            rows = self._client.get(f"{self._url}/models").json()["data"]
            return [row for row in rows if isinstance(row, Mapping) and "id" in row]
        except (httpx2.RequestError, ValueError, KeyError, TypeError):
            return []

    def _windows(self) -> list[int]:
        """The most tokens that this model takes, as far as the endpoint lists it."""
        told = [row.get(k) for row in self._rows() if row["id"] == self.name for k in WINDOWS]
        return [window for window in told if isinstance(window, int)]

    def _narrow(self, window: int) -> None:
        """Take no more tokens from now on than the endpoint says that there may be."""
        if 0 < window < self.window:
            self.window = window
            self._say(f"{self.name} takes {window:,} tokens, as {self._url} says")

    def _shorten(self, most: int) -> None:
        """Ask for no longer answers from now on than the endpoint says that there may be."""
        if 0 < most < self.max_output:
            self.max_output = most
            self._say(f"{self.name} answers in at most {most:,} tokens, as {self._url} says")

    def count(self, prompt: Prompt) -> int:
        """Estimated from the prompts that were billed; until then from bytes."""
        return self._gauge.tokens(wire.size(self._body(prompt, self.max_output)))

    def reply(self, prompt: Prompt, max_output: int) -> Reply:
        import httpx2

        body = self._body(prompt, max_output)
        answer = chat_wire.Answer()
        try:
            for chunk in self._stream(body):
                self._take(answer, chunk, body)
                if chunk.get("error"):
                    raise self._failed(chunk, self._billed(answer, body))
                if self._stop.is_set():
                    billed = self._billed(answer, body)
                    raise Transient("the run was stopped during an answer", billed=billed)
        except httpx2.RequestError as error:
            raise self._endpoint.broken(error, self._billed(answer, body)) from None
        except Rejected as refused:
            if found := TOO_LONG.search(str(refused)):
                self._narrow(int(found[1].replace(",", "")))
            elif found := TOO_MUCH.search(str(refused)):
                self._shorten(int(found[1].replace(",", "")))
            raise
        self._broken_off = 0
        if answer.usage is None and self._told:
            self._told = False
            self._say(f"{self.name} does not tell what it uses: its tokens are estimated")
        return answer.reply(self._usage(answer, body))

    def _stream(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks of an answer; {} for its end. A server that does not stream sends one."""
        with self._client.stream("POST", f"{self._url}/chat/completions", json=body) as response:
            if not response.is_success:
                raise self._endpoint.failed(response.status_code, response.read(), response.headers)
            if "event-stream" not in response.headers.get("content-type", ""):
                yield self._chunk(response.read().decode(errors="replace"))
                return
            for line in response.iter_lines():
                if line.startswith("data:"):
                    data = line.removeprefix("data:").strip()
                    yield {} if data == "[DONE]" else self._chunk(data)

    def _failed(self, chunk: Mapping[str, Any], billed: Usage | None) -> Exception:
        """What to raise for an error inside an answer. One without a status may be transient, but not after BROKEN_OFF in a row."""
        status = _status(chunk)
        self._broken_off += status == 200
        if status == 200 and self._broken_off > BROKEN_OFF:
            return Rejected(
                f"{self._broken_off} times in a row: {self._endpoint.clean(wire.words(chunk))}",
                billed,
            )
        return self._endpoint.failed(status, chunk, {}, billed)

    def _take(
        self, answer: chat_wire.Answer, chunk: Mapping[str, Any], body: Mapping[str, Any]
    ) -> None:
        try:
            answer.take(chunk)
        except (AttributeError, KeyError, TypeError) as error:
            shape = self._endpoint.clean(
                f"{self._url} sent a chunk of another shape ({error}): {chunk}"
            )
            raise self._failed({"error": shape}, self._usage(answer, body)) from None

    def _chunk(self, text: str) -> dict[str, Any]:
        chunk, problem = wire.read(text)
        return {"error": f"a chunk that is {problem}"} if chunk is None else dict(chunk)

    def _billed(self, answer: chat_wire.Answer, body: Mapping[str, Any]) -> Usage | None:
        """What an answer that broke off will be billed for; None if it had not begun."""
        return self._usage(answer, body) if answer.began else None

    def _usage(self, answer: chat_wire.Answer, body: Mapping[str, Any]) -> Usage:
        """What the server says it used, or an estimate."""
        size = wire.size(body)
        if answer.usage is None:
            return Usage(self._gauge.tokens(size), self._gauge.tokens(answer.bytes))
        usage = chat_wire.used(answer.usage)
        read = usage.prompt
        if wire.is_cut(size, read):
            self._doubt(size, read)
        else:
            self._gauge.learn(size, read)
        return usage

    def _doubt(self, size: int, tokens: int) -> None:
        """Say once that the server has not read the whole of a prompt; its answer does not tell."""
        if not self._doubted:
            self._doubted = True
            self._say(
                f"{self.name} has read {tokens:,} tokens of a prompt of {size:,} bytes: {self._url} cuts what is longer than its context; "
                "give it 64,000 tokens or more (Ollama: OLLAMA_CONTEXT_LENGTH=64000 ollama serve)"
            )

    def _body(self, prompt: Prompt, max_output: int) -> dict[str, Any]:
        return {
            "model": self.name,
            "stream": True,
            "stream_options": {"include_usage": True},
            self._limit: max_output,
            **self._request,
            **chat_wire.body(prompt),
        }
