"""Chat completions on a loopback server: what goes out, what comes back, and servers that keep to less than the whole of the API."""

import io
import threading
import time
from dataclasses import replace

import pytest
from model_servers import KEY, ChatServer, Fail, Say

from agent.lab import Unusable
from agent.ledger import Ledger
from agent.machine import Machine
from agent.proposers import Workshop
from agent.proposers.openai import ChatModel, create, only_model
from agent.records import Settings
from agent.research.messages import (
    CUT,
    END,
    MAX_TOKENS,
    REFUSAL,
    TOOLS,
    ModelUnusable,
    Prompt,
    Rejected,
    Results,
    Tool,
    ToolResult,
    Transient,
    Usage,
    User,
)
from agent.screen import Plain

NAME = "gpt-6-sol"
READ = Tool("read", "Read a file.", {"type": "object", "properties": {"path": {"type": "string"}}})
PROMPT = Prompt(
    ("You make kernels fast.", "def scale(x): return 2 * x\n" * 40), (READ,), (User("Begin."),)
)


def model(server, name=NAME, **more):
    return ChatModel(name, server.url, **{"key": KEY} | more)


def after(prompt, reply, *results, note=""):
    return replace(prompt, turns=(*prompt.turns, reply, Results(results, note)))


def test_a_conversation_with_thoughts_and_tools_goes_back_as_it_came():
    calls = [("read", {"path": "a"}), ("read", {"path": "b"})]
    with ChatServer([Say("Two files.", calls, thinking="Which of them?"), Say("Done.")]) as server:
        chat = model(server)
        first = chat.reply(PROMPT, 1000)
        assert (first.text, first.stop) == ("Two files.", TOOLS)
        assert [call.arguments for call in first.calls] == [{"path": "a"}, {"path": "b"}]
        results = (ToolResult(first.calls[0].id, "A"), ToolResult(first.calls[1].id, "no b", True))
        second = chat.reply(after(PROMPT, first, *results, note="5 turns are left."), 1000)
    assert (second.text, second.calls, second.stop) == ("Done.", (), END)
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


def test_the_estimate_is_above_what_is_billed_and_learns():
    long = replace(PROMPT, turns=(User("y = x @ w  # (768, 3072)\n" * 400),))
    with ChatServer([Say("a")]) as server:
        chat = model(server)
        before = chat.count(long)
        billed = chat.reply(long, 1000).usage.input
        assert billed <= chat.count(long) < 1.2 * billed < before < 2.5 * billed


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


@pytest.mark.parametrize("given", ['{"path": nope}', '{"path": "a', "[1]", '"a"'])
def test_malformed_arguments_are_told_and_do_not_end_the_session(given):
    with ChatServer([Say("", [("read", given)]), Say("Sorry.")]) as server:
        chat = model(server)
        reply = chat.reply(PROMPT, 1000)
        assert (reply.stop, reply.calls[0].arguments) == (TOOLS, None)
        told = after(PROMPT, reply, ToolResult(reply.calls[0].id, reply.calls[0].problem, True))
        assert chat.reply(told, 1000).text == "Sorry."


def test_a_call_that_the_limit_cut_is_not_one():
    with ChatServer([Say("", [("read", '{"path": "kern')], stop="length")]) as server:
        reply = model(server).reply(PROMPT, 1000)
    assert (reply.stop, reply.calls[0].arguments) == (MAX_TOKENS, None)


def test_a_stream_that_ends_early_without_a_word_is_cut_and_paid_for():
    with ChatServer([Say("word " * 20, cut_after=6, cut="end")]) as server:
        reply = model(server).reply(PROMPT, 1000)
    assert reply.stop == CUT
    assert reply.usage.input > 100
    assert reply.usage.output >= len(reply.text) // 4 > 5


@pytest.mark.parametrize(
    "say", [Say("word " * 20, cut_after=6), Say("word " * 20, fail_after=6)], ids=["reset", "error"]
)
def test_a_stream_that_breaks_is_to_be_sent_again_and_what_was_used_is_told(say):
    with ChatServer([say]) as server, pytest.raises(Transient) as raised:
        model(server).reply(PROMPT, 1000)
    assert raised.value.billed.input > 100
    assert raised.value.billed.output > 5


@pytest.mark.parametrize("say", [Say("x", cut_after=0), Say("x", fail_after=0)])
def test_a_stream_that_breaks_before_it_begins_costs_nothing(say):
    with ChatServer([say]) as server, pytest.raises(Transient) as raised:
        model(server).reply(PROMPT, 1000)
    assert raised.value.billed is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, Transient) for status in (402, 408, 409, 429, 500, 502, 503, 504, 529)),
        *((status, Rejected) for status in (400, 413, 422)),
        *((status, ModelUnusable) for status in (401, 403, 404)),
    ],
)
def test_a_status_is_what_it_means_and_is_not_retried(status, kind):
    with ChatServer([Fail(status, headers={"retry-after": "7"}), Say("late")]) as server:
        with pytest.raises(kind, match=f"{status}.*as the script says") as raised:
            model(server).reply(PROMPT, 1000)
        assert len(server.bodies) == 1
    assert getattr(raised.value, "retry_after", 7.0) == 7.0


def test_a_slow_answer_outlives_the_time_out_of_a_silence():
    with ChatServer([Say("word " * 12, pause_s=0.15)]) as server:
        began = time.monotonic()
        assert model(server, silence_s=0.6).reply(PROMPT, 1000).text == "word " * 12
        assert time.monotonic() - began > 0.9


def test_a_silence_ends_in_a_time_out():
    with ChatServer([Say("word " * 12, pause_s=1.5)]) as server:
        with pytest.raises(Transient, match="timed out"):
            model(server, silence_s=0.3).reply(PROMPT, 1000)


def test_an_answer_under_way_is_given_up_when_the_run_stops():
    stop = threading.Event()

    def script(body):
        threading.Timer(0.7, stop.set).start()
        return Say("word " * 500, pause_s=0.05)

    with ChatServer(script) as server:
        began = time.monotonic()
        with pytest.raises(Transient, match="stopped") as raised:
            model(server, stop=stop).reply(PROMPT, 1000)
    assert time.monotonic() - began < 8  # of 10
    assert raised.value.billed.output > 1


def test_a_check_asks_for_a_tool_call_in_few_tokens():
    with ChatServer([Say("", [("yes", {})])]) as server:
        model(server).check()
    (body,) = server.bodies
    assert body["max_tokens"] <= 16
    assert body["tools"][0]["function"]["name"] == "yes"


def test_a_wrong_key_is_one_line_without_the_key():
    with ChatServer(key="another") as server, pytest.raises(ModelUnusable) as raised:
        model(server).check()
    said = str(raised.value)
    assert "does not accept the key (401: invalid key: Bearer [key]): set OPENAI_API_KEY" in said
    assert KEY not in said


def test_no_key_is_asked_for_by_a_server_that_wants_one(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ChatServer() as server:
        with pytest.raises(ModelUnusable, match=r"asks for a key \(401: .*\): set OPENAI_API_KEY"):
            model(server, key=None).check()


def test_a_local_server_needs_no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ChatServer([Say("yes")], key=None) as server:
        model(server, key=None).check()


def test_a_wrong_model_is_told_with_those_that_there_are():
    with ChatServer(models=["qwen3-coder", "gpt-oss"]) as server:
        with pytest.raises(ModelUnusable, match=f"has no {NAME}.*it has qwen3-coder, gpt-oss$"):
            model(server).check()


def test_a_model_that_takes_no_tools_is_told_in_the_words_of_its_server():
    fail = Fail(400, "Function tools with reasoning_effort are not supported")
    with ChatServer([fail]) as server, pytest.raises(ModelUnusable, match="Function tools"):
        model(server).check()


def test_a_dead_endpoint_is_told():
    with ChatServer() as server:
        url = server.url
    with pytest.raises(ModelUnusable, match=f"no answer from {url}: .*refused"):
        ChatModel(NAME, url, key=KEY).check()


def test_a_busy_server_is_not_an_unusable_model():
    with ChatServer([Fail(429)]) as server:
        model(server).check()
    assert len(server.bodies) == 1


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

    with Odd([Say("x")]) as server, pytest.raises(Transient, match="another shape"):
        model(server).reply(PROMPT, 1000)


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
                settings, "night", "start", tmp_path, Ledger(tmp_path / "ledger.sqlite"),
                unused, unused, Machine("cpu"), Plain(out), threading.Event(),
            )
        )  # fmt: skip
    assert made.name == "openai"
    assert "qwen3-coder is not in prices.toml: taken to have a window of 128,000" in out.getvalue()


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


def test_the_key_lives_in_the_client_alone():
    chat = ChatModel(NAME, "http://127.0.0.1:9/v1", key=KEY)
    assert KEY not in repr(chat) + repr({k: v for k, v in vars(chat).items() if k != "_client"})
