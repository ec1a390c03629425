"""What the parity probe makes of step times. Runs of a real model are in test_measuring_gates.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import parity
from bench.trial import TrialResult

INCUMBENT, CANDIDATE = Path("incumbent"), Path("candidate")
CURVE = [[2048.0, 9.0], [4096.0, 8.0]]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], parity.Finding]:
    """Parity of equal curves, where the candidate takes these seconds, run by run, and the incumbent one second."""

    def run(seconds: list[float]) -> parity.Finding:
        left = list(seconds)

        def trial(tree: Path, *_: object, **named: object) -> TrialResult:
            taken = left.pop(0) if tree == CANDIDATE else 1.0
            return TrialResult(True, training_seconds=taken, losses=CURVE)

        monkeypatch.setattr(parity, "run_trial", trial)
        found = parity.probe(INCUMBENT, CANDIDATE, SimpleNamespace(), device="cpu")
        assert not left, "a run that was not made"
        return found

    return run


def test_a_step_that_is_not_slower_passes_after_one_pair_of_runs(
    probe: Callable[[list[float]], parity.Finding],
) -> None:
    found = probe([0.9])
    assert found.passed
    assert "0.90x its time (one pair of runs)" in found.reason


def test_a_step_that_was_slow_by_chance_is_run_again_and_passes(
    probe: Callable[[list[float]], parity.Finding],
) -> None:
    found = probe([1.5, 1.2, 1.02])
    assert found.passed
    assert found.evidence["step_time_ratios"] == [1.5, 1.2, 1.02]


def test_a_step_that_is_slower_every_time_is_refused(
    probe: Callable[[list[float]], parity.Finding],
) -> None:
    found = probe([1.5, 1.3, 1.2])
    assert not found.passed
    assert "1.50x and 1.30x and 1.20x the incumbent's time in 3 pairs of runs" in found.reason
