"""Every implementation of every op on the shapes of the trial and of the goals. See bench/conftest.py for what is measured and how."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.arms import ROOT
from bench.conftest import DEVICE, arms, samples, why_not
from bench.contracts import written
from bench.goals import cases
from bench.timing import Arm

pytestmark = pytest.mark.usefixtures("built")

CASES = [(op, index) for op in written(ROOT) for index in range(len(cases(op, DEVICE)))]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    measuring = metafunc.config.getoption("--benchmark")
    wanted = [
        pytest.param(op, index, arm, id=f"{op}-{index}-{arm.name.replace(' ', '_')}")
        for op, index in CASES
        if measuring or index == 0  # the second shape shows how fast, and nothing else
        for arm in arms(op, measuring)
    ]
    metafunc.parametrize(("op", "index", "arm"), wanted)


def test_implementation(
    op: str, index: int, arm: Arm, replay: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    if reason := why_not(op, index, arm):
        pytest.skip(reason)
    times = samples(op, index, request.config.getoption("--benchmark"))
    replay(op, cases(op, DEVICE)[index], arm, times)
    assert len(times[arm.name]) >= 5
