"""The researcher: one proposal a session, with its model, its money and its repairs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from lab_tree import CPP, PY, past
from research_lab import PATH, REFUSED, Setting, edit, read, submit
from scripted_model import Scripted, call, calls, says, texts

from agent.lab import Unusable
from agent.proposers import NoProposal
from agent.records import DROP, Outcome, Proposal
from agent.research.messages import (
    ModelUnusable,
)
from agent.spending import BudgetSpent


def test_a_proposal_carries_its_session_s_model_money_and_expectation(setting: Setting) -> None:
    proposal = setting.researcher(Scripted([read(), edit(), submit()])).propose(setting.context)
    assert (proposal.proposer, proposal.model) == ("scripted", "scripted")
    assert proposal.expected == "scale twice as fast"
    assert proposal.cost_usd == pytest.approx(setting.ledger.accounts.calls("r").usd)
    assert proposal.cost_usd > 0
    assert json.loads(json.dumps(proposal.notes)) == proposal.notes
    assert proposal.notes["turns"] == 3


def test_the_model_is_told_the_agenda_the_sources_and_where_the_time_goes(setting: Setting) -> None:
    model = Scripted([edit(), submit()])
    setting.researcher(model).propose(setting.context)
    read_first = "\n".join(texts(model.prompts[0]))
    assert "Fuse what is bound by memory." in read_first
    assert "constexpr int kRows = 1;" in read_first
    assert "50" in texts(model.prompts[0])[-1]


def test_the_prefix_leaves_room_to_work_in_a_small_window(setting: Setting) -> None:
    setting.context = replace(setting.context, agenda="Fuse. " * 20_000)
    small, large = (Scripted([edit(), submit()], window=window) for window in (24_000, 200_000))
    for model in (small, large):
        setting.researcher(model).propose(setting.context)
    assert small.count(small.prompts[0]) < 0.5 * 24_000
    assert small.count(small.prompts[0]) < large.count(large.prompts[0])


def test_the_step_is_profiled_once_for_an_incumbent(setting: Setting) -> None:
    mind = setting.researcher(Scripted([edit(), submit(), edit(), submit(), edit(), submit()]))
    mind.propose(setting.context)
    mind.propose(setting.context)
    assert setting.rules.calls.count("profile None") == 1
    mind.propose(replace(setting.context, commit="another"))
    assert setting.rules.calls.count("profile None") == 2


def test_a_refused_proposal_is_mended_in_its_own_session_with_the_money_so_far(
    setting: Setting,
) -> None:
    again = calls(call("edit", path=PATH, old="kRows = 2;", new="kRows = 4;"))
    mind = setting.researcher(Scripted([edit(2), submit(), again, submit("mended")]))
    first = mind.propose(setting.context)
    mended = mind.repair(first, REFUSED)
    assert mended is not None
    assert mended.files == {PATH: CPP.replace("kRows = 1", "kRows = 4")}
    assert mended.cost_usd == pytest.approx(setting.ledger.accounts.calls("r").usd)
    assert mended.cost_usd > first.cost_usd


def test_a_proposal_of_another_session_is_not_mended(setting: Setting) -> None:
    mind = setting.researcher(Scripted([edit(), submit(), edit(), submit()]))
    first = mind.propose(setting.context)
    mind.propose(setting.context)
    assert mind.repair(first, REFUSED) is None
    assert mind.repair(Proposal("by hand", {}, "scripted"), REFUSED) is None


def test_a_new_session_begins_with_the_incumbent_s_files(setting: Setting) -> None:
    mind = setting.researcher(Scripted([edit(8), submit(), edit(2), submit()]))
    mind.propose(setting.context)
    assert "kRows = 2;" in str(mind.propose(setting.context).files[PATH])


def test_a_budget_spent_before_the_first_call_ends_the_run(setting: Setting) -> None:
    with pytest.raises(BudgetSpent):
        setting.researcher(Scripted([read()]), usd=0.01).propose(setting.context)
    assert setting.ledger.accounts.calls("r").count == 0


def test_a_budget_spent_in_mid_session_leaves_its_money_in_a_row_and_then_ends_the_run(
    setting: Setting,
) -> None:
    dear = replace(read(), text="t" * 20_000)
    model = Scripted([dear] * 100, max_output=4_000)
    mind = setting.researcher(model, usd=0.5)
    with pytest.raises(NoProposal, match="the budget ended the session") as caught:
        mind.propose(setting.context)
    assert 1 < len(model.prompts) < 40
    assert 0 < caught.value.cost_usd <= 0.5
    assert setting.ledger.accounts.calls("r").usd == pytest.approx(caught.value.cost_usd)
    with pytest.raises(BudgetSpent):
        mind.propose(setting.context)
    assert setting.ledger.accounts.calls("r").usd == pytest.approx(caught.value.cost_usd)


def test_a_failed_session_s_money_is_carried_and_the_next_one_starts_afresh(
    setting: Setting,
) -> None:
    mind = setting.researcher(Scripted([read(), says("no"), says("no"), edit(), submit()]))
    with pytest.raises(NoProposal) as caught:
        mind.propose(setting.context)
    spent = setting.ledger.accounts.calls("r").usd
    assert caught.value.cost_usd == pytest.approx(spent)
    assert caught.value.cost_usd > 0
    assert (caught.value.tokens_in > 0, caught.value.tokens_out > 0) == (True, True)
    assert mind.propose(setting.context).cost_usd == pytest.approx(
        setting.ledger.accounts.calls("r").usd - spent
    )


def test_two_near_misses_that_merge_are_proposed_without_asking_a_model(setting: Setting) -> None:
    repository, base = setting.workshop.repository, setting.context.commit
    rows = {PATH: CPP.replace("kRows = 1", "kRows = 4")}
    fused = {"kernels/scale.py": PY.replace("x * factor", "factor * x")}
    near = Outcome(DROP, "not sure", speed=0.97, val_bpb=2.0, bpb_change=-0.001)
    history = [
        past(n, paths=(*files,), parent=base, commit=repository.commit(base, files, f"{n}"), outcome=near)
        for n, files in ((1, rows), (2, fused))
    ]  # fmt: skip
    mind = setting.researcher(Scripted([move for _ in range(40) for move in (edit(2), submit())]))
    made = [
        mind.propose(replace(setting.context, history=history, seed=seed)) for seed in range(12)
    ]
    combined = [each for each in made if not each.model]
    assert 0 < len(combined) < 12
    assert combined[0].files == {**rows, **fused}
    assert combined[0].cost_usd == 0
    assert combined[0].notes == {"kind": "combine", "op": "scale", "parents": [1, 2]}
    assert mind.repair(combined[0], REFUSED) is None


def test_a_model_that_becomes_unusable_is_left_alone_while_another_works(setting: Setting) -> None:
    dead = Scripted([ModelUnusable("401: the key is not valid")] * 9, name="a")
    alive = Scripted([move for _ in range(9) for move in (edit(), submit())], name="b")
    mind = setting.researcher(dead, alive)
    ended = []
    for seed in range(8):
        try:
            ended.append(mind.propose(replace(setting.context, seed=seed)).model)
        except NoProposal as nothing:
            ended.append(nothing.reason)
    assert ended.count("401: the key is not valid") <= 1
    assert ended.count("b") >= 7


def test_keys_in_the_environment_reach_no_text(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
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
        setting.researcher(model).propose(setting.context)
    everything = [text for prompt in model.prompts for text in texts(prompt)]
    everything += [caught.value.reason, *setting.screen.lines, *setting.screen.stages]
    assert "sk-ant" in "".join(everything)  # it was searched for
    assert key not in "".join(everything)


def test_a_model_without_a_price_or_of_no_use_is_one_line_at_the_start(setting: Setting) -> None:
    with pytest.raises(Unusable, match="--price nobody-1=IN/OUT"):
        setting.researcher(Scripted(name="nobody-1"), prices=())
    with pytest.raises(Unusable, match="expected MODEL=IN/OUT"):
        setting.researcher(Scripted(name="nobody-1"), prices=("nobody-1",))
    with pytest.raises(Unusable, match="^401: no such key$"):
        setting.researcher(Scripted(name="nobody-1", unusable="401: no such key"))
    with pytest.raises(Unusable, match="takes 8,000 tokens: expected 24,000 or more"):
        setting.researcher(Scripted(name="nobody-1", window=8_000))
