"""What a trial is told and holds against what it saw: curves, counts, calls of kernels, processor time."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest

from bench import trial_claims
from bench.judge import Refused
from bench.trial_claims import Described, Trained


def trained(*losses: float, tokens: int = 1000) -> Trained:
    at = np.linspace(1, tokens, len(losses))
    return Trained(10, tokens, 0.0, [list(p) for p in zip(at, losses, strict=True)], [])


@pytest.mark.parametrize(
    ("curve", "measured", "failure"),
    [
        (trained(5.0, 4.0, 3.0, 3.0, 3.0, 3.0), 5.0, "forged"),
        (trained(5.0, 20.0, 20.0, 20.0, 20.0, 20.0), 5.0, "explosion"),
        (trained(2.0, 2.0, 2.0), 2.0, "warm_start"),
    ],
    ids=["forged", "explosion", "knows-at-once"],
)
def test_a_curve_that_cannot_be_true_is_refused(
    curve: Trained, measured: float, failure: str
) -> None:
    with pytest.raises(Refused) as refused:
        trial_claims.require_curve(curve, measured, 300)
    assert refused.value.kind == failure


def test_a_curve_may_lie_above_what_the_judge_measures() -> None:
    trial_claims.require_curve(trained(5.7, 4.0, 3.5, 3.4, 3.3, 3.3, 3.3), 2.4, 300)


@pytest.mark.parametrize(
    ("impl", "calls", "launches", "device", "used"),
    [
        ("cpp", {"attention": 10}, {}, "cpu", True),
        ("cpp", {"attention/cpp": 40}, {}, "cpu", True),
        ("cpp", {"attention": 9, "attention/torch": 99}, {}, "cpu", False),
        ("torch", {}, {}, "cpu", True),
        ("triton", {}, {"_attention_kernel": 1}, "cuda", True),
        ("triton", {}, {"triton_poi_fused_add_0": 99}, "cuda", False),
    ],
)
def test_a_kernel_counts_as_used_when_it_ran_in_every_step(
    impl: str, calls: dict, launches: dict, device: str, used: bool, tmp_path: Path
) -> None:
    (tmp_path / "kernels").mkdir()
    kernels = "@triton.jit\ndef _attention_kernel():\n    def triton(): ...\n\ndef triton_poi_fused_add_0(): ...\n"
    (tmp_path / "kernels" / "attention.py").write_text(kernels)
    described = Described(1, 1, 1.0, {"attention": impl})
    expected = contextlib.nullcontext() if used else pytest.raises(Refused, match="is the least")
    with expected:
        trial_claims.require_kernels(described, 10, calls, launches, tmp_path, device)


def test_more_processor_time_than_cores_times_seconds_is_refused() -> None:
    cores = len(os.sched_getaffinity(0))
    trial_claims.require_processor_time(cores * 10.0, 10.0)
    for used in (cores * 12.0, -1.0):
        with pytest.raises(Refused) as refused:
            trial_claims.require_processor_time(used, 10.0)
        assert refused.value.kind == "off_clock"


def test_a_long_curve_is_thinned_evenly_and_keeps_its_ends() -> None:
    losses = [[n, 9 - n / 1000] for n in range(1, 4001)]
    answer = {
        "steps": 4000,
        "tokens": 4000,
        "peak_memory_mb": 0,
        "losses": losses,
        "grad_norms": [],
    }
    found = Trained.read(answer)
    assert len(found.losses) <= trial_claims.MOST_POINTS
    assert found.losses[0] == losses[0]
    assert found.losses[-trial_claims.LAST_POINTS :] == losses[-trial_claims.LAST_POINTS :]
    steps = {b[0] - a[0] for a, b in itertools.pairwise(found.losses[: -trial_claims.LAST_POINTS])}
    assert len(steps) == 1
    assert found.final() == pytest.approx(5.002)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": 0.41},
        {"steps": 0},
        {"tokens": math.inf},
        {"losses": 3},
        {"losses": []},
        {"tokens": 10**400},
        {"steps": 10**400},
    ],
)
def test_a_training_that_says_nothing_possible_is_refused_in_words(
    wrong: dict[str, object],
) -> None:
    """Not a success of no tokens, of which every later contest would take the logarithm."""
    answer = {"steps": 4, "tokens": 4000, "peak_memory_mb": 0, "losses": [[4000, 3.0]], "grad_norms": []}  # fmt: skip
    with pytest.raises(Refused, match=r"model/train.py: expected \{steps, tokens") as refused:
        trial_claims.read(Trained, answer | wrong)
    assert refused.value.kind == "structure"


def test_an_op_that_only_the_model_knows_is_unused_and_no_fault_of_the_judge(
    tmp_path: Path,
) -> None:
    described = Described(1, 1, 1.0, {"ghost": "triton"})
    with pytest.raises(Refused, match="ghost is said to run as triton") as refused:
        trial_claims.require_kernels(described, 1, {}, {}, tmp_path, "cuda")
    assert refused.value.kind == "unused"


def test_a_model_of_more_weights_than_anybody_can_count_is_refused_in_words() -> None:
    answer = {"num_params": 10**400, "depth": 1, "flops_per_token": 1.0, "implementations": {}}
    with pytest.raises(Refused, match="a count of more than 1e.15") as refused:
        trial_claims.read(Described, answer)
    assert refused.value.kind == "structure"
