"""What models cost: the table is whole and dated, and a model that is not in it is asked about."""

import datetime

import pytest

from agent import prices
from agent.prices import Price, UnknownPrice, price_of
from agent.records import Usage


@pytest.mark.parametrize("model", prices.table())
def test_every_price_has_a_date_and_a_source(model):
    entry = prices.table()[model]
    assert datetime.date(2026, 9, 1) <= entry.date <= datetime.date.today()
    assert "/" in entry.source


@pytest.mark.parametrize("model", prices.table())
def test_a_read_from_the_cache_is_cheaper_and_a_write_dearer_than_input(model):
    price = prices.table()[model].price
    assert 0 < price.cache_read < price.input <= price.cache_write <= prices.WRITE * price.input
    assert price.input < price.output


@pytest.mark.parametrize("model", prices.table())
def test_an_answer_fits_the_window(model):
    traits = prices.traits_of(model)
    assert traits.max_output < traits.window


def test_an_unknown_model_has_the_stated_window():
    assert prices.traits_of("qwen3-coder") == prices.Traits(128_000, 16_384, {})


def test_each_kind_of_token_has_its_price():
    usage = Usage(input=1_000, output=2_000, cache_read=30_000, cache_write=4_000)
    cost = price_of("claude-opus-5-5").cost(usage)
    assert cost == pytest.approx((1_000 * 4 + 2_000 * 20 + 30_000 * 0.2 + 4_000 * 5) / 1e6)


def test_no_split_of_a_prompt_costs_more_than_the_most():
    price = price_of("claude-opus-5-5")
    splits = [
        Usage(10_000, 500),
        Usage(0, 500, cache_read=10_000),
        Usage(0, 500, cache_write=10_000),
    ]
    assert max(price.cost(split) for split in splits) == price.most(10_000, 500)


def test_a_dated_snapshot_costs_what_its_model_costs():
    assert price_of("claude-haiku-4-5-20251001") == price_of("claude-haiku-4-5")
    assert price_of("gpt-6-sol-2026-09-22") == price_of("gpt-6-sol")


def test_an_unknown_model_is_asked_about_with_the_line_to_type():
    with pytest.raises(UnknownPrice, match=r"--price qwen3-coder=IN/OUT"):
        price_of("qwen3-coder")


def test_what_a_person_gives_comes_before_the_table():
    assert price_of("gpt-6-sol", ["other=9/9", "gpt-6-sol=1/2"]).output == 2


def test_without_cache_prices_a_write_is_counted_at_the_highest_known_rate():
    assert price_of("m", ["m=2/8"]) == Price(2.0, 8.0, 2.0, 2.5)
    assert price_of("m", ["m=2/8/0.1/3"]) == Price(2.0, 8.0, 0.1, 3.0)


def test_a_local_model_is_free_and_its_name_may_hold_an_equals_sign():
    assert price_of("a=b:7b", ["a=b:7b=0/0"]).most(10**9, 10**9) == 0


@pytest.mark.parametrize("given", ["m", "m=1", "=1/2", "m=1/2/3", "m=-1/2", "m=nan/2", "m=1/inf"])
def test_a_price_that_is_none_is_refused_with_an_example(given):
    with pytest.raises(ValueError, match="as in my-model=0.5/2"):
        price_of("m", [given])
