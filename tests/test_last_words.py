"""What a coding agent says at its end, understood as far as it makes sense."""

from __future__ import annotations

import pytest

from agent.coder.last_words import parse, split_hypothesis


@pytest.mark.parametrize(
    ("line", "usd"),
    [('{"total_cost_usd": "much"}', 0), ('{"total_cost_usd": Infinity}', 0), ('{"total_cost_usd": -1}', 0),
     ('{"total_cost_usd": 1e30}', 0), (f'{{"total_cost_usd": 1{"0" * 400}}}', 0),
     ('{"total_cost_usd": 2, "usage": [1]}', 2), ("[" * 10_000, 0), ("[1]", 0), ("", 0),
     # claude with `verbose`: all of its messages as one array, of which the log's tail may lack the beginning
     ('[{"type":"system"},{"type":"result","total_cost_usd":2}]', 2), ('t":"x"},{"type":"result","total_cost_usd":2}]', 2)],
)  # fmt: skip
def test_figures_that_make_no_sense_count_as_nothing(line: str, usd: float) -> None:
    assert parse(line).usd == usd


def test_words_move_no_terminal() -> None:
    text = "\x1b[2J\x1b[1m# four\trows\x08\x07\r\nExpected: \x1b[31mhalf\n"
    assert split_hypothesis(text) == ("four  rows", "half")


def test_an_expectation_alone_is_no_hypothesis() -> None:
    assert split_hypothesis("Expected: 3 %\n") == ("", "3 %")
