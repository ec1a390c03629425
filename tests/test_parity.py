"""What the parity probe makes of step times. Runs of a real model are in test_measuring_gates.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent import gates
from agent.judging import MachineFault
from agent.records import Candidate
from bench import parity
from bench.finding import Finding
from bench.trial_result import TrialResult

INCUMBENT, CANDIDATE = Path("incumbent"), Path("candidate")
CURVE = [[2048.0, 9.0], [4096.0, 8.0]]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Callable[..., parity.Finding]:
    """Parity of equal curves, where the candidate takes these seconds, run by run, and the incumbent one second, or those given."""

    def run(seconds: list[float], incumbent: Sequence[float] = (1.0,) * 3) -> parity.Finding:
        left, theirs = list(seconds), list(incumbent)

        def trial(tree: Path, *_: object, **named: object) -> TrialResult:
            if tree == CANDIDATE:
                taken = left.pop(0)
            else:
                taken = theirs.pop(0) if named["impl"] is None else 1.0
            return TrialResult(True, training_seconds=taken, losses=CURVE)

        monkeypatch.setattr(parity, "run_trial", trial)
        found = parity.probe(INCUMBENT, CANDIDATE, SimpleNamespace(), device="cpu")
        assert not left, "a run that was not made"
        return found

    return run


def test_a_step_that_is_not_slower_passes_after_one_pair_of_runs(
    probe: Callable[..., parity.Finding],
) -> None:
    found = probe([0.9])
    assert found.passed
    assert "0.90x its time (one pair of runs)" in found.reason


def test_a_step_that_was_slow_by_chance_is_run_again_and_passes(
    probe: Callable[..., parity.Finding],
) -> None:
    found = probe([1.5, 1.2, 1.02])
    assert found.passed
    assert found.evidence["training_seconds"]["candidate"] == [1.5, 1.2, 1.02]


def test_a_step_is_as_slow_as_the_incumbent_s_own_on_a_busy_machine(
    probe: Callable[..., parity.Finding],
) -> None:
    found = probe([1.24, 1.83], incumbent=[1.0, 1.5])
    assert found.passed
    assert "0.83x its time (the fastest against its slowest of 2 pairs of runs)" in found.reason


def test_a_step_that_is_slower_every_time_is_refused(
    probe: Callable[..., parity.Finding],
) -> None:
    found = probe([1.5, 1.3, 1.2])
    assert not found.passed
    assert "1.20x the incumbent's time (the fastest against its slowest of 3 pairs" in found.reason


@pytest.fixture
def trial_events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What runs did, in order, whose plain one is set up last and long after the others."""
    events: list[str] = []

    def trial(
        tree: Path, *_: object, impl: object, turn: AbstractContextManager[object], **__: object
    ) -> TrialResult:
        if tree.name == "unbuilt":
            return TrialResult(False, "crash", "it does not build")
        time.sleep(0.0 if impl is None else 0.3)
        events.append("set up")
        with turn:
            events.append("began")
            time.sleep(0.02)
            events.append("ended")
        return TrialResult(True, training_seconds=1.0, losses=CURVE)

    monkeypatch.setattr(parity, "run_trial", trial)
    return events


def test_no_run_trains_while_another_does_or_is_set_up(trial_events: list[str]) -> None:
    assert parity.probe(INCUMBENT, CANDIDATE, SimpleNamespace(), device="cpu").passed
    assert trial_events == ["set up"] * 3 + ["began", "ended"] * 3


def test_nobody_waits_for_a_run_that_failed_before_its_turn(trial_events: list[str]) -> None:
    found = parity.probe(INCUMBENT, Path("unbuilt"), SimpleNamespace(), device="cpu")
    assert not found.passed
    assert "the candidate did not train" in found.reason
    assert sorted(trial_events) == ["began"] * 2 + ["ended"] * 2 + ["set up"] * 2


def test_a_device_with_room_for_one_run_trains_each_as_it_is_set_up(
    trial_events: list[str],
) -> None:
    assert parity.probe(INCUMBENT, CANDIDATE, SimpleNamespace(), device="cuda").passed
    assert trial_events == ["set up", "began", "ended"] * 3


def test_a_plain_model_that_does_not_train_here_is_no_fault_of_the_candidate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trial(tree: Path, *_: object, **named: object) -> TrialResult:
        return TrialResult(named["impl"] is None, "" if named["impl"] is None else "out_of_memory", training_seconds=1.0, losses=CURVE)  # fmt: skip

    monkeypatch.setattr(parity, "run_trial", trial)
    found = parity.probe(INCUMBENT, CANDIDATE, SimpleNamespace(), device="cpu")
    assert found.passed
    assert found.evidence["plain"] == "out_of_memory"


@pytest.mark.parametrize(
    ("curve", "passes"),
    [
        ([[2048.0, 9.0], [3000.0, 8.5], [4096.0, 8.0]], True),  # one more point, by the clock
        ([[2048.0, 9.0], [4096.0, 7.0]], False),
        ([[1.0, 9.0], [2.0, 8.0]], False),
    ],
)
def test_curves_are_compared_where_both_have_a_point(
    curve: list[list[float]], passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trial(tree: Path, *_: object, **named: object) -> TrialResult:
        losses = curve if tree == CANDIDATE else CURVE
        return TrialResult(True, training_seconds=1.0, losses=losses)

    monkeypatch.setattr(parity, "run_trial", trial)
    found = parity.probe(INCUMBENT, CANDIDATE, SimpleNamespace(), device="cpu")
    assert found.passed == passes, found.reason
    assert ("no point in common" in found.reason) == (curve[0][0] == 1.0)


@pytest.mark.parametrize("broken", [INCUMBENT, CANDIDATE])
def test_a_run_that_fails_beside_the_others_is_run_again_alone(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[Path] = []

    def trial(tree: Path, *_: object, impl: object, **__: object) -> TrialResult:
        if tree == broken and impl is None and not failed:
            failed.append(tree)
            return TrialResult(False, "crash", "no memory was left")
        return TrialResult(True, training_seconds=1.0, losses=CURVE)

    monkeypatch.setattr(parity, "run_trial", trial)
    assert parity.probe(INCUMBENT, CANDIDATE, SimpleNamespace(), device="cpu").passed


def test_an_incumbent_that_does_not_train_is_no_fault_of_the_candidate() -> None:
    finding = Finding(False, "no memory was left", {"untrained": "incumbent"})
    context = gates.Context(SimpleNamespace(parity=lambda *_: finding))
    with pytest.raises(MachineFault, match="no memory"):
        gates.parity(Candidate("kernels", INCUMBENT, CANDIDATE, ()), context)


@pytest.mark.parametrize("broken", [INCUMBENT, CANDIDATE])
def test_a_run_that_fails_when_it_is_repeated_is_no_measured_time(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Path] = []

    def trial(tree: Path, *_: object, **__: object) -> TrialResult:
        runs.append(tree)
        # at first the incumbent runs twice, once with plain kernels
        if tree == broken and runs.count(tree) > (1 if tree == CANDIDATE else 2):
            return TrialResult(False, "crash", "the runner died")
        seconds = 1.5 if tree == CANDIDATE else 1.0
        return TrialResult(True, training_seconds=seconds, losses=CURVE)

    monkeypatch.setattr(parity, "run_trial", trial)
    found = parity.probe(INCUMBENT, CANDIDATE, SimpleNamespace(), device="cpu")
    assert found.evidence["untrained"] == broken.name
    assert found.reason.endswith("(crash): the runner died")
