"""Trials at several seeds, of several arms: means and gains with their intervals, and a run that goes on where it was ended."""

from __future__ import annotations

import importlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from bench import trial_report
from bench.finding import Finding
from bench.identity import Mixed, identity
from bench.trial_result import TrialResult

DATASET = SimpleNamespace(directory=SimpleNamespace(name="embedded"))
FIGURES = dict.fromkeys(trial_report.MEANS, 1.0)


@pytest.fixture
def asked(monkeypatch):
    """What was asked of stand-ins of trials, as (arm, seed); the first of seed 2 fails."""
    asked: list[tuple[str, int]] = []
    names = {json.dumps(options): arm for arm, options in trial_report.ARMS.items()}

    def run_trial(tree, dataset, *, seconds, seed, device, **options):
        first_of_two = seed == 2 and not any(seed == 2 for _, seed in asked)
        arm = names[json.dumps(options)]
        asked.append((arm, seed))
        speed = 2e3 if arm == "shipped" else 1e3
        return TrialResult(
            not first_of_two, "late", "slow", val_bpb=1.0 + 0.01 * seed, tokens_per_second=speed
        )

    monkeypatch.setattr(trial_report, "run_trial", run_trial)
    return asked


def test_arms_take_turns_and_an_ended_run_goes_on_with_what_is_missing(asked, tmp_path):
    kept, arms = tmp_path / "trials.jsonl", ["shipped", "torch"]
    with pytest.raises(SystemExit, match=r"a trial failed \(late\): slow"):
        trial_report.trials(DATASET, 5.0, (0, 1, 2), arms, "cpu", kept)
    found = trial_report.trials(DATASET, 5.0, (0, 1, 2), arms, "cpu", kept)
    first_four = [("shipped", 0), ("torch", 0), ("torch", 1), ("shipped", 1)]
    assert asked == [*first_four, ("shipped", 2), ("shipped", 2), ("torch", 2)]
    assert [trial["val_bpb"] for trial in found["torch"]] == [1.0, 1.01, 1.02]

    trial_report.trials(DATASET, 5.0, (0,), [*arms, "torch.compile"], "cpu", kept)
    assert asked[7:] == [("torch.compile", 0)]


def test_what_an_arm_names_is_there():
    for options in trial_report.ARMS.values():
        for op, impl in options.get("impl", {}).items():
            module = importlib.import_module(f"kernels.{op}")
            assert impl in module.IMPLEMENTATIONS | getattr(module, "LIBRARIES", {})


def test_a_mean_over_seeds_has_students_interval_and_one_seed_has_none():
    three = trial_report.over_seeds([{**FIGURES, "val_bpb": bpb} for bpb in (0.90, 0.91, 0.92)])
    low, high = three["interval"]["val_bpb"]
    assert three["val_bpb"] == pytest.approx(0.91)
    assert (
        high - 0.91 == pytest.approx(0.91 - low) == pytest.approx(4.303 * 0.01 / 3**0.5, rel=1e-3)
    )
    told = trial_report.lines({"shipped": three})
    assert "shipped val_bpb: 0.91, 95 % interval 0.88516 to 0.93484, 3 seeds" in told
    one = trial_report.over_seeds([FIGURES])
    told = trial_report.lines({"shipped": one})
    assert "shipped val_bpb: 1, one seed: no interval" in told
    json.dumps([one, three], allow_nan=False)


def test_a_gain_is_counted_seed_by_seed():
    theirs = [{"tokens_per_second": speed, "val_bpb": 2.0 + speed} for speed in (1.0, 10.0, 100.0)]
    ours = [
        {"tokens_per_second": 3 * t["tokens_per_second"], "val_bpb": t["val_bpb"] - 0.5}
        for t in theirs
    ]
    found = trial_report.gain(ours, theirs)
    assert found["tokens_per_second_ratio"]["low"] == pytest.approx(3.0)
    assert found["val_bpb_difference"]["high"] == pytest.approx(-0.5)
    assert found["val_bpb_difference"]["seeds"] == 3
    single = trial_report.gain(ours[:1], theirs[:1])
    assert "low" not in single["tokens_per_second_ratio"]


@pytest.mark.parametrize(("words", "said"), [(("--out", "x.jsonl"), "name a .json"), (("--out", "x.json", "--device", "cuda"), "no GPU"), (("--out", "x.json", "--seeds", "4", "4"), "expected each once, got [4, 4]"), (("--out", "x.json", "--seconds", "0"), "expected more than 0")])  # fmt: skip
def test_what_cannot_be_reported_is_said_before_anything_is_trained(words, said, monkeypatch, capsys):  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["trial_report", "data", *words])
    with pytest.raises(SystemExit):
        trial_report.main()
    assert said in capsys.readouterr().err


def test_a_trial_that_was_cut_short_as_it_was_written_down_is_run_again(asked, tmp_path):
    kept = tmp_path / "trials.jsonl"
    trial_report.trials(DATASET, 5.0, (0,), ["shipped", "torch"], "cpu", kept)
    kept.write_bytes(kept.read_bytes()[:-20])
    trial_report.trials(DATASET, 5.0, (0,), ["shipped", "torch"], "cpu", kept)
    assert asked == [("shipped", 0), ("torch", 0), ("torch", 0)]
    assert [json.loads(line)["arm"] for line in kept.read_text().splitlines()] == ["shipped", "torch"]  # fmt: skip


def test_trials_of_something_else_are_not_mixed_with_these(asked, tmp_path):
    kept = tmp_path / "trials.jsonl"
    trial_report.trials(DATASET, 5.0, (0,), ["shipped"], "cpu", kept)
    with pytest.raises(Mixed, match="give another --out"):
        trial_report.trials(DATASET, 6.0, (0,), ["shipped"], "cpu", kept)
    assert asked == [("shipped", 0)]


def test_kernels_are_built_before_a_trial_which_else_pays_for_the_compiler(
    asked, tmp_path, monkeypatch
):
    built = []
    build_all = lambda _: built.append(len(asked)) or Finding(True, "")  # noqa: E731
    monkeypatch.setattr(trial_report, "build_all", build_all)
    monkeypatch.setattr(trial_report, "open_dataset", lambda _: DATASET)
    monkeypatch.setattr(trial_report, "ceilings", lambda _: {})
    out = str(tmp_path / "x.json")
    monkeypatch.setattr(sys, "argv", ["trial_report", "data", "--out", out, "--arms", "torch"])
    trial_report.main()
    assert built == [0]
    assert asked == [("torch", 0)]


def test_figures_of_another_assembler_stand_in_another_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = identity("cpu")
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/usr/local/cuda/bin/ptxas")
    assert identity("cpu") != before
