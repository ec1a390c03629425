"""A research session goes from reading to a submission, mends what a gate refuses, survives what models and servers do, and loses no money."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from lab_tree import CPP
from research_lab import PATH, REFUSED, Setting, edit, ends_with_nothing, read, submit
from scripted_model import Scripted, call, calls, last, malformed, says, texts

from agent.proposers import NoProposal, Stopped
from agent.research import wire
from agent.research.messages import (
    CUT,
    END,
    MAX_TOKENS,
    REFUSAL,
    ModelUnusable,
    Reply,
    Results,
)
from agent.research.tools import Submission, ToolLimits
from bench.finding import Finding


def test_a_session_reads_edits_checks_and_submits(setting: Setting) -> None:
    model = Scripted([read(), edit(), calls(call("check")), calls(call("diff")), submit()])
    made = setting.session(model)
    submission = made.run()
    assert submission.files == {PATH: CPP.replace("kRows = 1", "kRows = 4")}
    assert submission.hypothesis == "four rows a block hide the latency"
    assert (submission.expected, submission.op) == ("scale twice as fast", "scale")
    assert made.turns == 5
    assert "constexpr int kRows = 1;" in last(model.prompts[1])
    assert "+constexpr int kRows = 4;" in last(model.prompts[4])
    assert {"build", "correctness"} <= set(setting.rules.calls)


def test_what_was_said_before_is_sent_again_unchanged(setting: Setting) -> None:
    model = Scripted([read(), edit(), calls(call("diff")), submit()])
    setting.session(model).run()
    for earlier, later in zip(model.prompts, model.prompts[1:], strict=False):
        assert later.turns[: len(earlier.turns)] == earlier.turns
        assert (later.system, later.tools) == (earlier.system, earlier.tools)


def test_the_provider_s_own_content_goes_back_as_it_came(setting: Setting) -> None:
    raw = [{"type": "thinking", "thinking": "hm", "signature": "c2ln"}]
    model = Scripted([replace(read(), raw=raw), edit(), submit()])
    setting.session(model).run()
    reply = model.prompts[-1].turns[1]
    assert isinstance(reply, Reply)
    assert reply.raw is raw


def test_calls_side_by_side_are_all_answered_in_order(setting: Setting) -> None:
    both = calls(call("read", path=PATH), call("read", path="kernels/scale.py"))
    model = Scripted([both, edit(), submit()])
    setting.session(model).run()
    answers = model.prompts[1].turns[-1]
    assert isinstance(answers, Results)
    assert "kRows" in answers.results[0].text
    assert "def scale" in answers.results[1].text


def test_an_unknown_tool_is_answered_with_the_tools_there_are(setting: Setting) -> None:
    model = Scripted([calls(call("shell", command="ls")), edit(), submit()])
    setting.session(model).run()
    assert "shell" in last(model.prompts[1])
    assert "submit" in last(model.prompts[1])


def test_the_money_of_a_session_is_in_the_ledger_and_in_the_session(setting: Setting) -> None:
    made = setting.session(Scripted([read(), edit(), submit()]))
    made.run()
    totals = setting.ledger.accounts.calls("r")
    assert totals.count == 3
    assert totals.in_flight_usd == 0
    assert made.cost_usd == pytest.approx(totals.usd)
    assert totals.usd > 0
    assert made.tokens_in == totals.tokens_in + totals.cache_read + totals.cache_write
    assert made.tokens_out == totals.tokens_out


def test_a_model_that_never_submits_is_reminded_and_then_ended(setting: Setting) -> None:
    model = Scripted([read() for _ in range(12)])
    nothing = ends_with_nothing(setting.session(model, turns=12))
    assert nothing.reason == "nothing was submitted in 12 turns"
    told = [last(prompt) for prompt in model.prompts]
    assert ["turns are left" in each for each in told].index(True) == 7
    assert "5 turns are left in this session. Call `submit`" in told[7]
    assert "One turn is left" in told[11]
    assert sum("left in this session" in each for each in told) == 2


def test_text_without_a_call_is_reminded_once_and_twice_in_a_row_is_the_end(
    setting: Setting,
) -> None:
    model = Scripted([says("Let me think."), read(), says("I think it is optimal."), says("Done.")])
    nothing = ends_with_nothing(setting.session(model))
    assert "without a tool call: 'Done.'" in nothing.reason
    assert "a second such answer in a row ends the session" in last(model.prompts[1])
    assert "Let me think." in texts(model.prompts[-1])


def test_empty_answers_end_a_session_and_are_never_sent_back(setting: Setting) -> None:
    model = Scripted([says(""), read(), says("  \n"), says("")])
    assert "both empty" in ends_with_nothing(setting.session(model)).reason
    assert len(model.prompts) == 4


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (calls(call("read", path=PATH), stop=MAX_TOKENS), "limit of its length"),
        (says("I was about to", CUT), "broke off"),
        (says("", CUT), "broke off"),
        (says("I cannot help with that.", REFUSAL), "declined"),
        (says("", REFUSAL), "declined"),
        (calls(malformed("edit", "Expecting ',' at character 40")), "character 40"),
        (calls(call("read", path=PATH), malformed("write", "not an object")), "`write`: not an"),
    ],
)
def test_an_unusable_reply_is_answered_and_is_no_part_of_what_follows(
    setting: Setting, reply: Reply, said: str
) -> None:
    model = Scripted([reply, edit(), submit()])
    made = setting.session(model)
    made.run()
    assert said in last(model.prompts[1])
    assert "Nothing of that answer was carried out" in last(model.prompts[1])
    assert reply not in model.prompts[-1].turns
    assert setting.ledger.accounts.calls("r").count == 3  # it was paid for


def test_the_fourth_unusable_reply_is_the_end(setting: Setting) -> None:
    bad = [says("", CUT), says("", REFUSAL), calls(malformed("edit", "no")), says("x", MAX_TOKENS)]
    nothing = ends_with_nothing(
        setting.session(Scripted([read(), bad[0], edit(), *bad[1:], submit()]))
    )
    assert "4 unusable answers, the last: Your answer reached the limit" in nothing.reason
    assert nothing.cost_usd == pytest.approx(setting.ledger.accounts.calls("r").usd)
    assert nothing.cost_usd > 0


def test_a_reply_that_says_end_and_calls_is_carried_out(setting: Setting) -> None:
    model = Scripted([replace(read(), stop=END), replace(edit(), stop=END), submit()])
    assert PATH in setting.session(model).run().files


def test_two_hundred_fat_results_stay_below_the_bound_and_still_end_in_a_submission(
    setting: Setting,
) -> None:
    (setting.context.incumbent / "kernels/fat.py").write_text(
        "".join(f"x_{n} = {n}\n" for n in range(900))
    )
    fat = [calls(call("read", path="kernels/fat.py"), text=f"step {n}") for n in range(199)]
    model = Scripted([*fat, edit(), submit()], window=40_000, max_output=4_000)
    often = ToolLimits(calls=dict.fromkeys(ToolLimits().calls, 300))
    assert PATH in setting.session(model, often, turns=220).run().files
    assert all(len(last(prompt)) > 10_000 for prompt in model.prompts[1:200])
    sizes = [model.count(prompt) for prompt in model.prompts]
    assert max(sizes) <= 0.7 * 40_000
    assert all(prompt.turns[0] == model.prompts[0].turns[0] for prompt in model.prompts)
    assert (
        setting.ledger.accounts.calls("r").cache_read > setting.ledger.accounts.calls("r").tokens_in
    )


def test_results_too_long_for_a_small_window_are_cut_and_say_so(setting: Setting) -> None:
    (setting.context.incumbent / "kernels/fat.py").write_text("x = 1\n" * 1500)
    model = Scripted([calls(call("read", path="kernels/fat.py")), edit(), submit()], window=9_000)
    setting.session(model).run()
    assert "more characters than fit in one turn" in last(model.prompts[1])


def test_a_task_too_long_for_a_model_says_to_use_another(setting: Setting) -> None:
    with pytest.raises(ModelUnusable, match="use a model with a longer context"):
        setting.session(Scripted([read()], window=1_000)).run()
    assert setting.ledger.accounts.calls("r").count == 0


def test_an_answer_gets_no_more_room_than_the_window_leaves(setting: Setting) -> None:
    model = Scripted([edit(), submit()], window=12_000, max_output=11_000)
    setting.session(model).run()
    assert model.rooms[0] < 12_000 - model.count(model.prompts[0])


def test_a_refusal_comes_back_as_the_answer_to_the_submission(setting: Setting) -> None:
    again = calls(call("edit", path=PATH, old="kRows = 2;", new="kRows = 4;"))
    model = Scripted([edit(2), submit(), again, submit("mended")])
    made = setting.session(model)
    made.run()
    before = made.cost_usd
    mended = made.repair(REFUSED)
    assert isinstance(mended, Submission)
    assert mended.hypothesis == "mended"
    assert mended.files == {PATH: CPP.replace("kRows = 1", "kRows = 4")}
    assert "Refused by the gate `build`: scale.cpp:3: error: cannot unroll" in last(
        model.prompts[2]
    )
    assert model.prompts[2].turns[: len(model.prompts[1].turns)] == model.prompts[1].turns
    assert made.cost_usd > before


def test_a_submission_among_other_calls_can_be_mended(setting: Setting) -> None:
    (change,), (end,) = edit().calls, submit().calls
    model = Scripted([calls(change, end, call("diff")), submit("mended")])
    made = setting.session(model)
    made.run()
    assert made.repair(REFUSED) is not None
    answers = model.prompts[1].turns[-1]
    assert isinstance(answers, Results)
    assert [each.is_error for each in answers.results] == [False, True, True]
    assert "it came after a submission" in answers.results[2].text


def test_after_two_repairs_it_is_given_up(setting: Setting) -> None:
    made = setting.session(Scripted([edit(), submit(), submit(), submit()]))
    made.run()
    assert [made.repair(REFUSED) is None for _ in range(3)] == [False, False, True]
    assert made.turns == 4


def test_a_repair_has_the_turns_that_are_left_and_no_more(setting: Setting) -> None:
    made = setting.session(Scripted([edit(), submit(), read(), read()]), turns=4)
    made.run()
    with pytest.raises(NoProposal, match="in 4 turns"):
        made.repair(REFUSED)
    assert made.repair(REFUSED) is None


def test_a_check_under_way_ends_with_the_run(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = setting.rules.build

    def build(*given: Any) -> Any:
        setting.workshop.stop.set()
        return built(*given)

    monkeypatch.setattr(setting.rules, "build", build)
    with pytest.raises(Stopped):
        setting.session(Scripted([edit(), calls(call("check"))])).run()
    assert "correctness" not in setting.rules.calls


def test_half_a_character_in_a_candidate_s_last_words_ends_no_session(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Finding(False, "RuntimeError: \ud83d")
    monkeypatch.setattr(setting.rules, "correctness", lambda op, tree: wrong)
    model = Scripted([edit(), calls(call("check")), submit(), submit()])
    made = setting.session(model)
    made.run()
    made.repair(replace(REFUSED, reason="RuntimeError: \ud83d"))
    for prompt in model.prompts:
        assert wire.size(texts(prompt))
