"""Chat completions on a loopback server: what goes out, what comes back, and servers that keep to less than the whole of the API."""

import io
import threading
from dataclasses import replace

import pytest
from conversation import PROMPT, READ, TWO_FILES, after, two_files
from model_servers import KEY, ChatServer, Fail, Say

from agent.lab import Unusable
from agent.ledger import Ledger
from agent.machine import Machine
from agent.proposers import Workshop
from agent.proposers.openai import BROKEN_OFF, ChatModel, create, only_model
from agent.records import Settings, Usage
from agent.research import chat_wire, wire
from agent.research.messages import (
    END,
    MAX_TOKENS,
    REFUSAL,
    TOOLS,
    ModelUnusable,
    Rejected,
    ToolResult,
    Transient,
    User,
)
from agent.screen import Plain

NAME = "gpt-6-sol"


def model(server, name=NAME, **more):
    return ChatModel(name, server.url, **{"key": KEY} | more)


def test_thoughts_calls_and_results_go_back_as_they_came():
    with ChatServer(TWO_FILES) as server:
        two_files(model(server))
    messages = server.bodies[1]["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool", "tool", "user"]
    assert messages[0]["content"] == "\n\n".join(PROMPT.system)
    assert messages[2]["reasoning_content"] == "Which of them?"
    assert [m["content"] for m in messages[3:]] == ["A", "error: no b", "5 turns are left."]


def test_a_request_carries_what_its_model_needs():
    with ChatServer([Say("a"), Say("b")], models=None) as server:
        model(server).reply(PROMPT, 700)
        model(server, "qwen3-coder").reply(PROMPT, 700)
    first, second = server.bodies
    assert (first.get("reasoning_effort"), second.get("reasoning_effort")) == ("none", None)
    assert first["max_tokens"] == 700
    assert first["tools"][0]["function"]["parameters"] == READ.schema
    assert first["stream_options"] == {"include_usage": True}


def test_openai_itself_is_given_the_newer_word_for_the_limit():
    body = ChatModel(NAME, key=KEY)._body(PROMPT, 700)
    assert (body.get("max_completion_tokens"), "max_tokens" in body) == (700, False)


def test_what_was_read_from_the_cache_is_told_apart():
    with ChatServer([Say("", [("read", {"path": "a"})]), Say("Done.")]) as server:
        chat = model(server)
        first = chat.reply(PROMPT, 1000)
        second = chat.reply(after(PROMPT, first, ToolResult(first.calls[0].id, "x" * 400)), 1000)
    assert first.usage.cache_read == 0 < first.usage.input
    assert second.usage.cache_read == pytest.approx(first.usage.input, abs=2)
    assert second.usage.input > 100
    assert first.usage.cache_write == second.usage.cache_write == 0


def test_a_server_that_tells_no_usage_is_estimated_and_it_is_said_once():
    said = []
    with ChatServer([Say("word " * 40, tells_usage=False), Say("b", tells_usage=False)]) as server:
        chat = model(server, say=said.append)
        usage = chat.reply(PROMPT, 1000).usage
        chat.reply(PROMPT, 1000)
    assert usage.input > len("".join(PROMPT.system)) // 4
    assert usage.output >= 50
    assert len(said) == 1
    assert "does not tell what it uses" in said[0]


def test_a_server_that_does_not_stream_is_understood():
    with ChatServer([Say("whole", [("read", {"path": "a"})], streams=False)]) as server:
        reply = model(server).reply(PROMPT, 1000)
    assert (reply.text, reply.calls[0].arguments, reply.stop) == ("whole", {"path": "a"}, TOOLS)
    assert reply.usage.input > 100


def test_calls_without_an_index_are_told_apart_by_their_ids():
    calls = [("read", {"path": "a long name, in pieces"}), ("read", {"path": "b"})]
    with ChatServer([Say("", calls, numbers_calls=False)]) as server:
        reply = model(server).reply(PROMPT, 1000)
    assert [(call.name, call.arguments) for call in reply.calls] == calls


@pytest.mark.parametrize(
    ("word", "stop"),
    [
        ("stop", END),
        ("eos", END),
        ("length", MAX_TOKENS),
        ("content_filter", REFUSAL),
        ("tool_calls", TOOLS),
    ],
)
def test_why_an_answer_ended(word, stop):
    with ChatServer([Say("so far", stop=word)]) as server:
        assert model(server).reply(PROMPT, 1000).stop == stop


def test_calls_with_a_plain_stop_are_calls():
    with ChatServer([Say("", [("read", {"path": "a"})], stop="stop")]) as server:
        assert model(server).reply(PROMPT, 1000).stop == TOOLS


def test_a_check_asks_for_a_tool_call_in_few_tokens():
    with ChatServer([Say("", [("yes", {})])]) as server:
        model(server).check()
    (body,) = server.bodies
    assert body["max_tokens"] <= 16
    assert body["tools"][0]["function"]["name"] == "yes"


def test_a_local_server_needs_no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ChatServer([Say("yes")], key=None) as server:
        model(server, key=None).check()


def test_a_model_that_takes_no_tools_is_told_in_the_words_of_its_server():
    fail = Fail(400, "Function tools with reasoning_effort are not supported")
    with ChatServer([fail]) as server, pytest.raises(ModelUnusable, match="Function tools"):
        model(server).check()


@pytest.mark.parametrize("names", [["a", "b"], [], None])
def test_an_endpoint_with_one_model_needs_no_name_and_others_do(names, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ChatServer(models=["qwen3-coder"]) as server:
        assert only_model(server.url) == "qwen3-coder"
    with ChatServer(models=names) as server, pytest.raises(Unusable, match="--model"):
        only_model(server.url)


def test_what_is_no_json_in_a_stream_is_to_be_sent_again():
    class Odd(ChatServer):
        def events(self, say, body):
            return [("", "<html>gateway</html>")]

    with Odd([Say("x")]) as server, pytest.raises(Transient, match="gateway"):
        model(server).reply(PROMPT, 1000)


@pytest.mark.parametrize("chunk", [{"choices": "x"}, {"choices": [{"delta": {"tool_calls": [1]}}]}])
def test_a_chunk_of_another_shape_is_to_be_sent_again(chunk):
    class Odd(ChatServer):
        def events(self, say, body):
            return [("", chunk)]

    with Odd([Say("x")]) as server, pytest.raises(Transient, match="another shape") as raised:
        model(server).reply(PROMPT, 1000)
    assert raised.value.billed.input > 0, "the answer had begun, and will be billed"


def test_half_a_character_is_a_problem_of_its_call_and_of_nothing_else():
    """A server may send an emoji in two pieces, and a model half of one: what cannot be written down must not end a session that is paid."""
    call = {"id": "c", "function": {"name": "read", "arguments": '{"path": "\\ud83d"}'}}

    class Halves(ChatServer):
        def events(self, say, body):
            deltas = [{"content": "\ud83d"}, {"content": "\ude00 \udfff"}, {"tool_calls": [call]}]
            return [("", {"choices": [{"delta": d, "finish_reason": "stop"}]}) for d in deltas]

    with Halves([Say("x")] * 2) as server:
        asked = model(server)
        reply = asked.reply(PROMPT, 1000)
        assert reply.text == "\U0001f600 \ufffd"
        assert reply.calls[0].arguments is None
        assert "half of a surrogate pair" in reply.calls[0].problem
        asked.reply(after(PROMPT, reply, ToolResult("c", reply.calls[0].problem, True)), 1000)


def test_arguments_too_deep_to_be_read_are_a_problem():
    assert "not JSON" in wire.arguments('{"a":' + "[" * 100_000)[1]


def test_text_in_parts_is_text():
    class Parts(ChatServer):
        def events(self, say, body):
            parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "said"}]
            return [("", {"choices": [{"delta": {"content": parts}, "finish_reason": "stop"}]})]

    with Parts([Say("x")]) as server:
        assert model(server).reply(PROMPT, 1000).text == "said"


def test_an_unlisted_model_is_said_to_be_taken_for_granted_and_costs_what_is_given(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    out, unused = io.StringIO(), None
    with ChatServer([Say("", [("yes", {})])], models=["qwen3-coder"]) as server:
        settings = Settings(base_url=server.url, prices=("qwen3-coder=0/0",))
        made = create(
            Workshop(
                settings, "night", tmp_path, Ledger(tmp_path / "ledger.sqlite"),
                unused, unused, Machine("cpu"), Plain(out), threading.Event(),
            )
        )  # fmt: skip
    assert made.name == "openai"
    assert (
        "qwen3-coder is not in prices.toml: assumed to have a window of 128,000" in out.getvalue()
    )


def test_deepseek_tells_its_cache_in_its_own_word():
    class DeepSeek(ChatServer):
        def events(self, say, body):
            usage = {
                "prompt_tokens": 900,
                "completion_tokens": 7,
                "prompt_cache_hit_tokens": 600,
                "prompt_cache_miss_tokens": 300,
            }
            return [*super().events(say, body)[:-1], ("", {"choices": [], "usage": usage})]

    with DeepSeek([Say("x")]) as server:
        assert model(server).reply(PROMPT, 1000).usage == Usage(300, 7, 600, 0)


class WrongDoor(ChatServer):
    """Answers every path with status 200 and words that are no chat, as some servers do without their /v1."""

    def events(self, say, body):
        return [("", self.said)]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"error": "Unexpected endpoint"}, "Unexpected endpoint"),
        ({"error": {"message": "no such model", "code": 404}}, "no such model"),
        ({"status": "ok"}, "Most end in /v1"),
    ],
)
def test_an_endpoint_that_is_none_is_told_before_the_night(said, shown):
    with WrongDoor([Say("x")]) as server:
        server.said = said
        with pytest.raises(ModelUnusable, match=shown):
            model(server).check()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"error": {"message": "context length exceeded", "code": "context_length"}}, "context length exceeded"),
        ({"choices": "x"}, ".*another shape"),
    ],
)  # fmt: skip
def test_an_answer_that_breaks_off_again_and_again_is_not_asked_for_ever(said, shown):
    with WrongDoor([Say("x")] * 9) as server:
        server.said = said
        asked = model(server)
        for _ in range(BROKEN_OFF):
            with pytest.raises(Transient):
                asked.reply(PROMPT, 1000)
        with pytest.raises(Rejected, match=f"6 times in a row: {shown}"):
            asked.reply(PROMPT, 1000)
        server.said = {"error": {"message": "overloaded", "code": 503}}
        with pytest.raises(Transient, match="503"):
            asked.reply(PROMPT, 1000)


def test_a_window_that_the_endpoint_lists_takes_the_place_of_the_one_assumed():
    class Narrow(ChatServer):
        def get(self, path):
            status, found = super().get(path)
            return status, {"data": [row | {"max_model_len": 32_768} for row in found["data"]]}

    with Narrow([Say("", [("yes", {})])], models=["qwen3-coder"]) as server:
        asked = model(server, "qwen3-coder")
        asked.check()
    assert asked.window == 32_768


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 32768 tokens. However, you requested 40000 tokens",
        "request (40000 tokens) exceeds the available context size (32768 tokens), try increasing it",
    ],
)
def test_a_refusal_that_names_the_window_is_heeded(said):
    with ChatServer([Fail(400, said)], models=["qwen3-coder"]) as server:
        asked = model(server, "qwen3-coder")
        with pytest.raises(Rejected):
            asked.reply(PROMPT, 1000)
    assert asked.window == 32_768


@pytest.mark.parametrize(
    "said",
    [
        "tools param requires --jinja flag",
        "Unsupported param: tools",
        "the request exceeds the available context size. try increasing it",
    ],
)
def test_what_llama_cpp_can_never_answer_is_not_waited_for(said):
    with ChatServer([Fail(500, said)] * 2) as server:
        with pytest.raises(Rejected, match="500"):
            model(server).reply(PROMPT, 1000)
        with pytest.raises(ModelUnusable, match="500"):
            model(server).check()


def test_thoughts_that_a_server_leaves_out_of_the_completion_are_paid():
    told = {
        "prompt_tokens": 10_120, "completion_tokens": 1_499, "total_tokens": 14_428,
        "prompt_tokens_details": {"cached_tokens": 128},
    }  # fmt: skip
    assert chat_wire.used(told) == Usage(9_992, 4_308, 128, 0)


def test_a_server_that_cuts_prompts_is_named_and_not_learned_from():
    class Cutting(ChatServer):
        def events(self, say, body):
            usage = {"prompt_tokens": 2_050, "completion_tokens": 7}
            return [*super().events(say, body)[:-1], ("", {"choices": [], "usage": usage})]

    long, said = replace(PROMPT, turns=(User("y = x @ w\n" * 6_000),)), []
    with Cutting([Say("x")] * 2) as server:
        asked = model(server, say=said.append)
        before = asked.count(long)
        asked.reply(long, 1000)
        asked.reply(long, 1000)
        assert asked.count(long) == before
    (line,) = said
    assert "has read 2,050 tokens of a prompt of" in line


@pytest.mark.parametrize(
    ("said", "most"),
    [
        ("max_tokens is too large: 16384. This model supports at most 4096 completion tokens", 4096),
        ("`max_tokens` must be less than or equal to `8192`, the maximum value", 8192),
        ("`max_completion_tokens`: expected a value <= 12288, but got 16384 instead", 12288),
        ("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]", 8192),
    ],
)  # fmt: skip
def test_a_refusal_that_names_the_longest_answer_is_heeded(said, most):
    with ChatServer([Fail(400, said)], models=["qwen3-coder"]) as server:
        asked = model(server, "qwen3-coder")
        with pytest.raises(Rejected):
            asked.reply(PROMPT, 1000)
    assert (asked.max_output, asked.window) == (most, 128_000)


def test_an_endpoint_that_does_not_answer_is_not_said_to_have_no_model(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ChatServer(models=["qwen3-coder"]) as server:
        with pytest.raises(Unusable, match=r"asks for a key \(401"):
            only_model(server.url)
        url = server.url
    with pytest.raises(Unusable, match=f"no answer from {url}: .*refused"):
        only_model(url)
