"""What `pytest bench --benchmark` says of an implementation beside its peers."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from bench import arms, implementations
from bench.conftest import DEVICE, beside
from bench.contracts import Case, contract, ops
from bench.goals import cases, lead
from bench.peers import PEERS

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the goals asked for are a CPU's")


def blocks(**seconds: float) -> dict[str, list[float]]:
    """Forty blocks an arm that scatter by a percent or so."""
    rng = random.Random(0)
    return {name: [rng.gauss(s, 0.01 * s) for _ in range(40)] for name, s in seconds.items()}


def of(op: str) -> Case:
    return contract(op).trial["cpu"][0]


def test_the_fastest_peer_is_named_with_an_interval_around_the_ratio() -> None:
    times = blocks(**{"torch eager": 4.0, "torch.compile": 2.0, "cpp": 1.0})
    said = beside("rms_norm", of("rms_norm"), times, "cpp")
    ratio, low, high = (float(x.strip("[],")) for x in said.split(" x ")[0].split())
    assert 1.9 < low <= ratio <= high < 2.1
    assert said.endswith("x torch.compile, goal 1.5: yes")


def test_a_goal_that_is_missed_says_no() -> None:
    times = blocks(**{"torch eager": 4.0, "torch.compile": 1.2, "cpp": 1.0})
    assert beside("rms_norm", of("rms_norm"), times, "cpp").endswith("goal 1.5: no")


def test_a_goal_against_another_than_the_fastest_peer_shows_both() -> None:
    times = blocks(**{"torch eager": 0.5, "torch.compile": 2.0, "cpp": 1.0})
    said = beside("rms_norm", of("rms_norm"), times, "cpp")
    assert "x torch eager" in said
    assert "x torch.compile, goal 1.5: yes" in said


def test_every_goal_names_a_peer_that_is_measured() -> None:
    asked = [(op, goal) for op in ops() for case in cases(op, "cpu") if (goal := lead(op, case))]
    assert asked
    for op, goal in asked:
        beside_it = {arm.name for arm in arms.arms(op, "cpu", compiled=True)}
        beside_it |= {peer.name for peer in PEERS if (peer.op, peer.device) == (op, "cpu")}
        assert set(goal.peers) <= beside_it
        assert goal.at_least >= 1


def test_attention_is_measured_on_a_longer_context_with_and_without_a_window() -> None:
    windows = {c.scalars["window"] for c in cases("attention", "cpu") if 1024 in c.inputs["q"].shape}  # fmt: skip
    assert windows == {128, None}


def test_a_kernel_file_whose_implementations_cannot_be_read_is_an_error(tmp_path):
    file = tmp_path / "sing.py"
    for text in ("IMPLEMENTATIONS = dict(torch=1)", "NAME = 'a'\nIMPLEMENTATIONS = {NAME: 1}"):
        file.write_text(text)
        with pytest.raises(ValueError, match="the names as plain strings"):
            implementations.names_in(file)
    file.write_text("IMPLEMENTATIONS = {'torch': 1}\nLIBRARIES = {'fa4': 2}")
    assert implementations.names_in(file) == {"torch", "fa4"}


DEVICES = """
import importlib, os
import torch
torch.cuda.is_available = lambda: True
from bench import conftest
print(conftest.DEVICE)
os.environ["PYTEST_XDIST_WORKER"] = "gw0"
print(importlib.reload(conftest).DEVICE)
"""


def test_beside_other_tests_the_kernels_of_the_cpu_are_run() -> None:
    alone = {k: v for k, v in os.environ.items() if k != "PYTEST_XDIST_WORKER"}
    done = subprocess.run(
        [sys.executable, "-c", DEVICES], env=alone, cwd=arms.ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == ["cuda", "cpu"], done.stderr[-1000:]
