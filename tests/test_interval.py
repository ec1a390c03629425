"""Intervals hold their confidence on drawn runs, and say nothing where nothing was repeated."""

from __future__ import annotations

import math
import random

import pytest

from bench import interval
from bench.interval import Figure, Spread

DRAWS = 2_000


def test_a_paired_interval_holds_the_truth_in_95_of_100_campaigns() -> None:
    rng = random.Random(0)
    held = 0
    for _ in range(DRAWS):
        groups = [[rng.gauss(0.0, 1.0) for _ in range(3)] for _ in range(2)]
        differences = [rng.gauss(0.3, math.sqrt(2)) for _ in range(3)]
        found = interval.mean(differences, Spread.pooled(groups).of_difference)
        held += found.low <= 0.3 <= found.high
    assert 0.935 <= held / DRAWS <= 0.965


def test_groups_around_different_means_pool_the_spread_within_them() -> None:
    assert Spread.pooled([[1.0, 3.0], [101.0, 103.0], [7.0]]) == Spread(math.sqrt(2), 2)


def test_without_repeats_the_interval_is_open() -> None:
    found = interval.mean([-0.1], Spread.pooled([[1.0], [2.0]]))
    assert (found.low, found.high, found.runs) == (-math.inf, math.inf, 1)


def test_no_false_keep_in_forty_still_leaves_room_for_nine_per_cent() -> None:
    found = interval.rate(0, 40)
    assert (found.value, found.low, found.runs) == (0.0, 0.0, 40)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 40))
    assert interval.rate(40, 40).low == pytest.approx(0.025 ** (1 / 40))


@pytest.mark.parametrize(("found", "of"), [(0, 0), (3, 2), (-1, 2)])
def test_an_impossible_count_is_refused(found: int, of: int) -> None:
    with pytest.raises(ValueError, match="0 <= found <= of"):
        interval.rate(found, of)


def test_a_sum_and_a_difference_carry_both_uncertainties_and_all_runs() -> None:
    a, b = Figure(-0.2, -0.5, 0.1, 2), Figure(-0.1, -0.5, 0.3, 3)
    for found, value in ((interval.total([a, b]), -0.3), (interval.minus(a, b), -0.1)):
        assert found.value == pytest.approx(value)
        assert found.half == pytest.approx(0.5)
        assert found.runs == 5


def test_the_exponential_of_an_open_interval_is_a_ratio_with_no_bound() -> None:
    found = Figure(math.log(2.0), -math.inf, math.inf, 1).exp()
    assert (found.value, found.low, found.high) == (pytest.approx(2.0), 0.0, math.inf)


def test_a_lopsided_interval_stays_as_it_is_alone_and_turns_round_when_it_is_taken_away() -> None:
    alone = Figure(0.1, 0.0, 0.5, 50)
    assert interval.total([alone]) == alone
    found = interval.minus(Figure(0.0, 0.0, 0.0, 1), alone)
    assert (found.value, found.low, found.high) == pytest.approx((-0.1, -0.5, 0.0))
