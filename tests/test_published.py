"""The commands that write published results still run, on the smallest case of each."""

from __future__ import annotations

import math
import random
import statistics

import pytest
import torch

from bench import capture, timer_calibration, verdict_simulation
from bench.contracts import contract
from bench.drift_simulation import Aging


def test_a_simulated_campaign_keeps_what_is_large_and_not_what_is_nothing() -> None:
    campaign = verdict_simulation.Campaign(random.Random(0))
    assert campaign.propose(0.1).kept
    assert not campaign.propose(0.0).kept
    assert campaign.propose(0.0, "kernels").kept  # it is as good, and says that it is faster
    assert not campaign.propose(-0.1, "kernels").kept


def test_a_simulated_night_of_kernels_learns_the_noise_from_its_incumbents() -> None:
    campaign = verdict_simulation.Campaign(random.Random(3))
    for _ in range(20):
        campaign.propose(0.0, "kernels")
    assert campaign.noise().degrees > 2


def test_a_simulated_night_on_an_aging_machine_is_counted() -> None:
    night = Aging(random.Random(0), trial_s=300.0, age_s=900.0, stay_s=3600.0).night()
    assert night.real > 0
    assert night.nulls > night.real


def test_the_timers_report_has_a_line_for_each_kind_that_was_measured() -> None:
    rows = timer_calibration.read()
    table = timer_calibration.report(rows)
    assert {row["kind"] for row in rows} == {"aa", "5%", "2%"}
    for kind in ("aa", "5%", "2%"):
        assert f"| {kind} | no |" in table
    assert table == timer_calibration.REPORT.read_text(), "timer.md is not of timer.tsv"


@pytest.mark.parametrize("op", sorted(capture.PIECES))
def test_pieces_of_captured_arguments_name_arguments_of_the_op(op: str) -> None:
    (case, *_) = contract(op).trial["cpu"]
    assert set(capture.PIECES[op]) == set(case.inputs)
    for name, sizes in capture.PIECES[op].items():
        whole = torch.zeros(case.inputs[name].shape)
        assert 0 < capture._cut(whole, sizes).numel() <= math.prod(sizes)


def test_a_simulated_candidate_may_be_noisier_than_its_incumbent() -> None:
    campaign = verdict_simulation.Campaign(random.Random(1))
    wild = campaign.candidate(0.0, times=100.0)
    found = statistics.stdev(campaign._trial(wild, seed).val_bpb for seed in range(200))
    assert found == pytest.approx(100 * verdict_simulation.NOISE_BPB, rel=0.3)
