"""What tests share: a small checkout for the loop, and a runner for the correctness gate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_tree import make
from warm import Warm

from agent.lab import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A lab on the small checkout of tests/lab_tree.py."""
    return Lab(make(tmp_path / "checkout"))


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """A runner for all checks of the session."""
    warm = Warm(tmp_path_factory.mktemp("warm"))
    yield warm
    warm.close()
