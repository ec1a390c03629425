"""The verdict: what it keeps, drops, flags and sets aside. Its error rates are played out in whole campaigns by bench/verdict_simulation.py."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from bench.interval import Spread
from bench.noise import UNKNOWN
from bench.plan import MAX_PAIRS
from bench.speed import Comparison
from bench.trial_result import TrialResult
from bench.verdict import ALPHA, FUTILE, SHORTER, SPEND, Verdict, decide

NOISE = Spread(0.002, 30)
SIGMA = 2**0.5 * NOISE.deviation  # of a paired difference
FASTER = Comparison(0.9, 0.88, 0.92, [{"blocks": 60}, {"blocks": 40}], 1.0)
UNDECIDED = Comparison(0.98, 0.95, 1.01, [], 1.0)


def trial(bpb: float, tokens: float = 4.0, slope: float = -0.5) -> TrialResult:
    """A trial whose loss falls by `slope` nats for each e-fold of tokens."""
    points = [[tokens * 1e6 * i / 40, 3.0 + slope * (i / 40 - 1)] for i in range(1, 41)]
    return TrialResult(True, val_bpb=bpb, total_tokens_M=tokens, losses=points)


def judged(*differences: float, target: str = "model", noise: Spread = NOISE, words: int = 0) -> Verdict:  # fmt: skip
    claim = FASTER if target == "kernels" else None
    incumbent = [trial(1.8) for _ in differences]
    candidate = [trial(1.8 + d) for d in differences]
    return decide(target, claim, incumbent, candidate, noise, words=words)


def test_the_error_is_spent_over_as_many_looks_as_there_are_pairs() -> None:
    assert sum(SPEND) == pytest.approx(ALPHA)
    assert len(SPEND) == MAX_PAIRS
    assert len(FUTILE) == MAX_PAIRS - 1


def test_a_model_is_kept_for_a_gain_beyond_the_noise_and_dropped_where_there_is_none() -> None:
    assert judged(-5 * SIGMA).decision == "keep"
    assert judged(0.0).decision == "drop"
    assert judged(+5 * SIGMA).decision == "drop"


def test_a_promising_gain_is_run_again_and_never_more_than_the_most_pairs() -> None:
    assert judged(-1.5 * SIGMA).decision == "again"
    assert judged(-1.5 * SIGMA, -1.5 * SIGMA).decision == "again"
    last = judged(*[-1.4 * SIGMA] * MAX_PAIRS)
    assert last.decision == "drop"
    assert "undecided after 3 pairs" in last.reason


def test_the_same_gain_proves_less_where_the_noise_is_less_known() -> None:
    assert judged(-5 * SIGMA, noise=Spread(NOISE.deviation, 30)).decision == "keep"
    assert judged(-5 * SIGMA, noise=Spread(NOISE.deviation, 1)).decision == "again"


def test_where_nothing_is_known_of_the_noise_nothing_is_decided() -> None:
    for target in ("model", "kernels"):
        assert judged(-0.05, target=target, noise=UNKNOWN).decision == "again"


def test_what_is_said_carries_interval_noise_and_the_number_of_pairs() -> None:
    verdict = judged(-5 * SIGMA, -4 * SIGMA)
    low, high = verdict.evidence["interval_bpb"]
    assert low < verdict.evidence["mean_bpb"] < high < 0
    assert f"[{low:+.4f}, {high:+.4f}] over 2 pairs" in verdict.reason


def test_a_faster_kernel_with_an_unchanged_model_is_kept() -> None:
    kept = judged(0.0, target="kernels")
    assert kept.decision == "keep"
    assert (
        "0.900 of the incumbent's time [0.880, 0.920] over 100 blocks; BPB not worse: +0.0000 BPB ["
        in kept.reason
    )


def test_a_faster_kernel_that_may_harm_the_model_is_run_again_and_one_that_does_is_dropped() -> None:  # fmt: skip
    assert judged(2.0 * SIGMA, target="kernels").decision == "again"
    harmed = judged(5 * SIGMA, target="kernels")
    assert harmed.decision == "drop"
    assert "worse model" in harmed.reason


def test_a_kernel_that_has_not_won_time_is_dropped_whatever_it_does_to_the_bits() -> None:
    verdict = decide("kernels", UNDECIDED, [trial(1.8)], [trial(1.7)], NOISE)
    assert verdict.decision == "drop"
    assert "not faster: 0.980 of the incumbent's time [0.950, 1.010]" in verdict.reason


def test_a_kernel_that_gains_what_its_tokens_explain_is_not_flagged() -> None:
    verdict = decide("kernels", FASTER, [trial(1.8)], [trial(1.78, tokens=4.4)], NOISE)
    assert verdict.decision == "keep"
    assert verdict.evidence["explained_by_tokens_bpb"] == pytest.approx(-0.021, abs=0.003)
    assert verdict.flag == ""


def test_a_kernel_that_gains_more_than_its_tokens_explain_is_flagged() -> None:
    verdict = decide("kernels", FASTER, [trial(1.8)], [trial(1.74, tokens=4.4)], NOISE)
    assert verdict.decision == "keep"
    assert "the same mathematics learns no faster" in verdict.flag


def test_a_tie_goes_to_less_code_and_to_no_other() -> None:
    flat = [0.0] * MAX_PAIRS
    for words in (0, +30, 1 - SHORTER):
        assert judged(*flat, words=words).decision == "drop"
    shorter = judged(*[-0.2 * SIGMA] * MAX_PAIRS, words=-30)
    assert shorter.decision == "keep"
    assert "no worse, and 30 words shorter" in shorter.reason


def test_less_code_does_not_pay_for_a_loss() -> None:
    assert judged(*[1.0 * SIGMA] * MAX_PAIRS, words=-500).decision == "drop"
    assert judged(3 * SIGMA, words=-500).decision == "drop"


def kept_of(candidates: int, draw: Callable[[], float], words: int = 0) -> float:
    """The share that is kept of candidates whose differences are drawn until each has its verdict."""
    kept = 0
    for _ in range(candidates):
        differences: list[float] = []
        verdict = Verdict("again", "")
        while verdict.decision == "again":
            differences.append(draw())
            verdict = judged(*differences, words=words)
        kept += verdict.decision == "keep"
    return kept / candidates


def test_less_code_that_loses_a_sigma_is_seldom_kept() -> None:
    rng = random.Random(5)
    kept = kept_of(500, lambda: rng.gauss(SIGMA, SIGMA), words=-SHORTER)
    assert kept <= 0.12  # 5 % at each of three looks, and they are not independent


@pytest.mark.parametrize(("times", "least", "most"), [(1.0, 0.0, 0.015), (2.0, ALPHA, 0.08)])
def test_of_noisier_candidates_without_effect_more_are_kept_as_the_docstring_says(
    times: float, least: float, most: float
) -> None:
    rng = random.Random(8)

    def difference() -> float:
        ours, theirs = (rng.gauss(0, t * NOISE.deviation) for t in (1.0, times))
        return theirs - ours

    assert least <= kept_of(2_000, difference) <= most


def test_a_failed_trial_is_dropped_with_its_reason() -> None:
    failed = TrialResult(False, "out_of_memory", "tried to allocate 3 GiB")
    verdict = decide("model", None, [trial(1.8)], [failed], NOISE)
    assert verdict.decision == "drop"
    assert "out_of_memory" in verdict.reason


def test_an_improbable_gain_is_set_aside_for_a_person_whatever_the_target() -> None:
    for target, comparison in (("model", None), ("kernels", FASTER)):
        verdict = decide(target, comparison, [trial(1.8)], [trial(1.4)], NOISE)
        assert verdict.decision == "quarantine"
        assert "read the patch" in verdict.reason


def test_a_gain_on_far_fewer_tokens_is_set_aside_since_they_are_a_claim() -> None:
    """By its tokens the judge bounds what a model may spend when it is scored."""
    for rate, decision in ((0.2, "quarantine"), (0.3, "keep")):
        slow = replace(trial(1.7), tokens_per_second=rate * 1000)
        verdict = decide(
            "model", None, [replace(trial(1.8), tokens_per_second=1000)], [slow], NOISE
        )
        assert verdict.decision == decision, verdict.reason


def test_an_improbable_gain_that_noise_explains_is_run_again_and_not_set_aside() -> None:
    wild = Spread(0.3, 1)  # two trials on a machine that is overrun
    for target, comparison in (("model", None), ("kernels", FASTER)):
        verdict = decide(target, comparison, [trial(3.0)], [trial(2.4)], wild)
        assert verdict.decision == "again"


def test_a_gain_of_a_tenth_is_not_improbable() -> None:
    assert decide("model", None, [trial(1.8)], [trial(1.62)], NOISE).decision == "keep"
