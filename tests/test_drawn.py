"""Every Triton kernel is right on what the correctness gate draws, as far as Triton's interpreter shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from interpreter import interpret

from bench.contracts import written
from bench.implementations import names_in

DRAWN = Path(__file__).with_name("drawn.py")
ROOT = DRAWN.parent.parent
TRITON = [op for op in written(ROOT) if "triton" in names_in(ROOT / "kernels" / f"{op}.py")]


@pytest.mark.slow
def test_triton_kernels_are_right_on_cases_that_the_gate_draws() -> None:
    interpret(str(DRAWN), ",".join(TRITON), "7", "1")  # to start a process takes 2 s
