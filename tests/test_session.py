"""A research session goes from reading to a submission, mends what a gate refuses, survives what models and servers do, and loses no money."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from lab_tree import CPP, PY, Rules, Transcript, make, past
from scripted_model import Move, Scripted, call, calls, last, malformed, says, texts

from agent.lab import Lab, Unusable
from agent.ledger import Ledger
from agent.machine import Machine
from agent.prices import Price
from agent.proposers import Context, NoProposal, Stopped, Workshop
from agent.records import DROP, GateResult, Outcome, Proposal, Run, Settings, Usage
from agent.research import wire
from agent.research.draft import Draft
from agent.research.messages import (
    CUT,
    END,
    MAX_TOKENS,
    REFUSAL,
    ModelUnusable,
    Prompt,
    Rejected,
    Reply,
    Results,
    Transient,
)
from agent.research.patience import Patience
from agent.research.researcher import Researcher
from agent.research.session import Bounds, Session
from agent.research.tools import Submission, Toolbox, ToolLimits
from agent.spending import BudgetSpent, Limits, Purse
from bench.finding import Finding

PATH = "csrc/scale.cpp"
REFUSED = GateResult("build", False, "scale.cpp:3: error: cannot unroll", {}, 0.1)


@dataclass
class Setting:
    """A lab around a small checkout, with all that a session is given."""

    workshop: Workshop
    context: Context
    screen: Transcript
    rules: Rules

    @property
    def ledger(self) -> Ledger:
        return self.workshop.ledger

    def session(self, model: Scripted, limits: ToolLimits | None = None, **bounds: Any) -> Session:
        draft = Draft(self.context.incumbent, self.workshop.folder, "kernels", None)
        toolbox = Toolbox(draft, self.workshop, self.context, limits)
        purse = Purse(self.ledger.accounts, "r", {"scripted": Price(4.0, 20.0, 0.4, 5.0)}, Limits())
        patience = Patience(self.workshop.stop, self.screen.say)
        return Session(
            model, toolbox, purse, patience, ("Rules.",), "Make scale faster.", Bounds(**bounds),
        )  # fmt: skip

    def researcher(self, *models: Scripted, **settings: Any) -> Researcher:
        prices = tuple(f"{model.name}=4/20/0.4/5" for model in models)
        settings = {"prices": prices} | settings
        asked = replace(self.workshop.settings, **settings)
        return Researcher("scripted", replace(self.workshop, settings=asked), models)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Setting]:
    home = Lab(make(tmp_path / "checkout"))
    repository, ledger = home.repository(), home.ledger()
    commit = repository.resolve("HEAD")
    settings = Settings(device="cpu")
    ledger.start_run(Run("r", settings, commit, commit, commit, time.time()))
    folder = tmp_path / "scratch"
    folder.mkdir()
    screen, rules = Transcript(), Rules()
    workshop = Workshop(
        settings=settings, run="r", folder=folder, ledger=ledger, repository=repository,
        judge=rules, machine=Machine("cpu"), screen=screen, stop=threading.Event(),
    )  # fmt: skip
    context = Context(
        run="r", commit=commit, incumbent=home.root, target="kernels", op=None, device="cpu", seed=0,
        agenda="Fuse what is bound by memory.",
    )  # fmt: skip
    yield Setting(workshop, context, screen, rules)
    ledger.close()


def read() -> Reply:
    return calls(call("read", path=PATH))


def edit(rows: int = 4) -> Reply:
    return calls(call("edit", path=PATH, old="kRows = 1;", new=f"kRows = {rows};"))


def submit(hypothesis: str = "four rows a block hide the latency") -> Reply:
    return calls(call("submit", hypothesis=hypothesis, expected="scale twice as fast", op="scale"))


def ends_with_nothing(made: Session) -> NoProposal:
    with pytest.raises(NoProposal) as caught:
        made.run()
    return caught.value


# ---- from reading to a submission


def test_a_session_reads_edits_checks_and_submits(lab: Setting) -> None:
    model = Scripted([read(), edit(), calls(call("check")), calls(call("diff")), submit()])
    made = lab.session(model)
    submission = made.run()
    assert submission.files == {PATH: CPP.replace("kRows = 1", "kRows = 4")}
    assert submission.hypothesis == "four rows a block hide the latency"
    assert (submission.expected, submission.op) == ("scale twice as fast", "scale")
    assert made.turns == 5
    assert "constexpr int kRows = 1;" in last(model.prompts[1])
    assert "+constexpr int kRows = 4;" in last(model.prompts[4])
    assert {"build", "correctness"} <= set(lab.rules.calls)


def test_what_was_said_before_is_sent_again_unchanged(lab: Setting) -> None:
    model = Scripted([read(), edit(), calls(call("diff")), submit()])
    lab.session(model).run()
    for earlier, later in zip(model.prompts, model.prompts[1:], strict=False):
        assert later.turns[: len(earlier.turns)] == earlier.turns
        assert (later.system, later.tools) == (earlier.system, earlier.tools)


def test_the_provider_s_own_content_goes_back_as_it_came(lab: Setting) -> None:
    raw = [{"type": "thinking", "thinking": "hm", "signature": "c2ln"}]
    model = Scripted([replace(read(), raw=raw), edit(), submit()])
    lab.session(model).run()
    reply = model.prompts[-1].turns[1]
    assert isinstance(reply, Reply)
    assert reply.raw is raw


def test_calls_side_by_side_are_all_answered_in_order(lab: Setting) -> None:
    both = calls(call("read", path=PATH), call("read", path="kernels/scale.py"))
    model = Scripted([both, edit(), submit()])
    lab.session(model).run()
    answers = model.prompts[1].turns[-1]
    assert isinstance(answers, Results)
    assert "kRows" in answers.results[0].text
    assert "def scale" in answers.results[1].text


def test_an_unknown_tool_is_answered_with_the_tools_there_are(lab: Setting) -> None:
    model = Scripted([calls(call("shell", command="ls")), edit(), submit()])
    lab.session(model).run()
    assert "shell" in last(model.prompts[1])
    assert "submit" in last(model.prompts[1])


def test_the_money_of_a_session_is_in_the_ledger_and_in_the_session(lab: Setting) -> None:
    made = lab.session(Scripted([read(), edit(), submit()]))
    made.run()
    totals = lab.ledger.accounts.calls("r")
    assert totals.count == 3
    assert totals.in_flight_usd == 0
    assert made.cost_usd == pytest.approx(totals.usd)
    assert totals.usd > 0
    assert made.tokens_in == totals.tokens_in + totals.cache_read + totals.cache_write
    assert made.tokens_out == totals.tokens_out


# ---- turns


def test_a_model_that_never_submits_is_reminded_and_then_ended(lab: Setting) -> None:
    model = Scripted([read() for _ in range(12)])
    nothing = ends_with_nothing(lab.session(model, turns=12))
    assert nothing.reason == "nothing was submitted in 12 turns"
    told = [last(prompt) for prompt in model.prompts]
    assert ["turns are left" in each for each in told].index(True) == 7
    assert "5 turns are left in this session. Call `submit`" in told[7]
    assert "One turn is left" in told[11]
    assert sum("left in this session" in each for each in told) == 2


def test_text_without_a_call_is_reminded_once_and_twice_in_a_row_is_the_end(lab: Setting) -> None:
    model = Scripted([says("Let me think."), read(), says("I think it is optimal."), says("Done.")])
    nothing = ends_with_nothing(lab.session(model))
    assert "without a tool call: 'Done.'" in nothing.reason
    assert "a second such answer in a row ends the session" in last(model.prompts[1])
    assert "Let me think." in texts(model.prompts[-1])


def test_empty_answers_end_a_session_and_are_never_sent_back(lab: Setting) -> None:
    model = Scripted([says(""), read(), says("  \n"), says("")])
    assert "both empty" in ends_with_nothing(lab.session(model)).reason
    assert len(model.prompts) == 4


# ---- replies that cannot be used


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
    lab: Setting, reply: Reply, said: str
) -> None:
    model = Scripted([reply, edit(), submit()])
    made = lab.session(model)
    made.run()
    assert said in last(model.prompts[1])
    assert "Nothing of that answer was carried out" in last(model.prompts[1])
    assert reply not in model.prompts[-1].turns
    assert lab.ledger.accounts.calls("r").count == 3  # it was paid for


def test_the_fourth_unusable_reply_is_the_end(lab: Setting) -> None:
    bad = [says("", CUT), says("", REFUSAL), calls(malformed("edit", "no")), says("x", MAX_TOKENS)]
    nothing = ends_with_nothing(lab.session(Scripted([read(), bad[0], edit(), *bad[1:], submit()])))
    assert "4 unusable answers, the last: Your answer reached the limit" in nothing.reason
    assert nothing.cost_usd == pytest.approx(lab.ledger.accounts.calls("r").usd)
    assert nothing.cost_usd > 0


def test_a_reply_that_says_end_and_calls_is_carried_out(lab: Setting) -> None:
    model = Scripted([replace(read(), stop=END), replace(edit(), stop=END), submit()])
    assert PATH in lab.session(model).run().files


# ---- servers


def test_a_busy_server_is_asked_again_and_only_the_answer_is_paid(lab: Setting) -> None:
    busy = Transient("429 too many requests", retry_after=0.02)
    model = Scripted([busy, read(), busy, busy, edit(), submit()])
    made = lab.session(model)
    made.run()
    assert made.turns == 3
    assert lab.ledger.accounts.calls("r").count == 6
    assert lab.ledger.accounts.calls("r").usd == pytest.approx(made.cost_usd)
    assert "429 too many requests; trying again" in lab.screen.lines[0]


def test_what_a_cut_stream_billed_is_paid(lab: Setting) -> None:
    cut = Transient("the stream ended", 0.01, billed=Usage(input=1_000_000, output=100_000))
    made = lab.session(Scripted([cut, edit(), submit()]))
    made.run()
    assert made.cost_usd > 6.0
    assert lab.ledger.accounts.calls("r").usd == pytest.approx(made.cost_usd)


def test_stop_ends_a_session_that_waits_for_a_server(lab: Setting) -> None:
    threading.Timer(0.2, lab.workshop.stop.set).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        lab.session(Scripted([read(), Transient("529 overloaded", retry_after=600)])).run()
    assert time.monotonic() - began < 60
    assert lab.ledger.accounts.calls("r").in_flight_usd == 0


def test_stop_ends_a_session_between_two_calls_of_a_tool(lab: Setting) -> None:
    def stop(prompt: Prompt) -> Reply:
        lab.workshop.stop.set()
        return calls(call("check"), call("check"))

    with pytest.raises(Stopped):
        lab.session(Scripted([edit(), stop])).run()
    assert "build" not in lab.rules.calls


def test_a_request_that_is_rejected_ends_the_session_with_the_reason(lab: Setting) -> None:
    nothing = ends_with_nothing(lab.session(Scripted([read(), Rejected("400: messages.1: bad")])))
    assert nothing.reason == "scripted rejects the request: 400: messages.1: bad"
    assert nothing.model == "scripted"
    assert nothing.cost_usd == pytest.approx(lab.ledger.accounts.calls("r").usd)
    assert nothing.cost_usd > 0
    assert nothing.tokens_in > 0
    assert lab.ledger.accounts.calls("r").in_flight_usd == 0


def test_what_a_refused_request_used_is_counted(lab: Setting) -> None:
    refused = Rejected("400: cut off", Usage(input=4_000, output=500))
    free = ends_with_nothing(lab.session(Scripted([read(), Rejected("400: messages.1: bad")])))
    billed = ends_with_nothing(lab.session(Scripted([read(), refused])))
    assert billed.tokens_out - free.tokens_out == 500
    assert billed.cost_usd > free.cost_usd
    assert lab.ledger.accounts.calls("r").usd == pytest.approx(free.cost_usd + billed.cost_usd)


def test_a_refusal_that_names_a_smaller_window_is_asked_again_within_it(lab: Setting) -> None:
    (lab.context.incumbent / "kernels/fat.py").write_text("x = 1\n" * 1500)

    def narrow(prompt: Prompt) -> Move:
        model.window = 20_000
        return Rejected("400: maximum context length is 20000 tokens")

    fat = [calls(call("read", path="kernels/fat.py"), text=f"step {n}") for n in range(8)]
    model = Scripted([*fat, narrow, edit(), submit()])
    assert PATH in lab.session(model).run().files
    before, again = model.prompts[8:10]
    assert model.count(before) > 20_000 > model.count(again)


def test_a_request_that_dies_in_an_unknown_way_stays_in_the_purse_at_its_most(lab: Setting) -> None:
    def interrupted(prompt: Prompt) -> Move:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab.session(Scripted([read(), interrupted])).run()
    assert lab.ledger.accounts.calls("r").in_flight_usd > 8_000 * 20 / 1e6


# ---- length


def test_two_hundred_fat_results_stay_below_the_bound_and_still_end_in_a_submission(
    lab: Setting,
) -> None:
    (lab.context.incumbent / "kernels/fat.py").write_text(
        "".join(f"x_{n} = {n}\n" for n in range(900))
    )
    fat = [calls(call("read", path="kernels/fat.py"), text=f"step {n}") for n in range(199)]
    model = Scripted([*fat, edit(), submit()], window=40_000, max_output=4_000)
    often = ToolLimits(calls=dict.fromkeys(ToolLimits().calls, 300))
    assert PATH in lab.session(model, often, turns=220).run().files
    assert all(len(last(prompt)) > 10_000 for prompt in model.prompts[1:200])
    sizes = [model.count(prompt) for prompt in model.prompts]
    assert max(sizes) <= 0.7 * 40_000
    assert all(prompt.turns[0] == model.prompts[0].turns[0] for prompt in model.prompts)
    assert lab.ledger.accounts.calls("r").cache_read > lab.ledger.accounts.calls("r").tokens_in


def test_results_too_long_for_a_small_window_are_cut_and_say_so(lab: Setting) -> None:
    (lab.context.incumbent / "kernels/fat.py").write_text("x = 1\n" * 1500)
    model = Scripted([calls(call("read", path="kernels/fat.py")), edit(), submit()], window=9_000)
    lab.session(model).run()
    assert "more characters than fit in one turn" in last(model.prompts[1])


def test_a_task_too_long_for_a_model_says_to_use_another(lab: Setting) -> None:
    with pytest.raises(ModelUnusable, match="use a model with a longer context"):
        lab.session(Scripted([read()], window=1_000)).run()
    assert lab.ledger.accounts.calls("r").count == 0


def test_an_answer_gets_no_more_room_than_the_window_leaves(lab: Setting) -> None:
    model = Scripted([edit(), submit()], window=12_000, max_output=11_000)
    lab.session(model).run()
    assert model.rooms[0] < 12_000 - model.count(model.prompts[0])


# ---- repairs


def test_a_refusal_comes_back_as_the_answer_to_the_submission(lab: Setting) -> None:
    again = calls(call("edit", path=PATH, old="kRows = 2;", new="kRows = 4;"))
    model = Scripted([edit(2), submit(), again, submit("mended")])
    made = lab.session(model)
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


def test_a_submission_among_other_calls_can_be_mended(lab: Setting) -> None:
    (change,), (end,) = edit().calls, submit().calls
    model = Scripted([calls(change, end, call("diff")), submit("mended")])
    made = lab.session(model)
    made.run()
    assert made.repair(REFUSED) is not None
    answers = model.prompts[1].turns[-1]
    assert isinstance(answers, Results)
    assert [each.is_error for each in answers.results] == [False, True, True]
    assert "it came after a submission" in answers.results[2].text


def test_after_two_repairs_it_is_given_up(lab: Setting) -> None:
    made = lab.session(Scripted([edit(), submit(), submit(), submit()]))
    made.run()
    assert [made.repair(REFUSED) is None for _ in range(3)] == [False, False, True]
    assert made.turns == 4


def test_a_repair_has_the_turns_that_are_left_and_no_more(lab: Setting) -> None:
    made = lab.session(Scripted([edit(), submit(), read(), read()]), turns=4)
    made.run()
    with pytest.raises(NoProposal, match="in 4 turns"):
        made.repair(REFUSED)
    assert made.repair(REFUSED) is None


# ---- the researcher


def test_a_proposal_carries_its_session_s_model_money_and_expectation(lab: Setting) -> None:
    proposal = lab.researcher(Scripted([read(), edit(), submit()])).propose(lab.context)
    assert (proposal.proposer, proposal.model) == ("scripted", "scripted")
    assert proposal.expected == "scale twice as fast"
    assert proposal.cost_usd == pytest.approx(lab.ledger.accounts.calls("r").usd)
    assert proposal.cost_usd > 0
    assert json.loads(json.dumps(proposal.notes)) == proposal.notes
    assert proposal.notes["turns"] == 3


def test_the_model_is_told_the_agenda_the_sources_and_where_the_time_goes(lab: Setting) -> None:
    model = Scripted([edit(), submit()])
    lab.researcher(model).propose(lab.context)
    read_first = "\n".join(texts(model.prompts[0]))
    assert "Fuse what is bound by memory." in read_first
    assert "constexpr int kRows = 1;" in read_first
    assert "50" in texts(model.prompts[0])[-1]


def test_the_prefix_leaves_room_to_work_in_a_small_window(lab: Setting) -> None:
    lab.context = replace(lab.context, agenda="Fuse. " * 20_000)
    small, large = (Scripted([edit(), submit()], window=window) for window in (24_000, 200_000))
    for model in (small, large):
        lab.researcher(model).propose(lab.context)
    assert small.count(small.prompts[0]) < 0.5 * 24_000
    assert small.count(small.prompts[0]) < large.count(large.prompts[0])


def test_the_step_is_profiled_once_for_an_incumbent(lab: Setting) -> None:
    mind = lab.researcher(Scripted([edit(), submit(), edit(), submit(), edit(), submit()]))
    mind.propose(lab.context)
    mind.propose(lab.context)
    assert lab.rules.calls.count("profile None") == 1
    mind.propose(replace(lab.context, commit="another"))
    assert lab.rules.calls.count("profile None") == 2


def test_a_refused_proposal_is_mended_in_its_own_session_with_the_money_so_far(
    lab: Setting,
) -> None:
    again = calls(call("edit", path=PATH, old="kRows = 2;", new="kRows = 4;"))
    mind = lab.researcher(Scripted([edit(2), submit(), again, submit("mended")]))
    first = mind.propose(lab.context)
    mended = mind.repair(first, REFUSED)
    assert mended is not None
    assert mended.files == {PATH: CPP.replace("kRows = 1", "kRows = 4")}
    assert mended.cost_usd == pytest.approx(lab.ledger.accounts.calls("r").usd)
    assert mended.cost_usd > first.cost_usd


def test_a_proposal_of_another_session_is_not_mended(lab: Setting) -> None:
    mind = lab.researcher(Scripted([edit(), submit(), edit(), submit()]))
    first = mind.propose(lab.context)
    mind.propose(lab.context)
    assert mind.repair(first, REFUSED) is None
    assert mind.repair(Proposal("by hand", {}, "scripted"), REFUSED) is None


def test_a_new_session_begins_with_the_incumbent_s_files(lab: Setting) -> None:
    mind = lab.researcher(Scripted([edit(8), submit(), edit(2), submit()]))
    mind.propose(lab.context)
    assert "kRows = 2;" in str(mind.propose(lab.context).files[PATH])


def test_a_budget_spent_before_the_first_call_ends_the_run(lab: Setting) -> None:
    with pytest.raises(BudgetSpent):
        lab.researcher(Scripted([read()]), usd=0.01).propose(lab.context)
    assert lab.ledger.accounts.calls("r").count == 0


def test_a_budget_spent_in_mid_session_leaves_its_money_in_a_row_and_then_ends_the_run(
    lab: Setting,
) -> None:
    dear = replace(read(), text="t" * 20_000)
    model = Scripted([dear] * 100, max_output=4_000)
    mind = lab.researcher(model, usd=0.5)
    with pytest.raises(NoProposal, match="the budget ended the session") as caught:
        mind.propose(lab.context)
    assert 1 < len(model.prompts) < 40
    assert 0 < caught.value.cost_usd <= 0.5
    assert lab.ledger.accounts.calls("r").usd == pytest.approx(caught.value.cost_usd)
    with pytest.raises(BudgetSpent):
        mind.propose(lab.context)
    assert lab.ledger.accounts.calls("r").usd == pytest.approx(caught.value.cost_usd)


def test_a_failed_session_s_money_is_carried_and_the_next_one_starts_afresh(lab: Setting) -> None:
    mind = lab.researcher(Scripted([read(), says("no"), says("no"), edit(), submit()]))
    with pytest.raises(NoProposal) as caught:
        mind.propose(lab.context)
    spent = lab.ledger.accounts.calls("r").usd
    assert caught.value.cost_usd == pytest.approx(spent)
    assert caught.value.cost_usd > 0
    assert (caught.value.tokens_in > 0, caught.value.tokens_out > 0) == (True, True)
    assert mind.propose(lab.context).cost_usd == pytest.approx(
        lab.ledger.accounts.calls("r").usd - spent
    )


def test_two_near_misses_that_merge_are_proposed_without_asking_a_model(lab: Setting) -> None:
    repository, base = lab.workshop.repository, lab.context.commit
    rows = {PATH: CPP.replace("kRows = 1", "kRows = 4")}
    fused = {"kernels/scale.py": PY.replace("x * factor", "factor * x")}
    near = Outcome(DROP, "not sure", speed=0.97, val_bpb=2.0, bpb_change=-0.001)
    history = [
        past(n, paths=(*files,), parent=base, commit=repository.commit(base, files, f"{n}"), outcome=near)
        for n, files in ((1, rows), (2, fused))
    ]  # fmt: skip
    mind = lab.researcher(Scripted([move for _ in range(40) for move in (edit(2), submit())]))
    made = [mind.propose(replace(lab.context, history=history, seed=seed)) for seed in range(12)]
    combined = [each for each in made if not each.model]
    assert 0 < len(combined) < 12
    assert combined[0].files == {**rows, **fused}
    assert combined[0].cost_usd == 0
    assert combined[0].notes == {"kind": "combine", "op": "scale", "parents": [1, 2]}
    assert mind.repair(combined[0], REFUSED) is None


def test_a_model_that_becomes_unusable_is_left_alone_while_another_works(lab: Setting) -> None:
    dead = Scripted([ModelUnusable("401: the key is not valid")] * 9, name="a")
    alive = Scripted([move for _ in range(9) for move in (edit(), submit())], name="b")
    mind = lab.researcher(dead, alive)
    ended = []
    for seed in range(8):
        try:
            ended.append(mind.propose(replace(lab.context, seed=seed)).model)
        except NoProposal as nothing:
            ended.append(nothing.reason)
    assert ended.count("401: the key is not valid") <= 1
    assert ended.count("b") >= 7


def test_keys_in_the_environment_reach_no_text(
    lab: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-ant-0123456789abcdef"
    monkeypatch.setenv("ANTHROPIC_API_KEY", key)
    looked = [
        calls(call("check")),
        calls(call("search", pattern="sk-ant")),
        calls(call("read", path="/proc/self/environ")),
        calls(call("profile", op="scale")),
        calls(call("history")),
        says("no"),
        says("no"),
    ]
    model = Scripted([edit(), *looked])
    with pytest.raises(NoProposal) as caught:
        lab.researcher(model).propose(lab.context)
    everything = [text for prompt in model.prompts for text in texts(prompt)]
    everything += [caught.value.reason, *lab.screen.lines, *lab.screen.stages]
    assert "sk-ant" in "".join(everything)  # it was searched for
    assert key not in "".join(everything)


def test_a_model_without_a_price_or_of_no_use_is_one_line_at_the_start(lab: Setting) -> None:
    with pytest.raises(Unusable, match="--price nobody-1=IN/OUT"):
        lab.researcher(Scripted(name="nobody-1"), prices=())
    with pytest.raises(Unusable, match="expected MODEL=IN/OUT"):
        lab.researcher(Scripted(name="nobody-1"), prices=("nobody-1",))
    with pytest.raises(Unusable, match="^401: no such key$"):
        lab.researcher(Scripted(name="nobody-1", unusable="401: no such key"))
    with pytest.raises(Unusable, match="takes 8,000 tokens: expected 24,000 or more"):
        lab.researcher(Scripted(name="nobody-1", window=8_000))


def test_a_request_of_which_nobody_knows_the_cost_stays_at_its_most(lab: Setting) -> None:
    silent = Transient("timed out", 0.01, unknown=True)
    made = lab.session(Scripted([silent, edit(), submit()]))
    made.run()
    calls = lab.ledger.accounts.calls("r")
    assert calls.in_flight_usd > 0
    assert calls.usd == pytest.approx(made.cost_usd + calls.in_flight_usd)


def test_answers_that_break_off_again_and_again_are_not_paid_for_ever(lab: Setting) -> None:
    cut = Transient("the stream ended", 0.001, billed=Usage(input=1_000, output=100))
    model = Scripted([read(), *[cut] * 20])
    nothing = ends_with_nothing(lab.session(model))
    assert "6 answers in a row broke off" in nothing.reason
    assert len(model.prompts) == 7
    assert nothing.cost_usd == pytest.approx(lab.ledger.accounts.calls("r").usd)


def test_a_check_under_way_ends_with_the_run(lab: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    built = lab.rules.build

    def build(*given: Any) -> Any:
        lab.workshop.stop.set()
        return built(*given)

    monkeypatch.setattr(lab.rules, "build", build)
    with pytest.raises(Stopped):
        lab.session(Scripted([edit(), calls(call("check"))])).run()
    assert "correctness" not in lab.rules.calls


def test_half_a_character_in_a_candidate_s_last_words_ends_no_session(
    lab: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Finding(False, "RuntimeError: \ud83d")
    monkeypatch.setattr(lab.rules, "correctness", lambda op, tree: wrong)
    model = Scripted([edit(), calls(call("check")), submit(), submit()])
    made = lab.session(model)
    made.run()
    made.repair(replace(REFUSED, reason="RuntimeError: \ud83d"))
    for prompt in model.prompts:
        assert wire.size(texts(prompt))
