"""The Messages API through the official SDK, on a loopback server: what goes out, what comes back, and what it alone has."""

import io
import threading
from dataclasses import replace
from typing import Any

import pytest
from conversation import PROMPT, READ, TWO_FILES, after, two_files
from model_servers import KEY, Fail, MessagesServer, Say

from agent.lab import Unusable
from agent.ledger import Ledger
from agent.machine import Machine
from agent.proposers import Workshop
from agent.proposers.anthropic import DEFAULT_MODEL, MessagesModel, create
from agent.records import Settings, Usage
from agent.research import messages_wire
from agent.research.messages import (
    CUT,
    END,
    MAX_TOKENS,
    REFUSAL,
    TOOLS,
    ModelUnusable,
    Reply,
    ToolCall,
    ToolResult,
)
from agent.screen import Plain

NAME = "claude-opus-5-5"


def model(server, **more):
    return MessagesModel(NAME, server.url, **{"key": KEY} | more)


def test_thoughts_calls_and_results_go_back_as_they_came():
    with MessagesServer(TWO_FILES) as server:
        two_files(model(server))
    _, said, told = server.bodies[1]["messages"]
    assert [block["type"] for block in said["content"]] == ["thinking", "text", *2 * ["tool_use"]]
    thought = {"type": "thinking", "thinking": "Which of them?", "signature": "signed:14"}
    assert said["content"][0] == thought
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


def test_the_cache_is_marked_before_what_changes_with_the_incumbent_and_where_the_last_request_ended():
    reply = Reply("", (ToolCall("1", "read", {"path": "a"}),), Usage(), TOOLS)
    prompt = replace(PROMPT, system=("rules", "contracts", "sources"))
    body = messages_wire.body(after(prompt, reply, ToolResult("1", "A")))
    turns = [[*message["content"]] for message in body["messages"]]
    marked = [["cache_control" in block for block in blocks] for blocks in (body["system"], *turns)]
    assert marked == [[False, True, True], [True], [False], [True]]


def test_the_count_is_what_the_server_bills():
    with MessagesServer([Say("a")]) as server:
        claude = model(server)
        counted, usage = claude.count(PROMPT), claude.reply(PROMPT, 1000).usage
    assert counted == pytest.approx(usage.input + usage.cache_read + usage.cache_write, rel=0.05)


def test_a_server_that_does_not_count_is_asked_to_once():
    with MessagesServer([Say("a")], counts=False) as server:
        claude = model(server)
        claude.count(PROMPT)
        claude.reply(PROMPT, 1000)
        claude.count(PROMPT)
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


def test_a_stream_of_events_out_of_order_is_an_answer_that_was_cut():
    class Odd(MessagesServer):
        def events(self, say, body):
            start, *others = super().events(say, body)
            return [start, *(event for event in others if event[0] != "content_block_start")]

    with Odd([Say("word " * 20)]) as server:
        assert model(server).reply(PROMPT, 1000).stop == CUT


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


def test_a_server_without_a_list_is_asked_for_a_word():
    with MessagesServer([Say("Yes."), Fail(404, "no such model")], models=None) as server:
        model(server).check()
        with pytest.raises(ModelUnusable, match="no such model"):
            model(server).check()


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
        settings, "night", tmp_path, ledger, unused, unused, Machine("cpu"), screen, stop
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
        (Settings(models=("claude-opus-9",), prices=("claude-opus-9=1/2",)), r"--model, such as"),
        (Settings(prices=("claude",)), r"--price claude: expected"),
    ],
)
def test_what_cannot_start_is_one_line(settings, said, tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with MessagesServer() as server, pytest.raises(Unusable, match=said) as raised:
        create(workshop(tmp_path, replace(settings, base_url=server.url)))
    assert "\n" not in str(raised.value)


def test_a_page_in_place_of_a_count_is_an_estimate_until_a_count_comes():
    class Gateway(MessagesServer):
        pages = 1

        def post(self, path, body):
            if path.endswith("count_tokens") and self.pages:
                self.pages -= 1
                return 200, "<html>we will be back soon</html>"
            return super().post(path, body)

    with Gateway() as server:
        claude = model(server)
        estimated = claude.count(PROMPT)
        assert 0 < claude.count(PROMPT) < estimated
