"""Trials at several seeds: a mean with its interval, and a run that goes on where it was ended."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from bench import trial_report
from bench.trial import TrialResult

DATASET = SimpleNamespace(directory=SimpleNamespace(name="embedded"))


@pytest.fixture
def trials(monkeypatch):
    """Stand-ins of trials: seed 2 fails the first time."""
    asked: list[int] = []

    def run_trial(tree, dataset, *, seconds, seed, device):
        asked.append(seed)
        ok = seed != 2 or asked.count(2) > 1
        return TrialResult(
            ok, "late", "too slow", val_bpb=1.0 + 0.01 * seed, tokens_per_second=1e3, seed=seed
        )

    monkeypatch.setattr(trial_report, "run_trial", run_trial)
    return asked


def test_an_ended_run_goes_on_with_the_seeds_that_are_missing(trials, tmp_path):
    kept = tmp_path / "trials.jsonl"
    with pytest.raises(SystemExit, match=r"a trial failed \(late\): too slow"):
        trial_report.whole_trials(DATASET, 5.0, 3, "cpu", kept)
    found = trial_report.whole_trials(DATASET, 5.0, 3, "cpu", kept)
    assert trials == [0, 1, 2, 2]
    assert [trial["val_bpb"] for trial in found] == [1.0, 1.01, 1.02]
    with pytest.raises(SystemExit, match="give another --out"):
        trial_report.whole_trials(DATASET, 6.0, 3, "cpu", kept)


def test_a_mean_over_seeds_has_students_interval_and_one_seed_has_none():
    figures = dict.fromkeys(trial_report.MEANS, 1.0)
    three = trial_report.over_seeds([{**figures, "val_bpb": bpb} for bpb in (0.90, 0.91, 0.92)])
    low, high = three["interval"]["val_bpb"]
    assert three["val_bpb"] == pytest.approx(0.91)
    assert (
        high - 0.91 == pytest.approx(0.91 - low) == pytest.approx(4.303 * 0.01 / 3**0.5, rel=1e-3)
    )
    assert "0.91, 95 % interval 0.885" in trial_report.sentence(three, "val_bpb")
    one = trial_report.over_seeds([figures])
    assert trial_report.sentence(one, "val_bpb") == "1, one seed: no interval"
    json.dumps([one, three], allow_nan=False)
