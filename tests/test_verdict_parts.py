"""What the verdict rests on: noise, paired differences, drift, the curve of tokens, the account of the night."""

from __future__ import annotations

import random
import statistics

import pytest
from scipy import stats

from bench import e_bh
from bench.curve import explained
from bench.drift import drifted
from bench.interval import Spread
from bench.noise import MIN_NOISE_BPB, UNKNOWN, noise_of, unselected
from bench.paired import Paired
from bench.trial_result import TrialResult

NOISE = 0.002


def trial(bpb: float, speed: float = 1000.0) -> TrialResult:
    return TrialResult(True, val_bpb=bpb, tokens_per_second=speed)


def test_noise_pools_groups_of_equal_trials_and_counts_what_it_knows() -> None:
    rng = random.Random(4)
    groups = [
        [rng.gauss(mean, NOISE) for _ in range(3)] for mean in (1.7, 1.8, 1.9) for _ in range(100)
    ]
    found = noise_of(groups)
    assert found.deviation == pytest.approx(NOISE, rel=0.15)
    assert found.degrees == 600


def test_trials_that_agree_by_luck_do_not_prove_that_there_is_no_noise() -> None:
    assert noise_of([[1.8, 1.8]]) == Spread(MIN_NOISE_BPB, 1)
    assert noise_of([[1.8], [1.9]]) == Spread(MIN_NOISE_BPB, 0)


def test_the_trial_that_chose_a_candidate_tells_nothing_of_noise() -> None:
    groups = unselected({"start": {0: 1.0, 1: 2.0}, "other": {0: 9.0, 1: 3.0, 2: 4.0}}, "start")
    assert groups == [[1.0, 2.0], [3.0, 4.0]]


def test_p_values_of_paired_differences_are_student_s() -> None:
    sample = [-0.004, -0.001, -0.0025]
    alone = stats.ttest_1samp(sample, 0.0, alternative="less").pvalue
    assert Paired(sample, UNKNOWN).p_below() == pytest.approx(alone)
    found = Paired(sample, UNKNOWN).figure()
    expected = stats.ttest_1samp(sample, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_without_effect_a_p_value_is_as_small_as_it_says_with_two_baselines_alone() -> None:
    rng = random.Random(6)
    small = 0
    for _ in range(20_000):  # noise of one, far above the least that an estimate may show
        noise = noise_of([[rng.gauss(0, 1), rng.gauss(0, 1)]])
        small += Paired([rng.gauss(0, 1) - rng.gauss(0, 1)], noise).p_below() <= 0.01
    assert 0.007 < small / 20_000 < 0.013


def test_without_effect_evidence_is_one_on_average_at_most_wherever_one_stops() -> None:
    rng = random.Random(7)
    found = []
    for _ in range(20_000):
        noise = noise_of([[rng.gauss(0, NOISE) for _ in range(5)]])
        differences: list[float] = []
        while len(differences) < 3:
            differences.append(rng.gauss(0, NOISE) - rng.gauss(0, NOISE))
            evidence = Paired(differences, noise).e_value()
            if evidence > 5:
                break
        found.append(evidence)
    assert statistics.fmean(found) < 1.05
    assert sum(e >= 100 for e in found) / len(found) <= 0.01


def test_evidence_grows_with_a_gain_and_falls_with_a_loss() -> None:
    known = Spread(NOISE, 30)
    gain, none, loss = (Paired([d] * 3, known).e_value() for d in (-0.01, 0.0, 0.01))
    assert gain > 1000 > 1 > none > loss


def test_a_machine_that_stays_as_it_was_raises_no_alarm() -> None:
    assert drifted(trial(1.8), trial(1.801, 960.0), Spread(NOISE, 10)) == ""


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (trial(1.8, 880.0), "tokens/s changed by -12%"),
        (trial(1.8, 1120.0), "tokens/s changed by +12%"),
        (trial(1.82), "BPB changed by +0.0200"),
        (TrialResult(False, "late", "no answer"), "no longer trains (late"),
    ],
)
def test_a_machine_that_changed_is_seen(now: TrialResult, words: str) -> None:
    assert words in drifted(trial(1.8), now, Spread(NOISE, 10))


def test_more_tokens_explain_a_gain_along_the_incumbents_own_curve() -> None:
    curve = [[1e6 * i, 4.0 - 0.3 * (i / 20)] for i in range(1, 41)]
    before = TrialResult(True, val_bpb=1.5, total_tokens_M=40.0, losses=curve)
    same = TrialResult(True, val_bpb=1.5, total_tokens_M=40.0)
    more = TrialResult(True, val_bpb=1.4, total_tokens_M=44.0)
    assert explained([before], [same]) == 0.0
    gain = explained([before], [more])
    assert gain is not None
    # the loss falls by 0.42 nats for each e-fold of tokens, of 3.55: a tenth more tokens is 1.1 % of the bits
    assert gain == pytest.approx(-0.017, abs=0.003)


def test_where_no_curve_tells_nothing_is_explained() -> None:
    bare = TrialResult(True, val_bpb=1.5, total_tokens_M=40.0)
    assert explained([bare], [bare]) is None


def test_a_night_of_ten_keeps_and_nothing_else_stands_by_strong_evidence_alone() -> None:
    found = e_bh.rates([200.0, 3.0, *[0.2] * 8])
    assert found[0] == pytest.approx(10 / 200)
    assert found[1] > 0.5
    assert found[-1] == 1.0


def test_keeps_that_stand_together_help_each_other() -> None:
    assert e_bh.rates([40.0, 40.0, *[0.1] * 8])[0] == pytest.approx(10 / (2 * 40))
    assert e_bh.rates([]) == []
