"""What tests share: a small checkout for the loop, a runner for the correctness gate, and a text for trials."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import coding_agent
import pytest
import trial_tree
from lab_tree import make
from research_lab import Setting, settings_in
from warm import Timers, Warm

from agent.lab import Lab
from bench.data import Dataset


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A lab on the small checkout of tests/lab_tree.py."""
    return Lab(make(tmp_path / "checkout"))


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    """All that a research session is given."""
    yield from settings_in(tmp_path)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> coding_agent.Bench:
    """A place at which coding agents are tried, and seen to have ended after 10 ms in place of 100."""
    monkeypatch.setattr("agent.coder.headless.LOOK_S", 0.01)
    return coding_agent.bench_in(tmp_path)


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """A runner for all checks of the session."""
    warm = Warm(tmp_path_factory.mktemp("warm"))
    yield warm
    warm.close()


@pytest.fixture(scope="session")
def timers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Timers]:
    """Three runners for all comparisons of the session."""
    timers = Timers(tmp_path_factory.mktemp("timers"))
    yield timers
    timers.close()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    """The made-up sentences of tests/trial_tree.py. With them end the runners that trials left waiting."""
    yield trial_tree.sentences(tmp_path_factory.mktemp("text"), tmp_path_factory.mktemp("data"))
    trial_tree.TRIALS.close()
