"""`python -m agent trial`: the lines that others read, and the profile of a step."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn, cast

import pytest
from lab_tree import Rules, Transcript, write

from agent import step_table, trial_command
from agent.judging import Bench, Unfit
from agent.lab import Lab, Unusable
from bench.contracts import written
from bench.data import Dataset
from bench.judge import Refused
from bench.trial_result import TrialResult

ROOT = Path(__file__).resolve().parent.parent


def test_a_trial_ends_with_the_lines_that_autoresearch_prints(lab: Lab) -> None:
    screen = Transcript()
    result = trial_command.run(lab, Rules(), 5.0, 1, screen)
    lines = dict(line.split(":", 1) for line in trial_command.block(result).splitlines()[1:])
    assert list(lines) == [
        "val_bpb", "training_seconds", "total_seconds", "peak_memory_mb", "mfu_percent",
        "total_tokens_M", "num_steps", "num_params_M", "depth", "tokens_per_second",
    ]  # fmt: skip
    assert lines["val_bpb"].strip() == "2.041000"
    assert screen.events[0]["loss"] == 3.0


def test_a_profile_of_a_step_names_ops_first_and_adds_up_to_the_step(lab: Lab) -> None:
    found = trial_command.profile(lab, Rules(), Transcript())
    lines = step_table.table(found).splitlines()
    assert "2.0 ms under the profiler, 1.9 without (cpu, 1 thread)" in lines[0]
    assert "waited for 0.01 ms, 0.50% of the step" in lines[2]
    rows = [line.split() for line in lines[-4:]]
    assert [row[0] for row in rows] == ["scale", "torch,", "mm", "all"]
    assert rows[0][1:5] == ["50.0%", "1.00", "0.75", "0.25"]
    shares = [re.findall(r"[\d.]+%", line)[-1:] for line in lines[-4:]]
    assert shares == [["50.0%"], [], ["37.5%"], ["12.5%"]]
    blind = step_table.table({**found, "data_ms": None, "python_ms": None})
    assert "draws no batch with next()" in blind
    assert "Python:" not in blind


def test_a_model_that_does_not_train_has_no_profile_and_the_error_says_why(lab: Lab) -> None:
    class Broken(Rules):
        def profile(self, op: str | None, tree: Path, beside: Path | None = None) -> NoReturn:
            raise Unfit("ValueError: no clock")

    with pytest.raises(Unusable, match="does not train.*no clock"):
        trial_command.profile(lab, Broken(), Transcript())


@pytest.mark.parametrize("impl", [None, "torch"])
def test_trial_and_profile_run_every_op_by_the_implementation_that_is_asked_for(
    impl: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    data = SimpleNamespace(vocab_size=8192, bos=0)
    for function in ("bench.trial.run_trial", "bench.step_profile.of_step"):
        monkeypatch.setattr(function, lambda *_, impl, **__: asked.append(impl))
    judge = Bench("cpu", cast(Dataset, data), impl=impl)
    judge.trial(ROOT, 0, None)
    judge.profile(None, ROOT)
    assert asked == [None if impl is None else dict.fromkeys(written(ROOT), impl)] * 2


@pytest.mark.parametrize(
    ("kinds", "found", "asked"),
    [(["timeout"], "compared", 2), (["crash", "crash"], None, 2), (["wrong"], None, 1)],
)
def test_a_comparison_that_breaks_off_is_tried_once_more(
    kinds: list[str], found: str | None, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, calls = iter(kinds), []

    def compare(*_: object, **__: object) -> str:
        calls.append(1)
        if kind := next(left, ""):
            raise Refused(kind, "the runner ended")
        return "compared"

    monkeypatch.setattr("bench.timing.compare", compare)
    try:
        ended: object = Bench().compare("scale", ROOT, ROOT)
    except Unfit:
        ended = None
    assert (ended, len(calls)) == (found, asked)


def test_a_failed_trial_says_how_and_claims_no_figure() -> None:
    trace = "Traceback (most recent call last):\n  File x, line 3\nnan: loss was not finite\n"
    failed = TrialResult(False, "nan", trace, losses=[[64.0, float("nan")]])
    lines = trial_command.block(failed).splitlines()
    assert "failure:           nan: loss was not finite" in lines
    assert lines[lines.index("log:") + 1 :][:2] == ["  Traceback (most recent call last):", "    File x, line 3"]  # fmt: skip
    assert not any(line.startswith(("val_bpb", "depth", "peak_memory")) for line in lines)
    said = json.loads(trial_command.as_json(failed), parse_constant=pytest.fail)
    assert (said["failure"], said["val_bpb"], said["losses"]) == ("nan", None, [[64.0, None]])


def test_a_trial_sees_the_working_tree_and_only_its_sources(lab: Lab, tmp_path: Path) -> None:
    write(
        lab.root,
        {
            "csrc/scale.cpp": "mine",
            "csrc/build/x.so": "no",
            "kernels/notes.txt": "no",
            "model/new.py": "new",
        },
    )
    tree = lab.copy_tree(tmp_path / "tree")
    assert (tree / "csrc/scale.cpp").read_text() == "mine"
    assert (tree / "model/new.py").exists()
    assert not (tree / "csrc/build").exists()
    assert not (tree / "kernels/notes.txt").exists()
    assert not (tree / "bench").exists()
