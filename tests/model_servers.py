"""Two model servers on the loopback, scripted: one speaks the Messages API, one chat completions.

A script is a list of answers, taken in order, or a function of the request's body. `Say` is what a model says, `Fail` what a server
does instead; both servers take both, so one script drives either. They refuse what the real ones refuse (a call without its result,
blank text, an unsigned thought, too many cache marks), and they keep a prompt cache, so that its figures are worked out and not made up.
Any number of them may be open at once.

    with MessagesServer([Say("reading", calls=[("read", {"path": "a"})]), Say("done")]) as server:
        model = MessagesModel("claude-opus-5-5", server.url, key=KEY)
"""

from __future__ import annotations

import http.server
import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KEY = "sk-loopback-0123456789"
BYTES_PER_TOKEN = 4
PIECE = 12  # characters of text or arguments in one event
RESET = "reset"


@dataclass(frozen=True)
class Say:
    """A model's answer; `stop` is the server's own word, by default the one that fits.

    `calls` are (tool, arguments); arguments that are a text are sent as it stands. With `cut_after` events the connection ends as
    `cut` says: as if all were said ("end"), or by a reset. With `fail_after` events an error event follows.
    """

    text: str = ""
    calls: Sequence[tuple[str, Mapping[str, Any] | str]] = ()
    thinking: str = ""
    stop: str | None = None
    output: int | None = None  # tokens; by default from the length
    pause_s: float = 0.0  # before each event
    cut_after: int | None = None
    cut: str = RESET
    fail_after: int | None = None
    fail: str = "overloaded_error"
    tells_usage: bool = True  # chat completions
    streams: bool = True  # chat completions
    numbers_calls: bool = True  # chat completions: whether deltas name the index of their call


@dataclass(frozen=True)
class Fail:
    """An answer with a status of its own."""

    status: int
    message: str = "as the script says"
    headers: Mapping[str, str] = field(default_factory=dict)
    kind: str = "api_error"
    pause_s: float = 0.0


Answer = Say | Fail
Script = Sequence[Answer] | Callable[[dict[str, Any]], Answer]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


class Server:
    """A server on a free port of the loopback while its `with` block runs; `requests` are all that came."""

    def __init__(
        self,
        script: Script = (),
        models: Sequence[str] | None = ("claude-opus-5-5", "gpt-6-sol"),  # None: lists none
        key: str | None = KEY,  # None: asks for none
        counts: bool = True,  # Messages API: whether it counts tokens
    ) -> None:
        self.requests: list[Request] = []
        self.models, self.key, self.counts = models, key, counts
        self._script = script
        self._said = 0
        self._cached: set[str] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Server:
        handler = type("Handler", (_Handler,), {"server_of": self})
        self._http = _Listener(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def url(self) -> str:
        """What a client takes as its base URL."""
        raise NotImplementedError

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Of the requests for an answer."""
        return [request.body for request in self.requests if request.path == self.answers]

    answers = ""  # the path that answers

    def next(self, body: dict[str, Any]) -> Answer:
        with self._lock:
            self._said += 1
            number = self._said
        if callable(self._script):
            return self._script(body)
        if number > len(self._script):
            return Fail(
                500, f"the script has {len(self._script)} answers, this is request {number}"
            )
        return self._script[number - 1]

    def cached(self, marked: Sequence[str]) -> tuple[int, int]:
        """(tokens read, tokens written) of a prompt with these prefixes marked for the cache, shortest first."""
        longest = max(marked, key=len, default="")
        with self._lock:
            known = max((len(each) for each in self._cached if longest.startswith(each)), default=0)
            self._cached.update(marked)
        return known // BYTES_PER_TOKEN, (len(longest) - known) // BYTES_PER_TOKEN

    def get(self, path: str) -> tuple[int, Any]:
        raise NotImplementedError

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any] | Say | Fail:
        raise NotImplementedError

    def events(self, say: Say, body: dict[str, Any]) -> list[tuple[str, Any]]:
        raise NotImplementedError

    def failure(self, fail: Fail) -> Any:
        return {"error": {"type": fail.kind, "message": fail.message}}


class MessagesServer(Server):
    """POST /v1/messages and /v1/messages/count_tokens, GET /v1/models."""

    answers = "/v1/messages"

    @property
    def url(self) -> str:
        return self.root

    def get(self, path: str) -> tuple[int, Any]:
        if self.models is None:
            return 404, self.failure(Fail(404, "no such path", kind="not_found_error"))
        rows = [self._model(name) for name in self.models]
        if path == "/v1/models":
            ends = {"first_id": None, "last_id": None, "has_more": False}
            return 200, {"data": rows, **ends}
        name = path.removeprefix("/v1/models/")
        found = [row for row in rows if row["id"] == name]
        missing = self.failure(Fail(404, f"model: {name}", kind="not_found_error"))
        return (200, found[0]) if found else (404, missing)

    def _model(self, name: str) -> dict[str, Any]:
        row = {"type": "model", "id": name, "display_name": name, "lifecycle": "active"}
        return row | {"created_at": "2026-09-22T00:00:00Z"}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any] | Say | Fail:
        counting = path == "/v1/messages/count_tokens"
        if not counting and path != self.answers or counting and not self.counts:
            return 404, self.failure(Fail(404, "no such path", kind="not_found_error"))
        wrong = _wrong_messages(body, counting)
        if wrong:
            return 400, self.failure(Fail(400, wrong, kind="invalid_request_error"))
        if self.models is not None and body["model"] not in self.models:
            missing = Fail(404, f"model: {body['model']}", kind="not_found_error")
            return 404, self.failure(missing)
        if counting:
            return 200, {"input_tokens": len(_flat(body)) // BYTES_PER_TOKEN}
        return self.next(body)

    def failure(self, fail: Fail) -> Any:
        return {"type": "error", "error": {"type": fail.kind, "message": fail.message}}

    def events(self, say: Say, body: dict[str, Any]) -> list[tuple[str, Any]]:
        usage = self._usage(body)
        message = {
            "id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": usage | {"output_tokens": 1},
        }  # fmt: skip
        if not body.get("stream"):
            message["content"] = [{"type": "text", "text": say.text}]
            return [("", message | {"stop_reason": "end_turn"})]
        events: list[dict[str, Any]] = [{"type": "message_start", "message": message}]
        for index, (block, deltas) in enumerate(self._blocks(say)):
            events.append({"type": "content_block_start", "index": index, "content_block": block})
            events += [
                {"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas
            ]
            events.append({"type": "content_block_stop", "index": index})
        stop = say.stop or ("tool_use" if say.calls else "end_turn")
        delta = {"stop_reason": stop, "stop_sequence": None}
        output = {"output_tokens": _output(say)}
        events.append({"type": "message_delta", "delta": delta, "usage": output})
        events.append({"type": "message_stop"})
        events.insert(1, {"type": "ping"})
        if say.fail_after is not None:
            error = {"type": say.fail, "message": "as the script says"}
            events[say.fail_after :] = [{"type": "error", "error": error}]
        return [(event["type"], event) for event in events]

    def _blocks(self, say: Say) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
        if say.thinking:
            deltas = [
                {"type": "thinking_delta", "thinking": part} for part in _pieces(say.thinking)
            ]
            signed = {"type": "signature_delta", "signature": f"signed:{len(say.thinking)}"}
            empty = {"type": "thinking", "thinking": "", "signature": ""}
            blocks.append((empty, [*deltas, signed]))
        if say.text:
            deltas = [{"type": "text_delta", "text": part} for part in _pieces(say.text)]
            blocks.append(({"type": "text", "text": ""}, deltas))
        for number, (name, given) in enumerate(say.calls):
            start = {"type": "tool_use", "id": self._id(number), "name": name, "input": {}}
            parts = _pieces(given if isinstance(given, str) else json.dumps(given))
            deltas = [{"type": "input_json_delta", "partial_json": part} for part in parts]
            blocks.append((start, deltas))
        return blocks

    def _id(self, number: int) -> str:
        return f"toolu_{self._said}_{number}"

    def _usage(self, body: dict[str, Any]) -> dict[str, int]:
        flat = _flat(body)
        clean = [flat[: match.start()] for match in re.finditer(re.escape(_MARK), flat)]
        read, written = self.cached([each.replace(_MARK, "") for each in clean])
        total = len(flat.replace(_MARK, "")) // BYTES_PER_TOKEN
        rest = max(0, total - read - written)
        return {
            "input_tokens": rest,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": written,
        }


class ChatServer(Server):
    """POST /v1/chat/completions and GET /v1/models."""

    answers = "/v1/chat/completions"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def get(self, path: str) -> tuple[int, Any]:
        if self.models is None or path != "/v1/models":
            return 404, {"detail": "Not Found"}
        return 200, {"object": "list", "data": [{"id": name} for name in self.models]}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any] | Say | Fail:
        if path != self.answers:
            return 404, {"detail": "Not Found"}
        if wrong := _wrong_chat(body):
            return 400, self.failure(Fail(400, wrong, kind="invalid_request_error"))
        if self.models is not None and body["model"] not in self.models:
            missing = Fail(404, f"The model {body['model']} does not exist", kind="not_found")
            return 404, self.failure(missing)
        return self.next(body)

    def events(self, say: Say, body: dict[str, Any]) -> list[tuple[str, Any]]:
        stop = say.stop or ("tool_calls" if say.calls else "stop")
        prefixes = [_chat_flat(body, end) for end in range(1, len(body["messages"]) + 1)]
        read, _ = self.cached(prefixes)
        usage = {
            "prompt_tokens": len(prefixes[-1]) // BYTES_PER_TOKEN,
            "completion_tokens": _output(say),
            "prompt_tokens_details": {"cached_tokens": read},
        }
        told = {"usage": usage} if say.tells_usage else {}
        if not (body.get("stream") and say.streams):
            calls = [
                self._call(n, name, _text_of(given)) for n, (name, given) in enumerate(say.calls)
            ]
            message = {"role": "assistant", "content": say.text or None, "tool_calls": calls}
            return [("", {"choices": [{"message": message, "finish_reason": stop}], **told})]
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"reasoning_content": part} for part in _pieces(say.thinking)]
        deltas += [{"content": part} for part in _pieces(say.text)]
        for number, (name, given) in enumerate(say.calls):
            first, *rest = _pieces(_text_of(given)) or [""]
            parts = [self._call(number, name, first)]
            parts += [{"index": number, "function": {"arguments": part}} for part in rest]
            if not say.numbers_calls:
                parts = [{k: v for k, v in part.items() if k != "index"} for part in parts]
            deltas += [{"tool_calls": [part]} for part in parts]
        chunks = [{"choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": stop}]})
        if told and body.get("stream_options", {}).get("include_usage"):
            chunks.append({"choices": [], **told})
        if say.fail_after is not None:
            chunks[say.fail_after :] = [
                {"error": {"type": say.fail, "message": "as the script says"}}
            ]
        return [*(("", chunk) for chunk in chunks), ("", "[DONE]")]

    def _call(self, number: int, name: str, given: str) -> dict[str, Any]:
        function = {"name": name, "arguments": given}
        id_ = f"call_{self._said}_{number}"
        return {"index": number, "id": id_, "type": "function", "function": function}


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of the server."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: Server

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        self._answer(json.loads(self.rfile.read(length)))

    def _answer(self, body: dict[str, Any]) -> None:
        server, path = self.server_of, self.path.partition("?")[0]
        server.requests.append(Request(self.command, path, dict(self.headers), body))
        if server.key is not None and self.headers.get("authorization") != f"Bearer {server.key}":
            sent = self.headers.get("authorization", "no key")
            wrong = Fail(401, f"invalid key: {sent}", kind="authentication_error")
            return self._whole(401, server.failure(wrong), {})
        found = server.get(path) if self.command == "GET" else server.post(path, body)
        if isinstance(found, Fail):
            time.sleep(found.pause_s)
            return self._whole(found.status, server.failure(found), found.headers)
        if not isinstance(found, Say):
            return self._whole(*found, {})
        events = server.events(found, body)
        streams = bool(body.get("stream")) and found.streams
        return self._stream(events, found) if streams else self._whole(200, events[0][1], {})

    def _whole(self, status: int, value: Any, headers: Mapping[str, str]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"content-type": "application/json", **headers}.items():
            self.send_header(name, text)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, events: Sequence[tuple[str, Any]], say: Say) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for name, value in events[: say.cut_after]:
                time.sleep(say.pause_s)
                data = value if isinstance(value, str) else json.dumps(value)
                self._chunk(f"event: {name}\ndata: {data}\n\n" if name else f"data: {data}\n\n")
            if say.cut_after is not None and say.cut == RESET:
                return self._reset()
            self._chunk("")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has heard enough

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _reset(self) -> None:
        """Break the connection off, as a server that dies does."""
        linger = struct.pack("ii", 1, 0)
        time.sleep(0.05)  # what was sent arrives before the reset
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is printed."""


_MARK = "\x00"  # where the prompt is marked for the cache


def _flat(body: dict[str, Any]) -> str:
    """A prompt of the Messages API as one text, in the order of its cache: tools, system, messages."""
    parts = [json.dumps(tool) for tool in body.get("tools", ())]
    blocks = list(body.get("system", ()))
    for message in body["messages"]:
        blocks.append({"role": message["role"]})
        content = message["content"]
        blocks += [{"text": content}] if isinstance(content, str) else content
    for block in blocks:
        marked = _MARK if "cache_control" in block else ""
        parts.append(json.dumps({k: v for k, v in block.items() if k != "cache_control"}) + marked)
    return "".join(parts)


def _chat_flat(body: dict[str, Any], end: int) -> str:
    return json.dumps(body.get("tools", [])) + json.dumps(body["messages"][:end])[:-1]


def _wrong_messages(body: dict[str, Any], counting: bool) -> str:
    """What the Messages API would refuse of a request; "" if nothing."""
    if not counting and not isinstance(body.get("max_tokens"), int):
        return "max_tokens: field required"
    if not body.get("messages") or body["messages"][0]["role"] != "user":
        return "messages: the first has to be the user's"
    if _flat(body).count(_MARK) > 4:
        return "cache_control: at most 4 blocks"
    owed: set[str] = set()
    for number, message in enumerate(body["messages"]):
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not blocks:
            return f"messages.{number}: content is empty"
        given = {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"}
        if given != owed:
            return f"messages.{number}: tool_use ids without a tool_result, or the reverse: {owed ^ given}"
        owed = {block["id"] for block in blocks if block["type"] == "tool_use"}
        for block in blocks:
            if block["type"] == "text" and not block["text"].strip():
                return f"messages.{number}: text content blocks must contain non-whitespace text"
            unsigned = block.get("signature") != f"signed:{len(block.get('thinking', ''))}"
            if block["type"] == "thinking" and unsigned:
                return f"messages.{number}: invalid signature in thinking block"
            if block["type"] == "tool_use" and not isinstance(block["input"], dict):
                return f"messages.{number}: input should be an object"
    return "messages: tool_use without tool_result at the end" if owed else ""


def _wrong_chat(body: dict[str, Any]) -> str:
    """What chat completions would refuse of a request; "" if nothing."""
    if not {"max_tokens", "max_completion_tokens"} & body.keys():
        return "max_tokens: expected a limit"
    owed: list[str] = []
    for number, message in enumerate(body["messages"]):
        if message["role"] == "tool":
            if message["tool_call_id"] not in owed:
                return f"messages.{number}: no call {message['tool_call_id']} before it"
            owed.remove(message["tool_call_id"])
        elif owed:
            return f"messages.{number}: calls without an answer: {owed}"
        for call in message.get("tool_calls", ()):
            owed.append(call["id"])
            json.loads(call["function"]["arguments"])
    return f"calls without an answer: {owed}" if owed else ""


def _pieces(text: str) -> list[str]:
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]


def _text_of(given: Mapping[str, Any] | str) -> str:
    return given if isinstance(given, str) else json.dumps(given)


def _output(say: Say) -> int:
    if say.output is not None:
        return say.output
    said = len(say.text) + len(say.thinking) + sum(len(_text_of(given)) for _, given in say.calls)
    return 1 + said // BYTES_PER_TOKEN
