"""What is written down of a GPU's clocks beside a measurement."""

from __future__ import annotations

import pytest
import torch

from bench import clocks


def test_a_cpu_has_no_such_reading() -> None:
    assert clocks.read("cpu") == {}


def test_the_drivers_line_becomes_figures_and_words() -> None:
    reading = clocks.parse("1755, 2619, 41, 112.35, 0x0000000000000004\n")
    assert reading == {
        "sm_mhz": 1755.0,
        "memory_mhz": 2619.0,
        "celsius": 41.0,
        "watts": 112.35,
        "held_down": "power cap",
    }
    assert clocks.parse("1980, 2619, 35, 80.1, 0x0000000000000001")["held_down"] == ""
    assert "software thermal" in str(clocks.parse("900, 2619, 90, 300, 0x28")["held_down"])


def test_a_sensor_that_is_missing_is_said_and_no_figure_made_up() -> None:
    assert "[N/A]" in str(clocks.parse("1755, 2619, [N/A], 112.35, 0x0")["unknown"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_driver_answers_for_the_gpu_that_torch_uses() -> None:
    reading = clocks.read("cuda")
    assert float(reading["sm_mhz"]) > 0, reading
