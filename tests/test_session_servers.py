"""A research session survives what servers do, and pays once for what it got."""

from __future__ import annotations

import threading
import time

import pytest
from research_lab import PATH, Setting, edit, ends_with_nothing, read, submit
from scripted_model import Move, Scripted, call, calls

from agent.proposers import Stopped
from agent.records import Usage
from agent.research.messages import (
    Prompt,
    Rejected,
    Reply,
    Transient,
)


def test_a_busy_server_is_asked_again_and_only_the_answer_is_paid(setting: Setting) -> None:
    busy = Transient("429 too many requests", retry_after=0.02)
    model = Scripted([busy, read(), busy, busy, edit(), submit()])
    made = setting.session(model)
    made.run()
    assert made.turns == 3
    assert setting.ledger.accounts.calls("r").count == 6
    assert setting.ledger.accounts.calls("r").usd == pytest.approx(made.cost_usd)
    assert "429 too many requests; trying again" in setting.screen.lines[0]


def test_what_a_cut_stream_billed_is_paid(setting: Setting) -> None:
    cut = Transient("the stream ended", 0.01, billed=Usage(input=1_000_000, output=100_000))
    made = setting.session(Scripted([cut, edit(), submit()]))
    made.run()
    assert made.cost_usd > 6.0
    assert setting.ledger.accounts.calls("r").usd == pytest.approx(made.cost_usd)


def test_stop_ends_a_session_that_waits_for_a_server(setting: Setting) -> None:
    threading.Timer(0.2, setting.workshop.stop.set).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        setting.session(Scripted([read(), Transient("529 overloaded", retry_after=600)])).run()
    assert time.monotonic() - began < 60
    assert setting.ledger.accounts.calls("r").in_flight_usd == 0


def test_stop_ends_a_session_between_two_calls_of_a_tool(setting: Setting) -> None:
    def stop(prompt: Prompt) -> Reply:
        setting.workshop.stop.set()
        return calls(call("check"), call("check"))

    with pytest.raises(Stopped):
        setting.session(Scripted([edit(), stop])).run()
    assert "build" not in setting.rules.calls


def test_a_request_that_is_rejected_ends_the_session_with_the_reason(setting: Setting) -> None:
    nothing = ends_with_nothing(
        setting.session(Scripted([read(), Rejected("400: messages.1: bad")]))
    )
    assert nothing.reason == "scripted rejects the request: 400: messages.1: bad"
    assert nothing.model == "scripted"
    assert nothing.cost_usd == pytest.approx(setting.ledger.accounts.calls("r").usd)
    assert nothing.cost_usd > 0
    assert nothing.tokens_in > 0
    assert setting.ledger.accounts.calls("r").in_flight_usd == 0


def test_what_a_refused_request_used_is_counted(setting: Setting) -> None:
    refused = Rejected("400: cut off", Usage(input=4_000, output=500))
    free = ends_with_nothing(setting.session(Scripted([read(), Rejected("400: messages.1: bad")])))
    billed = ends_with_nothing(setting.session(Scripted([read(), refused])))
    assert billed.tokens_out - free.tokens_out == 500
    assert billed.cost_usd > free.cost_usd
    assert setting.ledger.accounts.calls("r").usd == pytest.approx(free.cost_usd + billed.cost_usd)


def test_a_refusal_that_names_a_smaller_window_is_asked_again_within_it(setting: Setting) -> None:
    (setting.context.incumbent / "kernels/fat.py").write_text("x = 1\n" * 1500)

    def narrow(prompt: Prompt) -> Move:
        model.window = 20_000
        return Rejected("400: maximum context length is 20000 tokens")

    fat = [calls(call("read", path="kernels/fat.py"), text=f"step {n}") for n in range(8)]
    model = Scripted([*fat, narrow, edit(), submit()])
    assert PATH in setting.session(model).run().files
    before, again = model.prompts[8:10]
    assert model.count(before) > 20_000 > model.count(again)


def test_a_request_that_dies_in_an_unknown_way_stays_in_the_purse_at_its_most(
    setting: Setting,
) -> None:
    def interrupted(prompt: Prompt) -> Move:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        setting.session(Scripted([read(), interrupted])).run()
    assert setting.ledger.accounts.calls("r").in_flight_usd > 8_000 * 20 / 1e6


def test_a_request_of_which_nobody_knows_the_cost_stays_at_its_most(setting: Setting) -> None:
    silent = Transient("timed out", 0.01, unknown=True)
    made = setting.session(Scripted([silent, edit(), submit()]))
    made.run()
    calls = setting.ledger.accounts.calls("r")
    assert calls.in_flight_usd > 0
    assert calls.usd == pytest.approx(made.cost_usd + calls.in_flight_usd)


def test_answers_that_break_off_again_and_again_are_not_paid_for_ever(setting: Setting) -> None:
    cut = Transient("the stream ended", 0.001, billed=Usage(input=1_000, output=100))
    model = Scripted([read(), *[cut] * 20])
    nothing = ends_with_nothing(setting.session(model))
    assert "6 answers in a row broke off" in nothing.reason
    assert len(model.prompts) == 7
    assert nothing.cost_usd == pytest.approx(setting.ledger.accounts.calls("r").usd)
