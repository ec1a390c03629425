"""The purse: what is in flight counts, no allowed call can pass a limit, and what was spent outlives the process."""

import random
import threading
import time

import pytest

from agent.ledger import Ledger
from agent.prices import Price, UnknownPrice
from agent.records import Run, Settings, Usage
from agent.spending import BudgetSpent, Limits, Purse

RUN = "night"
PRICES = {"dear": Price(10.0, 50.0, 1.0, 12.5), "cheap": Price(0.1, 0.5, 0.01, 0.125)}


def open_ledger(path):
    ledger = Ledger(path / "ledger.sqlite")
    if not ledger.runs():
        for name in (RUN, "yesterday"):
            ledger.start_run(Run(name, Settings(), "base", "start", "start", time.time()))
    return ledger


@pytest.fixture
def book(tmp_path):
    return open_ledger(tmp_path).accounts


def test_a_call_counts_at_its_most_until_it_is_settled(book):
    purse = Purse(book, RUN, PRICES, Limits())
    call = purse.reserve("dear", 10_000, 1_000)
    most = PRICES["dear"].most(10_000, 1_000)
    assert purse.spent().usd == purse.spent().in_flight_usd == pytest.approx(most)
    usage = Usage(input=100, output=200, cache_read=9_000, cache_write=900)
    assert purse.settle(call, usage) == pytest.approx(PRICES["dear"].cost(usage))
    assert purse.spent().usd == pytest.approx(PRICES["dear"].cost(usage))
    assert (purse.spent().in_flight_usd, purse.spent().tokens) == (0, 10_200)


def test_a_call_in_flight_leaves_less_for_the_next(book):
    most = PRICES["dear"].most(10_000, 1_000)
    purse = Purse(book, RUN, PRICES, Limits(usd=1.5 * most))
    first = purse.reserve("dear", 10_000, 1_000)
    with pytest.raises(BudgetSpent):
        purse.reserve("dear", 10_000, 1_000)
    purse.settle(first, Usage())
    purse.reserve("dear", 10_000, 1_000)


def test_a_failed_call_costs_what_was_billed_and_no_more(book):
    purse = Purse(book, RUN, PRICES, Limits())
    assert purse.settle(purse.reserve("dear", 10_000, 1_000), Usage()) == 0
    billed = Usage(input=10_000, output=5)
    assert purse.settle(purse.reserve("dear", 10_000, 1_000), billed) > 0
    assert purse.spent().usd == pytest.approx(PRICES["dear"].cost(billed))


def test_the_message_says_what_is_spent_of_how_much(book):
    purse = Purse(book, RUN, PRICES, Limits(usd=0.60))
    purse.settle(purse.reserve("dear", 1_000, 10_000), Usage(output=10_000))
    with pytest.raises(BudgetSpent, match=r"0\.50 of 0\.60 USD are spent.* could cost 0\.51"):
        purse.reserve("dear", 1_000, 10_000)


def test_a_limit_on_tokens_counts_cached_ones(book):
    purse = Purse(book, RUN, PRICES, Limits(tokens=20_000))
    usage = Usage(input=1_000, output=500, cache_read=12_000, cache_write=2_000)
    purse.settle(purse.reserve("cheap", 15_000, 500), usage)
    # 15,500 + 4,200 + 300: just what is left
    purse.settle(purse.reserve("cheap", 4_000, 300), Usage())
    with pytest.raises(BudgetSpent, match=r"15,500 of 20,000 tokens"):
        purse.reserve("cheap", 4_000, 501)


def test_spending_survives_a_kill_with_what_was_in_flight(tmp_path):
    first = Purse(open_ledger(tmp_path).accounts, RUN, PRICES, Limits(usd=2.0))
    first.settle(first.reserve("dear", 1_000, 10_000), Usage(output=10_000))
    first.reserve("dear", 1_000, 20_000)
    again = Purse(open_ledger(tmp_path).accounts, RUN, PRICES, Limits(usd=2.0))
    assert again.spent() == first.spent()
    assert again.spent().usd == pytest.approx(0.5 + PRICES["dear"].most(1_000, 20_000))
    with pytest.raises(BudgetSpent):
        again.reserve("dear", 1_000, 10_000)


def test_another_run_has_its_own_purse(book):
    Purse(book, "yesterday", PRICES, Limits(usd=1.0)).reserve("dear", 1_000, 15_000)
    assert Purse(book, RUN, PRICES, Limits(usd=1.0)).spent().usd == 0


def test_a_model_without_a_price_is_not_called(book):
    with pytest.raises(UnknownPrice):
        Purse(book, RUN, PRICES, Limits()).reserve("free", 1, 1)


@pytest.mark.parametrize("limits", [Limits(usd=3.0), Limits(tokens=400_000)])
def test_no_order_of_calls_passes_a_limit(limits, tmp_path):
    """Eight threads that reserve, use up to all of it, and settle or fail: the sum never passes the limit, in the ledger itself."""
    book, seen = open_ledger(tmp_path).accounts, []
    purse = Purse(book, RUN, PRICES, limits)

    def work(seed):
        rng = random.Random(seed)
        for _ in range(40):
            model = rng.choice(list(PRICES))
            tokens_in, max_output = rng.randrange(1, 20_000), rng.randrange(1, 4_000)
            try:
                call = purse.reserve(model, tokens_in, max_output)
            except BudgetSpent:
                continue
            prompt = int(tokens_in * rng.uniform(0.2, 1.0))
            read = rng.randrange(prompt + 1)
            usage = Usage(0, rng.randrange(max_output + 1), read, prompt - read)
            seen.append(purse.spent())
            purse.settle(call, usage if rng.random() < 0.8 else Usage())
            seen.append(purse.spent())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if limits.usd:
        assert 0.8 * limits.usd < max(spent.usd for spent in seen) <= limits.usd
    else:
        assert 0.8 * limits.tokens < max(spent.tokens for spent in seen) <= limits.tokens
