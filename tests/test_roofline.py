"""What this machine can do at most: measured once a machine, the best of all looks, and never of a data sheet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import roofline

SLOW = {"bytes_per_s": 1e9, "flops_float32": 1e11, "flops_bfloat16": 1e10}
FAST = {"bytes_per_s": 2e9, "flops_float32": 0.5e11, "flops_bfloat16": 4e11}


@pytest.fixture
def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine that shows SLOW at the first look and FAST at every later one; the devices that were looked at."""
    seen: list[str] = []

    def measure(device: str) -> dict[str, float]:
        seen.append(device)
        return SLOW if len(seen) == 1 else FAST

    monkeypatch.setattr(roofline, "FILE", tmp_path / "lab" / "ceilings.json")
    monkeypatch.setattr(roofline, "_measure", measure)
    return seen


def test_a_machine_is_measured_once_and_kept(looks: list[str]) -> None:
    assert roofline.ceilings("cpu") == roofline.ceilings("cpu") == SLOW
    assert looks == ["cpu"]
    (name,) = json.loads(roofline.FILE.read_text())
    assert "torch" in name
    assert list(roofline.FILE.parent.iterdir()) == [roofline.FILE]


def test_a_second_look_keeps_the_best_of_both(looks: list[str]) -> None:
    roofline.ceilings("cpu")
    best = {"bytes_per_s": 2e9, "flops_float32": 1e11, "flops_bfloat16": 4e11}
    assert roofline.ceilings("cpu", again=True) == best
    assert roofline.ceilings("cpu") == best


def test_a_bound_is_the_larger_of_traffic_and_arithmetic_in_the_faster_dtype(
    looks: list[str],
) -> None:
    assert roofline.bound_seconds(2e9, 1e9, "float32", "cpu") == 2.0
    assert roofline.bound_seconds(1e6, 3e11, "float32", "cpu") == 3.0
    # bfloat16 may be multiplied in float32 where that is faster
    assert roofline.bound_seconds(1e6, 3e11, "bfloat16", "cpu") == 3.0
    roofline.ceilings("cpu", again=True)
    assert roofline.bound_seconds(1e6, 4e11, "bfloat16", "cpu") == 1.0
    assert roofline.peak_flops("cpu") == 4e11
    assert roofline.floor_seconds(1e6, 4e11, "cpu") == 1.0 / roofline.BEYOND


def test_a_copy_fits_beside_what_runners_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (2 << 30, 24 << 30))
    assert roofline._copied_bytes("cuda") == 512 << 20
