"""A conversation that grows too long loses its oldest tool results first, never half of a pair, and stays below its bound."""

from __future__ import annotations

import pytest
from scripted_model import Scripted, call, calls, insist, texts

from agent.research.compaction import AIM, KEEP_TURNS, LEFT_OUT, compact
from agent.research.messages import Prompt, Reply, Results, Tool, ToolResult, Turn, User

MODEL = Scripted()
TOOLS = (Tool("read", "Read a file.", {"type": "object"}),)
FIRST = User("Make it faster. " + "x" * 2000)


def exchange(number: int, characters: int) -> tuple[Turn, Turn]:
    made = call("read", path=f"kernels/op_{number}.py")
    answer = ToolResult(made.id, f"{number}:" + "y" * characters)
    return calls(made, text=f"I read {number}."), Results((answer,))


def conversation(exchanges: int, characters: int = 8000) -> Prompt:
    turns = [turn for n in range(exchanges) for turn in exchange(n, characters)]
    return Prompt(("rules",), TOOLS, (FIRST, *turns))


def test_what_fits_is_left_as_it_is() -> None:
    prompt = conversation(5)
    assert compact(prompt, MODEL.count(prompt), MODEL.count) == (prompt, MODEL.count(prompt))


@pytest.mark.parametrize("exchanges", [8, 9, 30, 200])
@pytest.mark.parametrize("bound", [25_000, 12_000])
def test_first_message_and_last_turns_stay_and_pairs_stay_together(
    exchanges: int, bound: int
) -> None:
    prompt = conversation(exchanges)
    shorter, tokens = compact(prompt, bound, MODEL.count)
    insist(shorter)
    assert tokens == MODEL.count(shorter) <= bound
    assert shorter.turns[0] == FIRST
    assert shorter.turns[-KEEP_TURNS:] == prompt.turns[-KEEP_TURNS:]
    assert (shorter.system, shorter.tools) == (prompt.system, prompt.tools)


def test_a_result_that_is_left_out_leaves_a_line_that_says_what_it_was() -> None:
    shorter, _ = compact(conversation(12), 12_000, MODEL.count)
    said = "[left out to make room: 8,002 characters that read"
    assert f'{said} {{"path": "kernels/op_0.py"}} gave]' in texts(shorter)
    assert "I read 0." in texts(shorter)


def test_the_step_is_large_enough_that_the_cache_holds_for_many_turns() -> None:
    prompt = conversation(0)
    broken = 0
    for number in range(200):
        grown = Prompt(
            prompt.system, prompt.tools, (*prompt.turns, *exchange(number, characters=4000))
        )
        prompt, tokens = compact(grown, 40_000, MODEL.count)
        assert tokens <= 40_000
        broken += prompt is not grown
    assert broken <= 200 // 10


def test_half_of_the_results_go_where_half_is_enough() -> None:
    shorter, tokens = compact(conversation(40), 78_000, MODEL.count)
    left_out = [text for text in texts(shorter) if text.startswith("[left out")]
    assert tokens <= AIM * 78_000
    assert 15 <= len(left_out) <= 20
    assert "kernels/op_0.py" in left_out[0]


def test_turns_go_once_results_are_not_enough_and_go_again_later() -> None:
    prompt = Prompt(("rules",), TOOLS, (FIRST,))
    for number in range(60):
        said, results = exchange(number, 100)
        assert isinstance(said, Reply)
        long = calls(*said.calls, text="thinking aloud " * 300)
        prompt = Prompt(prompt.system, prompt.tools, (*prompt.turns, long, results))
        prompt, tokens = compact(prompt, 15_000, MODEL.count)
        insist(prompt)
        assert tokens <= 15_000
    assert texts(prompt).count(LEFT_OUT) == 1
    assert prompt.turns[0] == FIRST


def test_calls_side_by_side_keep_all_their_results() -> None:
    turns: list[Turn] = [FIRST]
    for _ in range(20):
        made = [call("read", path=f"{n}") for n in range(5)]
        results = Results(tuple(ToolResult(each.id, "z" * 3000) for each in made), "note")
        turns += [calls(*made), results]
    shorter, tokens = compact(Prompt((), TOOLS, tuple(turns)), 30_000, MODEL.count)
    insist(shorter)
    assert tokens <= AIM * 30_000


def test_notes_of_the_lab_between_turns_break_no_pair() -> None:
    turns: list[Turn] = [FIRST]
    for number in range(30):
        turns += [*exchange(number, 6000), User("Call a tool."), User("Your answer was cut off.")]
        shorter, _ = compact(Prompt((), TOOLS, tuple(turns)), 9_000, MODEL.count)
        insist(shorter)


def test_what_no_rule_can_shorten_is_given_back_with_its_tokens() -> None:
    prompt = Prompt(("s" * 80_000,), TOOLS, (FIRST,))
    assert compact(prompt, 10_000, MODEL.count) == (prompt, MODEL.count(prompt))
