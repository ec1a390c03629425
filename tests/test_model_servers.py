"""One script drives either provider through a whole session: trouble on the wire, trouble of the model, a submission and its repair."""

import threading
import time

import pytest
from model_servers import KEY, ChatServer, Fail, MessagesServer, Say

from agent.ledger import Ledger
from agent.prices import price_of
from agent.proposers.anthropic import MessagesModel
from agent.proposers.openai import ChatModel
from agent.records import GateResult, Run, Settings
from agent.research.messages import Tool, ToolResult
from agent.research.patience import Patience
from agent.research.session import Session
from agent.research.tools import Submission
from agent.spending import Limits, Purse

RUN = "night"
SOON = {"retry-after-ms": "50"}
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}}


class Desk:
    """Two tools: what is looked up is found, what is submitted is the proposal."""

    tools = (Tool("look", "Look something up.", SCHEMA), Tool("submit", "Propose.", SCHEMA))

    def call(self, call):
        if call.name == "look":
            return ToolResult(call.id, f"{call.arguments['text']} stands here\n" * 20)
        return Submission(call.arguments["text"], "faster", "scale", {"kernels/scale.py": "x"})


@pytest.mark.parametrize(
    ("server_of", "model_of", "name", "limit"),
    [
        (MessagesServer, MessagesModel, "claude-opus-5-5", "max_tokens"),
        (ChatServer, ChatModel, "gpt-6-sol", "length"),
    ],
    ids=["messages", "chat"],
)
def test_a_session_survives_what_a_wire_and_a_model_can_do(
    server_of, model_of, name, limit, tmp_path, monkeypatch
):
    monkeypatch.setattr("agent.research.patience.FIRST_S", 0.05)
    script = [
        Fail(529, headers=SOON),
        Fail(429, headers=SOON),
        Say("word " * 20, cut_after=7),
        Say("", [("look", {"text": "scale"}), ("look", {"text": "norm"})], thinking="What is there?"),
        Say("", [("look", '{"text": nope}')]),
        Say("", [("look", '{"text": "half of a l')], stop=limit),
        Say("word " * 20, cut_after=8, cut="end"),
        Say("I would rather talk."),
        Say("", [("submit", {"text": "unroll"})]),
        Fail(503, headers=SOON),
        Say("", [("submit", {"text": "unroll, with a mask"})]),
    ]  # fmt: skip
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.start_run(Run(RUN, Settings(), "base", "start", "start", time.time()))
    purse, said = Purse(ledger.accounts, RUN, {name: price_of(name)}, Limits(usd=100.0)), []
    with server_of(script) as server:
        model = model_of(name, server.url, key=KEY)
        patience = Patience(threading.Event(), said.append)
        system = ("You make kernels fast.", "def scale(x): return 2 * x\n" * 40)
        session = Session(model, Desk(), purse, patience, system, "Begin.")
        assert session.run().hypothesis == "unroll"
        mended = session.repair(GateResult("static", False, "the mask is missing", {}, 0.1))
        assert mended.hypothesis == "unroll, with a mask"
        assert len(server.bodies) == len(script)
    assert "529" in said[0]
    totals = ledger.accounts.calls(RUN)
    assert (totals.count, totals.in_flight_usd) == (len(script), 0)
    assert session.cost_usd == pytest.approx(totals.usd)
    assert totals.cache_read > 200
    assert session.tokens_out == totals.tokens_out > 20
