"""Cheats that a model file alone could try: each gains from a naive harness, and a trial stops it."""

from __future__ import annotations

import re
from pathlib import Path

import naive_trial
import pytest
from trial_tree import STEPS, TESTS, honest, put, run

from bench import trial
from bench.data import Dataset
from bench.trial_result import TrialResult

CHEATS = sorted((TESTS / "cheats").glob("trial_*.py"))
SAME = 0.03  # BPB: two honest trials of a bigram, differently numbered and seeded, are closer


@pytest.fixture(scope="module")
def baseline(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> TrialResult:
    result = run(put(tmp_path_factory.mktemp("honest"), honest()), dataset)
    assert result.ok, result.detail
    return result


@pytest.fixture(scope="module")
def naive_baseline(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> float:
    tree = put(tmp_path_factory.mktemp("honest"), honest())
    return naive_trial.bits_per_byte(tree, dataset, seconds=20.0, steps=STEPS)


@pytest.mark.proof
@pytest.mark.parametrize("cheat", CHEATS, ids=lambda p: p.stem.removeprefix("trial_"))
def test_a_naive_harness_is_pleased_with_a_cheat(
    cheat: Path, tmp_path: Path, dataset: Dataset, naive_baseline: float, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tree = put(tmp_path / "tree", cheat.read_text())
    # the clock is the trainer's own where that is the cheat
    steps = None if "(late)" in cheat.read_text() else STEPS
    best = naive_baseline
    if steps is None:
        plain = put(tmp_path / "plain", honest())
        best = naive_trial.bits_per_byte(plain, dataset, seconds=0.3, steps=None)
    for _ in range(2 if "second time" in cheat.read_text() else 1):
        found = naive_trial.bits_per_byte(tree, dataset, seconds=0.3, steps=steps)
    assert naive_trial.improves(found, best - 1e-3), f"{found:.4f} against {best:.4f}"


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda p: p.stem.removeprefix("trial_"))
def test_a_trial_stops_a_cheat(
    cheat: Path, tmp_path: Path, dataset: Dataset, baseline: TrialResult, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    # the bigram and its cheats learn in a second what a trial of five minutes has 10 s for
    monkeypatch.setattr(trial, "LOOKED_SLACK_S", 0.3)
    text = cheat.read_text()
    named = re.search(r"Gate: trial \(([\w ]+)\)", text)
    assert named, f"{cheat.name} does not say how a trial stops it"
    tree = put(tmp_path / "tree", text)
    late = named[1] == "late"
    options = {"steps": None, "seconds": 1.0} if late else {"steps": STEPS}
    options["fresh"] = late or "second time" in text
    if "second time" in text:
        run(tree, dataset, score=False, **options)
    ends_before_scoring = named[1] in ("late", "warm_start", "forged", "unused")
    result = run(tree, dataset, score=not ends_before_scoring, **options)
    if named[1] == "no gain":
        assert result.ok, result.detail
        assert result.val_bpb > baseline.val_bpb - SAME
    else:
        assert not result.ok, f"{result.val_bpb:.3f} BPB against {baseline.val_bpb:.3f}"
        assert result.failure in named[1].split(" or "), result.detail
