"""The verdict keeps its stated error rate on simulated campaigns."""

from __future__ import annotations

import random

from bench.timing import Comparison
from bench.trial import TrialResult
from bench.verdict import MAX_PAIRS, decide, noise_of

NOISE = 0.002
FASTER = Comparison(0.9, 0.88, 0.92, [], 1.0)


def trial(bpb: float) -> TrialResult:
    return TrialResult(True, val_bpb=bpb)


def campaign(rng: random.Random, effect: float, target: str = "model") -> tuple[str, int]:
    """The last decision on a candidate whose true effect is `effect` BPB, and the pairs it took."""
    incumbent, candidate = [], []
    while True:
        incumbent.append(trial(rng.gauss(1.8, NOISE)))
        candidate.append(trial(rng.gauss(1.8 + effect, NOISE)))
        verdict = decide(
            target, FASTER if target == "kernels" else None, incumbent, candidate, NOISE
        )
        if verdict.decision != "again":
            return verdict.decision, len(incumbent)


def rate(effect: float, decision: str, target: str = "model", runs: int = 2000) -> float:
    rng = random.Random(1)
    return sum(campaign(rng, effect, target)[0] == decision for _ in range(runs)) / runs


def test_a_change_without_effect_is_kept_at_most_once_in_a_hundred() -> None:
    assert rate(0.0, "keep") <= 0.01


def test_any_lower_number_would_keep_half_of_them() -> None:
    rng = random.Random(1)
    lower = sum(rng.gauss(0, NOISE) < rng.gauss(0, NOISE) for _ in range(2000)) / 2000
    assert lower > 0.4


def test_a_large_gain_is_kept() -> None:
    assert rate(-6 * NOISE, "keep") >= 0.95


def test_a_loss_is_dropped_and_soon() -> None:
    rng = random.Random(2)
    ends = [campaign(rng, 3 * NOISE) for _ in range(500)]
    assert all(decision == "drop" for decision, _ in ends)
    assert sum(pairs for _, pairs in ends) / len(ends) < 1.3


def test_no_campaign_takes_more_than_the_most_pairs() -> None:
    rng = random.Random(3)
    assert max(campaign(rng, rng.uniform(-0.01, 0.01))[1] for _ in range(500)) <= MAX_PAIRS


def test_a_faster_kernel_with_an_unchanged_model_is_kept() -> None:
    assert rate(0.0, "keep", "kernels") >= 0.95


def test_a_faster_kernel_that_harms_the_model_is_dropped() -> None:
    assert rate(6 * NOISE, "drop", "kernels") >= 0.95


def test_a_failed_trial_is_dropped_with_its_reason() -> None:
    failed = TrialResult(False, "out_of_memory", "tried to allocate 3 GiB")
    verdict = decide("model", None, [trial(1.8)], [failed], NOISE)
    assert verdict.decision == "drop"
    assert "out_of_memory" in verdict.reason


def test_noise_pools_groups_of_equal_trials() -> None:
    rng = random.Random(4)
    groups = [
        [rng.gauss(mean, NOISE) for _ in range(3)] for mean in (1.7, 1.8, 1.9) for _ in range(100)
    ]
    assert abs(noise_of(groups) / NOISE - 1) < 0.15


def test_an_improbable_gain_is_set_aside_for_a_person_whatever_the_target() -> None:
    for target, comparison in (("model", None), ("kernels", FASTER)):
        verdict = decide(target, comparison, [trial(1.8)], [trial(1.4)], NOISE)
        assert verdict.decision == "quarantine"
        assert "read the patch" in verdict.reason


def test_a_gain_of_a_tenth_is_not_improbable() -> None:
    assert decide("model", None, [trial(1.8)], [trial(1.62)], NOISE).decision == "keep"
