"""Triton's interpreter, in a process of its own: Triton decides when it defines a kernel whether it will interpret it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def interpret(*arguments: str) -> None:
    """Run Python with these arguments where kernels are interpreted; whatever fails there is this test's failure."""
    settings = {
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    done = subprocess.run(
        [sys.executable, *arguments], env=os.environ | settings, cwd=ROOT, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-3000:]


def interpret_tests(*files: str) -> None:
    """The tests of these files once more."""
    interpret("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files)
