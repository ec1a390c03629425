"""The Messages API through the official SDK, on a loopback server: what goes out, what comes back, and how each failure is told."""

import email.utils
import io
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from model_servers import KEY, Fail, MessagesServer, Say

from agent.lab import Unusable
from agent.ledger import Ledger
from agent.machine import Machine
from agent.proposers import Workshop
from agent.proposers.anthropic import DEFAULT_MODEL, MessagesModel, create
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
    User,
)
from agent.screen import Plain

NAME = "claude-opus-5-5"
READ = Tool("read", "Read a file.", {"type": "object", "properties": {"path": {"type": "string"}}})
PROMPT = Prompt(
    ("You make kernels fast.", "def scale(x): return 2 * x\n" * 40), (READ,), (User("Begin."),)
)


def model(server, **more):
    return MessagesModel(NAME, server.url, **{"key": KEY} | more)


def after(prompt, reply, *results, note=""):
    return replace(prompt, turns=(*prompt.turns, reply, Results(results, note)))


def test_a_conversation_with_thoughts_and_tools_goes_back_as_it_came():
    says = [
        Say("Two files.", [("read", {"path": "a"}), ("read", {"path": "b"})], thinking="Which?"),
        Say("Done."),
    ]
    with MessagesServer(says) as server:
        claude = model(server)
        first = claude.reply(PROMPT, 1000)
        assert (first.text, first.stop) == ("Two files.", TOOLS)
        assert [call.arguments for call in first.calls] == [{"path": "a"}, {"path": "b"}]
        results = (ToolResult(first.calls[0].id, "A"), ToolResult(first.calls[1].id, "no b", True))
        second = claude.reply(after(PROMPT, first, *results, note="5 turns are left."), 1000)
    assert (second.text, second.calls, second.stop) == ("Done.", (), END)
    _, said, told = server.bodies[1]["messages"]
    assert [block["type"] for block in said["content"]] == ["thinking", "text", *2 * ["tool_use"]]
    assert said["content"][0] == {"type": "thinking", "thinking": "Which?", "signature": "signed:6"}
    assert [block.get("is_error") for block in told["content"]] == [False, True, None]
    assert told["content"][2]["text"] == "5 turns are left."


def test_a_request_carries_the_thinking_that_its_model_has():
    names = [NAME, "claude-haiku-4-5"]
    with MessagesServer([Say("a"), Say("b")], models=names) as server:
        for name in names:
            MessagesModel(name, server.url, key=KEY).reply(PROMPT, 700)
    assert [body.get("thinking") for body in server.bodies] == [{"type": "adaptive"}, None]
    assert [body["max_tokens"] for body in server.bodies] == [700, 700]
    assert server.bodies[0]["tools"][0]["input_schema"] == READ.schema


def test_each_turn_reads_from_the_cache_what_the_one_before_wrote():
    says = [Say("", [("read", {"path": "a"})]), Say("", [("read", {"path": "b"})]), Say("Done.")]
    with MessagesServer(says) as server:
        claude, prompt, used = model(server), PROMPT, []
        for _ in says:
            reply = claude.reply(prompt, 1000)
            used.append(reply.usage)
            prompt = after(
                prompt, reply, *(ToolResult(call.id, "x = 1\n" * 30) for call in reply.calls)
            )
    assert used[0].cache_read == 0 < used[0].cache_write
    for before, now in zip(used, used[1:], strict=False):
        assert now.cache_read == pytest.approx(before.cache_read + before.cache_write, abs=2)
        assert now.cache_write > 30
    assert all(usage.input <= 2 for usage in used)


def test_a_new_session_reads_the_stable_prefix_of_the_last_one():
    with MessagesServer([Say("a"), Say("b")]) as server:
        claude = model(server)
        claude.reply(PROMPT, 1000)
        other = claude.reply(replace(PROMPT, turns=(User("Another task."),)), 1000)
    assert other.usage.cache_read > 200


def test_the_count_is_what_the_server_bills():
    with MessagesServer([Say("a")]) as server:
        claude = model(server)
        counted, usage = claude.count(PROMPT), claude.reply(PROMPT, 1000).usage
    assert counted == pytest.approx(usage.input + usage.cache_read + usage.cache_write, rel=0.05)


def test_where_a_server_does_not_count_the_estimate_is_above_and_learns():
    long = replace(PROMPT, turns=(User("y = x @ w  # (768, 3072)\n" * 400),))
    with MessagesServer([Say("a")], counts=False) as server:
        claude = model(server)
        before = claude.count(long)
        usage = claude.reply(long, 1000).usage
        billed = usage.input + usage.cache_read + usage.cache_write
        assert billed <= claude.count(long) < 1.2 * billed < before < 2.5 * billed
        asked = [request for request in server.requests if request.path.endswith("count_tokens")]
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("word", "stop"),
    [
        ("end_turn", END),
        ("stop_sequence", END),
        ("max_tokens", MAX_TOKENS),
        ("model_context_window_exceeded", MAX_TOKENS),
        ("refusal", REFUSAL),
        ("pause_turn", CUT),
        ("a_word_of_tomorrow", CUT),
    ],
)
def test_why_an_answer_ended(word, stop):
    with MessagesServer([Say("so far", stop=word)]) as server:
        assert model(server).reply(PROMPT, 1000).stop == stop


@pytest.mark.parametrize("given", ['{"path": nope}', '{"path": "a', "[1]", '"a"'])
def test_malformed_arguments_are_told_and_do_not_end_the_session(given):
    with MessagesServer([Say("", [("read", given)]), Say("Sorry.")]) as server:
        claude = model(server)
        reply = claude.reply(PROMPT, 1000)
        assert (reply.stop, reply.calls[0].arguments) == (TOOLS, None)
        assert reply.calls[0].problem
        told = after(PROMPT, reply, ToolResult(reply.calls[0].id, reply.calls[0].problem, True))
        assert claude.reply(told, 1000).text == "Sorry."


def test_a_call_that_the_limit_cut_is_not_one():
    with MessagesServer([Say("", [("read", '{"path": "kern')], stop="max_tokens")]) as server:
        reply = model(server).reply(PROMPT, 1000)
    assert (reply.stop, reply.calls[0].arguments) == (MAX_TOKENS, None)


def test_a_stream_that_ends_early_without_a_word_is_cut_and_paid_for():
    with MessagesServer([Say("word " * 20, cut_after=8, cut="end")]) as server:
        reply = model(server).reply(PROMPT, 1000)
    assert reply.stop == CUT
    assert reply.usage.cache_write > 200
    assert reply.usage.output >= len(reply.text) // 4 > 5


@pytest.mark.parametrize(
    "say", [Say("word " * 20, cut_after=8), Say("word " * 20, fail_after=8)], ids=["reset", "error"]
)
def test_a_stream_that_breaks_is_to_be_sent_again_and_what_was_used_is_told(say):
    with MessagesServer([say]) as server, pytest.raises(Transient) as raised:
        model(server).reply(PROMPT, 1000)
    assert raised.value.billed.cache_write > 200
    assert raised.value.billed.output > 5


@pytest.mark.parametrize("say", [Say("x", cut_after=0), Say("x", fail_after=0)])
def test_a_stream_that_breaks_before_it_begins_costs_nothing(say):
    with MessagesServer([say]) as server, pytest.raises(Transient) as raised:
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
def test_a_status_is_what_it_means_and_is_never_retried_by_the_sdk(status, kind):
    with MessagesServer([Fail(status), Say("late")]) as server:
        with pytest.raises(kind, match=f"{status}.*as the script says"):
            model(server).reply(PROMPT, 1000)
        assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": email.utils.formatdate(time.time() + 3600)}, 3600.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({}, None),
    ],
)
def test_the_wait_that_the_server_asks_for_is_told(headers, seconds):
    fail = Fail(429, headers=headers)
    with MessagesServer([fail]) as server, pytest.raises(Transient) as raised:
        model(server).reply(PROMPT, 1000)
    assert raised.value.retry_after == (seconds and pytest.approx(seconds, abs=20))


def test_a_stream_of_events_out_of_order_is_an_answer_that_was_cut():
    class Odd(MessagesServer):
        def events(self, say, body):
            start, *others = super().events(say, body)
            return [start, *(event for event in others if event[0] != "content_block_start")]

    with Odd([Say("word " * 20)]) as server:
        assert model(server).reply(PROMPT, 1000).stop == CUT


def test_a_slow_answer_outlives_the_time_out_of_a_silence():
    with MessagesServer([Say("word " * 12, pause_s=0.15)]) as server:
        began = time.monotonic()
        assert model(server, silence_s=0.6).reply(PROMPT, 1000).text == "word " * 12
        assert time.monotonic() - began > 1.2


def test_a_silence_ends_in_a_time_out():
    with MessagesServer([Say("word " * 12, pause_s=1.5)]) as server:
        with pytest.raises(Transient, match="timed out"):
            model(server, silence_s=0.3).reply(PROMPT, 1000)


def test_an_answer_under_way_is_given_up_when_the_run_stops():
    stop = threading.Event()

    def script(body):
        threading.Timer(0.7, stop.set).start()
        return Say("word " * 500, pause_s=0.05)

    with MessagesServer(script) as server:
        began = time.monotonic()
        with pytest.raises(Transient, match="stopped") as raised:
            model(server, stop=stop).reply(PROMPT, 1000)
    assert time.monotonic() - began < 8  # of 10
    assert raised.value.billed.output > 1


def test_blank_text_is_never_sent():
    with MessagesServer([Say("  ", [("read", {"path": "a"})]), Say("ok")]) as server:
        claude = model(server)
        reply = claude.reply(PROMPT, 1000)
        assert (
            claude.reply(after(PROMPT, reply, ToolResult(reply.calls[0].id, "")), 1000).text == "ok"
        )


def test_a_usable_model_passes_its_check_at_no_cost():
    with MessagesServer() as server:
        model(server).check()
    assert [request.method for request in server.requests] == ["GET"]


def test_a_wrong_key_is_one_line_without_the_key():
    with MessagesServer(key="another") as server, pytest.raises(ModelUnusable) as raised:
        model(server).check()
    assert "does not accept the key (401: invalid key: Bearer [key]): set ANTHROPIC_API_KEY" in str(
        raised.value
    )
    assert KEY not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_key_is_asked_for(monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with MessagesServer() as server:
        with pytest.raises(
            ModelUnusable, match=r"asks for a key \(401: .*\): set ANTHROPIC_API_KEY"
        ):
            model(server, key=None).check()


def test_a_wrong_model_is_told_with_those_that_there_are():
    with MessagesServer(models=["claude-haiku-5-5"]) as server:
        with pytest.raises(ModelUnusable, match=f"has no {NAME}.*--model, as claude-haiku-5-5"):
            model(server).check()


def test_a_dead_endpoint_is_told():
    with MessagesServer() as server:
        url = server.url
    with pytest.raises(ModelUnusable, match=f"no answer from {url}: .*refused"):
        MessagesModel(NAME, url, key=KEY).check()


def test_a_server_without_a_list_is_asked_for_a_word():
    with MessagesServer([Say("Yes."), Fail(404, "no such model")], models=None) as server:
        model(server).check()
        with pytest.raises(ModelUnusable, match="no such model"):
            model(server).check()


def test_a_busy_server_is_not_an_unusable_model():
    with MessagesServer([Fail(529)], models=None) as server:
        model(server).check()
    assert len(server.bodies) == 1


def test_an_error_never_tells_the_key():
    fail = Fail(400, f"header Bearer {KEY}\nis odd " + "x" * 500)
    with MessagesServer([fail]) as server, pytest.raises(Rejected) as raised:
        model(server).reply(PROMPT, 1000)
    said = str(raised.value)
    assert "[key]" in said
    assert KEY not in said
    assert "\n" not in said
    assert len(said) < 400


def test_the_key_lives_in_the_client_alone():
    claude = MessagesModel(NAME, "http://127.0.0.1:9", key=KEY)
    assert KEY not in repr(claude) + repr({k: v for k, v in vars(claude).items() if k != "_client"})


def test_a_retired_model_is_told():
    class Later(MessagesServer):
        def _model(self, name):
            return super()._model(name) | {"lifecycle": "retired"}

    with Later() as server, pytest.raises(ModelUnusable, match=f"{NAME} is retired"):
        model(server).check()


def workshop(tmp_path, settings):
    """What a proposer is created with; nothing is judged here."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    screen, stop = Plain(io.StringIO()), threading.Event()
    unused: Any = None
    return Workshop(
        settings, "night", "start", tmp_path, ledger, unused, unused, Machine("cpu"), screen, stop
    )


def test_the_proposer_starts_with_the_default_model(tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with MessagesServer() as server:
        made = create(workshop(tmp_path, Settings(base_url=server.url)))
    assert (made.name, made.ahead) == ("anthropic", 1)
    assert server.requests[0].path == f"/v1/models/{DEFAULT_MODEL}"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings(models=("claude-opus-9",)), r"--price claude-opus-9=IN/OUT"),
        (Settings(models=("claude-opus-9",), prices=("claude-opus-9=1/2",)), r"--model, as"),
        (Settings(prices=("claude",)), r"--price claude: expected"),
    ],
)
def test_what_cannot_start_is_one_line(settings, said, tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with MessagesServer() as server, pytest.raises(Unusable, match=said) as raised:
        create(workshop(tmp_path, replace(settings, base_url=server.url)))
    assert "\n" not in str(raised.value)


def test_importing_the_proposer_does_not_import_the_sdk():
    code = "import sys, agent.proposers.anthropic, agent.proposers.openai; print(*sys.modules)"
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert not {"anthropic", "httpx2", "torch"} & set(done.stdout.split())
