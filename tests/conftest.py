"""What the tests of the correctness gate share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from warm import Warm


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """A runner for all checks of the session."""
    warm = Warm(tmp_path_factory.mktemp("warm"))
    yield warm
    warm.close()
