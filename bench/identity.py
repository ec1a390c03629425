"""What has to be the same for figures of two runs to stand beside each other: the machine, and the files that are measured or measure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import hardware

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ("kernels", "csrc", "model", "bench")
SOURCES = (".py", ".cpp", ".cu", ".h")


def identity(device: str) -> dict[str, Any]:
    """As plain JSON: equal or not is all that is asked of it."""
    import torch

    return {
        "device": hardware.name(device),
        "torch": torch.__version__,
        "tree": content(ROOT, MEASURED)[:16],
    }


def content(root: Path, folders: Sequence[str]) -> str:
    """A digest of the sources in these folders of a tree, and of where in it they lie."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted((root / folder).glob("**/*")):
            if file.suffix in SOURCES and "build" not in file.relative_to(root).parts:
                text = file.read_bytes()
                digest.update(f"{file.relative_to(root)} {len(text)} ".encode() + text)
    return digest.hexdigest()
