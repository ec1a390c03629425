"""Every implementation of every op on the trial's shapes. See bench/conftest.py for what is measured and how."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench.arms import arms
from bench.conftest import samples, why_not
from bench.contracts import contract, ops
from bench.timing import Arm

pytestmark = pytest.mark.usefixtures("built")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [(op, index) for op in ops() for index in range(len(contract(op).trial[DEVICE]))]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    measuring = metafunc.config.getoption("--benchmark")
    wanted = [
        pytest.param(op, index, arm, id=f"{op}-{index}-{arm.name.replace(' ', '_')}")
        for op, index in CASES
        if measuring or index == 0  # the second shape shows how fast, and nothing else
        for arm in arms(op, DEVICE, compiled=measuring)
    ]
    metafunc.parametrize(("op", "index", "arm"), wanted)


def test_implementation(
    op: str, index: int, arm: Arm, replay: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    if reason := why_not(op, index, arm, DEVICE):
        pytest.skip(reason)
    measuring = request.config.getoption("--benchmark")
    times = samples(op, index, DEVICE, measuring)[arm.name]
    replay(op, contract(op).trial[DEVICE][index], arm, DEVICE, times)
    assert len(times) >= 5
