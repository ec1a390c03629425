"""What every model client keeps to, whichever API it speaks."""

import email.utils
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conversation import PROMPT, TWO_FILES, after, two_files
from model_servers import KEY, ChatServer, Fail, MessagesServer, Say, Server

from agent.proposers.anthropic import MessagesModel
from agent.proposers.openai import ChatModel
from agent.records import Usage
from agent.research.messages import (
    CUT,
    END,
    MAX_TOKENS,
    TOOLS,
    ModelUnusable,
    Rejected,
    ToolResult,
    Transient,
    User,
)


@dataclass(frozen=True)
class Api:
    """One API: who speaks it, and the words and figures in which it differs from the other."""

    server: type[Server]
    client: type[MessagesModel] | type[ChatModel]
    name: str  # of a model
    key: str  # environment variable
    limit: str  # the server's word for an answer that its limit cut
    opening: int  # events before the first piece of text
    new: str  # the field of Usage that has the tokens of a prompt that is in no cache
    offer: str  # what stands before the models that there are

    def model(self, server: Server, **more):
        return self.client(self.name, server.url, **{"key": KEY} | more)

    def tokens_of_new(self, usage: Usage) -> int:
        return getattr(usage, self.new)


ANTHROPIC = Api(
    server=MessagesServer,
    client=MessagesModel,
    name="claude-opus-5-5",
    key="ANTHROPIC_API_KEY",
    limit="max_tokens",
    opening=3,
    new="cache_write",
    offer="--model, such as",
)
OPENAI = Api(
    server=ChatServer,
    client=ChatModel,
    name="gpt-6-sol",
    key="OPENAI_API_KEY",
    limit="length",
    opening=1,
    new="input",
    offer="it has",
)


@pytest.fixture(params=[ANTHROPIC, OPENAI], ids=["anthropic", "openai"])
def api(request):
    return request.param


def test_a_conversation_goes_on_with_what_its_tools_found(api):
    with api.server(TWO_FILES) as server:
        first, second = two_files(api.model(server))
    assert (first.text, first.stop) == ("Two files.", TOOLS)
    assert [call.arguments for call in first.calls] == [{"path": "a"}, {"path": "b"}]
    assert (second.text, second.calls, second.stop) == ("Done.", (), END)


def test_a_new_session_reads_the_stable_prefix_of_the_last_one(api):
    with api.server([Say("a"), Say("b")]) as server:
        model = api.model(server)
        model.reply(PROMPT, 1000)
        other = model.reply(replace(PROMPT, turns=(User("Another task."),)), 1000)
    assert other.usage.cache_read > 200


def test_the_estimate_is_above_what_is_billed_and_learns(api):
    long = replace(PROMPT, turns=(User("y = x @ w  # (768, 3072)\n" * 400),))
    with api.server([Say("a")], counts=False) as server:
        model = api.model(server)
        before = model.count(long)
        usage = model.reply(long, 1000).usage
        billed = usage.input + usage.cache_read + usage.cache_write
        assert billed <= model.count(long) < 1.2 * billed < before < 2.5 * billed
    assert usage.cache_read == 0  # a new server knows no prompt


@pytest.mark.parametrize("given", ['{"path": nope}', '{"path": "a', "[1]", '"a"'])
def test_malformed_arguments_are_told_and_do_not_end_the_session(given, api):
    with api.server([Say("", [("read", given)]), Say("Sorry.")]) as server:
        model = api.model(server)
        reply = model.reply(PROMPT, 1000)
        assert (reply.stop, reply.calls[0].arguments) == (TOOLS, None)
        assert reply.calls[0].problem
        told = after(PROMPT, reply, ToolResult(reply.calls[0].id, reply.calls[0].problem, True))
        assert model.reply(told, 1000).text == "Sorry."


def test_a_call_that_the_limit_cut_is_not_one(api):
    with api.server([Say("", [("read", '{"path": "kern')], stop=api.limit)]) as server:
        reply = api.model(server).reply(PROMPT, 1000)
    assert (reply.stop, reply.calls[0].arguments) == (MAX_TOKENS, None)


def test_a_stream_that_ends_early_without_a_word_is_cut_and_paid_for(api):
    with api.server([Say("word " * 20, cut_after=api.opening + 5, cut="end")]) as server:
        reply = api.model(server).reply(PROMPT, 1000)
    assert reply.stop == CUT
    assert api.tokens_of_new(reply.usage) > 200
    assert reply.usage.output >= len(reply.text) // 4 > 5


@pytest.mark.parametrize("trouble", ["cut_after", "fail_after"], ids=["reset", "error"])
def test_a_stream_that_breaks_is_to_be_sent_again_and_what_was_used_is_told(trouble, api):
    say = Say("word " * 20, **{trouble: api.opening + 5})
    with api.server([say]) as server, pytest.raises(Transient) as raised:
        api.model(server).reply(PROMPT, 1000)
    assert api.tokens_of_new(raised.value.billed) > 200
    assert raised.value.billed.output > 5


@pytest.mark.parametrize("trouble", ["cut_after", "fail_after"], ids=["reset", "error"])
def test_a_stream_that_breaks_before_it_begins_costs_nothing(trouble, api):
    say = Say("x", **{trouble: 0})
    with api.server([say]) as server, pytest.raises(Transient) as raised:
        api.model(server).reply(PROMPT, 1000)
    assert raised.value.billed is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, Transient) for status in (402, 408, 409, 429, 500, 502, 503, 504, 529)),
        *((status, Rejected) for status in (400, 413, 422)),
        *((status, ModelUnusable) for status in (401, 403, 404)),
    ],
)
def test_a_status_is_what_it_means_and_is_not_retried(status, kind, api):
    with api.server([Fail(status, headers={"retry-after": "7"}), Say("late")]) as server:
        with pytest.raises(kind, match=f"{status}.*as the script says") as raised:
            api.model(server).reply(PROMPT, 1000)
        assert len(server.bodies) == 1
    if kind is Transient:
        assert raised.value.retry_after == 7.0


def test_credit_that_has_run_out_is_waited_for_whatever_its_status(api):
    said = "Your credit balance is too low to access the API."
    with api.server([Fail(400, said)]) as server, pytest.raises(Transient, match="credit balance"):
        api.model(server).reply(PROMPT, 1000)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({}, None),
    ],
)
def test_the_wait_that_the_server_asks_for_is_told(headers, seconds, api):
    with api.server([Fail(429, headers=headers), Say("late")]) as server:
        with pytest.raises(Transient) as raised:
            api.model(server).reply(PROMPT, 1000)
        assert len(server.bodies) == 1
    assert raised.value.retry_after == seconds


def test_the_hour_until_which_the_server_asks_to_wait_is_told_in_seconds(api):
    # written here, not among the cases above: pytest makes those when it collects, minutes before it runs the last
    later = email.utils.formatdate(time.time() + 3600)
    with api.server([Fail(429, headers={"retry-after": later}), Say("late")]) as server:
        with pytest.raises(Transient) as raised:
            api.model(server).reply(PROMPT, 1000)
    assert raised.value.retry_after == pytest.approx(3600.0, abs=20)


def test_a_slow_answer_outlives_the_time_out_of_a_silence(api):
    with api.server([Say("word " * 72, pause_s=0.05)]) as server:
        began = time.monotonic()
        assert api.model(server, silence_s=1.0).reply(PROMPT, 1000).text == "word " * 72
        assert time.monotonic() - began > 1.25


def test_a_silence_ends_in_a_time_out(api):
    with api.server([Say("word " * 12, pause_s=1.5)]) as server:
        with pytest.raises(Transient, match="timed out"):
            api.model(server, silence_s=0.3).reply(PROMPT, 1000)


def test_an_answer_under_way_is_given_up_when_the_run_stops(api):
    stop = threading.Event()

    def script(body):
        threading.Timer(0.5, stop.set).start()
        return Say("word " * 500, pause_s=0.05)

    with api.server(script) as server:
        began = time.monotonic()
        with pytest.raises(Transient, match="stopped") as raised:
            api.model(server, stop=stop).reply(PROMPT, 1000)
    assert time.monotonic() - began < 8  # of 10
    assert raised.value.billed.output > 1


def test_a_wrong_key_is_one_line_without_the_key(api):
    with api.server(key="another") as server, pytest.raises(ModelUnusable) as raised:
        api.model(server).check()
    said = str(raised.value)
    assert f"does not accept the key (401: invalid key: Bearer [key]): set {api.key}" in said
    assert KEY not in said
    assert "\n" not in said


def test_no_key_is_asked_for_by_a_server_that_wants_one(api, monkeypatch):
    monkeypatch.delenv(api.key, raising=False)
    with api.server() as server:
        with pytest.raises(ModelUnusable, match=rf"asks for a key \(401: .*\): set {api.key}"):
            api.model(server, key=None).check()


def test_a_wrong_model_is_told_with_those_that_there_are(api):
    with api.server(models=["qwen3-coder", "gpt-oss"]) as server:
        with pytest.raises(
            ModelUnusable, match=f"has no {api.name}.*{api.offer} qwen3-coder, gpt-oss$"
        ):
            api.model(server).check()


def test_a_dead_endpoint_is_told(api):
    with api.server() as server:
        url = server.url
    with pytest.raises(ModelUnusable, match=f"no answer from {url}: .*refused"):
        api.model(server).check()


@pytest.mark.parametrize("status", [429, 529])
def test_a_busy_server_is_not_an_unusable_model(status, api):
    # It lists no models, so that both clients ask it for an answer.
    with api.server([Fail(status)], models=None) as server:
        api.model(server).check()
    assert len(server.bodies) == 1


def test_an_error_never_tells_the_key(api):
    fail = Fail(400, f"header Bearer {KEY}\nis odd " + "x" * 500)
    with api.server([fail]) as server, pytest.raises(Rejected) as raised:
        api.model(server).reply(PROMPT, 1000)
    said = str(raised.value)
    assert "[key]" in said
    assert KEY not in said
    assert "\n" not in said
    assert len(said) < 400


def test_a_key_from_a_file_with_line_ends_of_another_system_is_that_key(api, monkeypatch):
    monkeypatch.setenv(api.key, f"{KEY}\r\n")
    with api.server() as server:
        api.model(server, key=None).check()


def test_the_key_lives_in_the_client_alone(api):
    with api.server() as server:
        model = api.model(server)
    assert KEY not in repr(model) + repr({k: v for k, v in vars(model).items() if k != "_client"})


def test_importing_the_proposers_does_not_import_their_libraries():
    code = "import sys, agent.proposers.anthropic, agent.proposers.openai; print(*sys.modules)"
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert not {"anthropic", "httpx2", "torch"} & set(done.stdout.split())


def test_a_request_that_is_never_answered_may_have_been_worked_on(api):
    """Nobody knows what it used, so it is not settled at nothing."""
    with api.server([Say("late", pause_s=3.0)]) as server:
        with pytest.raises(Transient, match="timed out") as raised:
            api.model(server, silence_s=0.3).reply(PROMPT, 1000)
    assert raised.value.billed is None
    assert raised.value.unknown


def test_an_answer_that_cannot_be_unpacked_is_to_be_sent_again(api):
    with api.server([Fail(200, headers={"content-encoding": "gzip"})]) as server:
        with pytest.raises(Transient):
            api.model(server).reply(PROMPT, 1000)
