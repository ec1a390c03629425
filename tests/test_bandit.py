"""Spending moves to the model whose proposals are kept per USD, and none is given up for good."""

from __future__ import annotations

import random
from collections import Counter
from statistics import fmean

import pytest
from lab_tree import past

from agent.records import DROP, KEEP, RUNNING, Past
from agent.research import bandit


def paid(model: str, status: str, usd: float, n: int = 0) -> Past:
    return past(n, status, model=model, cost_usd=usd)


def simulate(
    models: dict[str, tuple[float, float]], proposals: int, seed: int
) -> tuple[Counter[str], Counter[str], list[str]]:
    """Proposals and USD by model, and who proposed, where a model is (chance of a keep, USD a proposal)."""
    rng, history = random.Random(seed), []
    asked: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    order = []
    for n in range(proposals):
        name = bandit.choose([*models], history, rng)
        chance, usd = models[name]
        history.append(paid(name, KEEP if rng.random() < chance else DROP, usd, n))
        asked[name] += 1
        spent[name] += usd
        order.append(name)
    return asked, spent, order


def test_spending_moves_to_the_model_that_is_kept_more_often() -> None:
    shares = []
    for seed in range(20):
        _, spent, order = simulate({"good": (0.20, 0.50), "bad": (0.04, 0.50)}, 300, seed)
        assert min(spent["good"], spent["bad"]) > 0
        shares.append(order[-150:].count("good") / 150)
    assert fmean(shares) > 0.85
    assert sum(share > 0.5 for share in shares) >= 19


def test_what_counts_is_keeps_per_usd_and_not_keeps() -> None:
    shares = []
    for seed in range(20):
        asked, _, _ = simulate({"dear": (0.15, 3.00), "cheap": (0.10, 0.20)}, 300, seed)
        shares.append(asked["cheap"] / 300)
    assert fmean(shares) > 0.8


def test_a_free_model_that_is_never_kept_does_not_win() -> None:
    shares = []
    for seed in range(20):
        asked, _, _ = simulate({"paid": (0.15, 0.40), "free": (0.0, 0.0)}, 300, seed)
        shares.append(asked["paid"] / 300)
    assert fmean(shares) > 0.7


def test_the_worse_model_is_asked_again_and_again() -> None:
    for seed in range(10):
        _, _, order = simulate({"good": (0.20, 0.50), "bad": (0.02, 0.50)}, 1000, seed)
        for quarter in range(4):
            assert order[250 * quarter : 250 * (quarter + 1)].count("bad") >= 2


def test_a_model_that_becomes_better_is_found_out() -> None:
    found = []
    for seed in range(10):
        rng, history = random.Random(seed), []
        for n in range(900):
            name = bandit.choose(["a", "b"], history, rng)
            better = "a" if n < 300 else "b"
            kept = rng.random() < (0.25 if name == better else 0.02)
            history.append(paid(name, KEEP if kept else DROP, 0.5, n))
        found.append(sum(p.model == "b" for p in history[-150:]) / 150)
    assert fmean(found) > 0.7


def test_models_that_nobody_knows_are_all_tried() -> None:
    rng = random.Random(0)
    asked = Counter(bandit.choose(["a", "b", "c"], [], rng) for _ in range(3000))
    assert all(900 < n < 1100 for n in asked.values())


def test_other_proposers_and_what_is_in_flight_do_not_count() -> None:
    noise = [paid("", KEEP, 0.0), paid("gone", KEEP, 0.1), paid("b", RUNNING, 50.0)] * 50
    draws = [
        [bandit.choose(["a", "b"], h, random.Random(s)) for s in range(50)] for h in ([], noise)
    ]
    assert draws[0] == draws[1]


def test_one_model_is_that_model_and_none_is_an_error() -> None:
    assert bandit.choose(["only"], [], random.Random(0)) == "only"
    with pytest.raises(ValueError, match="--model"):
        bandit.choose([], [], random.Random(0))
