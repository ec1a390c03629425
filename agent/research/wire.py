"""What the providers' wires share: how a request fails, arguments that may be malformed, and tokens that no server counted."""

from __future__ import annotations

import email.utils
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from agent.records import Usage
from agent.research.messages import ModelUnusable, Rejected, Transient

CONNECT_S = 10.0
LISTED = 12  # models that a message names at most
NO_KEY = "no-key"  # what a server that asks for none is sent
MAX_SAID = 300  # characters of a server's own words
# Statuses that are waited out, besides 5xx: they pass, or a person sees to them while the run waits.
BUSY = (402, 408, 409, 425, 429)
NO_CREDIT = "credit balance"  # Anthropic's words for 402, in an answer of status 400
# llama.cpp's words, in an answer of status 500, for a request that no waiting mends.
LASTING = ("--jinja", "unsupported param", "available context size")
BYTES_PER_TOKEN = 2.0  # at the least, in code and figures; prose has 4
# Of a long prompt; a server that counts fewer tokens has not read all of it.
MOST_BYTES_PER_TOKEN = 8.0
MEASURED = 8  # the last prompts that the rate of tokens is taken from
LEAST_MEASURED = 4_000  # bytes; in a shorter prompt what the server adds on its own weighs too much
ABOVE = 1.05  # what is estimated / what was measured


class Endpoint:
    """How requests to `url` fail, in one line that never holds the key. `secret` gives the key, from the client that has it."""

    def __init__(self, url: str, model: str, key_name: str, secret: Callable[[], str]) -> None:
        self.url, self._model, self._key_name, self._secret = url, model, key_name, secret

    def failed(
        self, status: int, body: Any, headers: Mapping[str, str], billed: Usage | None = None
    ) -> Transient | Rejected | ModelUnusable:
        """What to raise for an answer with this status. A stream that ends in an error has status 200."""
        said = self.clean(words(body))
        if status == 401:
            wants = "asks for a key" if self._secret() == NO_KEY else "does not accept the key"
            return ModelUnusable(f"{self.url} {wants} (401: {said}): set {self._key_name}")
        if status == 403:
            return ModelUnusable(
                f"{self.url} does not let this key use {self._model} (403: {said}): choose another with --model, or set {self._key_name} "
                "to a key that may"
            )
        if status == 404:
            return ModelUnusable(
                f"{self.url} has no {self._model} (404: {said}); choose a model with --model"
            )
        lasting = status == 500 and any(each in said.lower() for each in LASTING)
        passing = status < 400 or status in BUSY or status >= 500 or NO_CREDIT in said.lower()
        if passing and not lasting:
            return Transient(f"{self._model}: {status}, {said}", retry_after(headers), billed)
        return Rejected(f"{status}: {said}", billed)

    def broken(self, error: Exception, billed: Usage | None = None) -> Transient:
        """What to raise when the connection could not be made, timed out or broke."""
        reason = _causes(error)[-1]
        said = f"{self.url}: {self.clean(str(reason) or type(reason).__name__)}"
        return Transient(said, billed=billed, unknown=billed is None and _unanswered(error))

    def clean(self, text: str) -> str:
        """The text on one line, cut, without the key."""
        secret = self._secret()
        if secret != NO_KEY:
            text = text.replace(secret, "[key]")
        text = " ".join(whole(text).split())
        return text if len(text) <= MAX_SAID else f"{text[:MAX_SAID]} ..."


def key_of(given: str | None, name: str) -> str:
    """The key that was given, or the environment variable of this name, without a line end that a file may have left on it."""
    return (given or os.environ.get(name) or "").strip() or NO_KEY


def words(body: Any) -> str:
    """What an error's body says: {"error": {"message": ...}} as most servers put it, or whatever there is."""
    if isinstance(body, (str, bytes)):
        text = body.decode(errors="replace") if isinstance(body, bytes) else body
        try:
            body = json.loads(text)
        except ValueError:
            return text.strip() or "no reason given"
    for name in ("error", "message", "detail"):
        if isinstance(body, Mapping) and body.get(name):
            body = body[name]
    return body if isinstance(body, str) else json.dumps(body, default=str)


def _causes(error: BaseException) -> list[BaseException]:
    """The error and its causes; the last one names the reason: `[Errno 111] Connection refused`."""
    return [error, *(_causes(error.__cause__) if error.__cause__ is not None else [])]


def _unanswered(error: BaseException) -> bool:
    """Whether a request went out whole and the server stayed silent: it may have worked on it, and bill that."""
    import httpx2

    return any(isinstance(cause, httpx2.ReadTimeout) for cause in _causes(error))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, in any of the three forms in use; None if it asks for none."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if seconds >= 0 and math.isfinite(seconds):
            return seconds
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else None


def whole(text: str) -> str:
    """The text with the halves of surrogate pairs put together; a half alone, which cannot be encoded, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def arguments(text: str) -> tuple[Mapping[str, Any] | None, str]:
    """(the arguments of a tool call, ""), or (None, what is wrong with them). An empty text stands for no arguments."""
    text = whole(text)
    value, problem = read(text)
    try:
        size(value)
    except UnicodeEncodeError:
        return None, f"half of a surrogate pair is no character: {text[:200]}"
    return value, problem


def read(text: str) -> tuple[Mapping[str, Any] | None, str]:
    """(the JSON object that the text is, ""), or (None, what is wrong with it)."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        return None, f"not JSON ({error}): {text[:200]}"
    if not isinstance(value, dict):
        return None, f"expected a JSON object, got {text[:200]}"
    return value, ""


class Gauge:
    """Estimates tokens that no server counted, from bytes: rather too many than too few.

    The rate is the highest of the last prompts whose tokens the server told; until there is one, it is that of dense code.
    """

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=MEASURED)  # tokens per byte

    def learn(self, size: int, tokens: int) -> None:
        """A prompt of `size` bytes had so many tokens."""
        if size >= LEAST_MEASURED and tokens > 0:
            self._rates.append(ABOVE * tokens / size)

    def tokens(self, size: int) -> int:
        return math.ceil(size * max(self._rates, default=1 / BYTES_PER_TOKEN))


def is_cut(size: int, tokens: int) -> bool:
    """Whether a server that counts these tokens cannot have read a prompt of `size` bytes to its end."""
    return size >= LEAST_MEASURED and 0 < tokens * MOST_BYTES_PER_TOKEN < size


def length(text: str) -> int:
    """Bytes of a piece of an answer, which may end in the middle of a character."""
    return len(text.encode(errors="replace"))


def size(body: Any) -> int:
    """Bytes of a request or a part of one."""
    return len(json.dumps(body, ensure_ascii=False).encode())
