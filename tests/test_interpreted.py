"""The tests of Triton's kernels once more, in Triton's interpreter: of all files in one process, since to start one takes 3 s."""

from __future__ import annotations

from pathlib import Path

import pytest
from interpreter import interpret_tests

FILES = ("attention", "norms", "qk_norm_rope", "relu2_mlp", "updates")


@pytest.mark.slow
def test_triton_kernels_pass_in_the_interpreter() -> None:
    interpret_tests(*(str(Path(__file__).with_name(f"test_{name}.py")) for name in FILES))
