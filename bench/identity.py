"""What has to be the same for figures of two runs to stand beside each other: the machine, and the files that are measured or measure."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import ROOT, hardware

MEASURED = ("kernels", "csrc", "model", "bench")
SOURCES = (".py", ".cpp", ".cu", ".h")


class Mixed(Exception):
    """Figures were to be added to a file that holds figures of something else."""


def identity(device: str) -> dict[str, Any]:
    """As plain JSON: equal or not is all that is asked of it."""
    import torch

    return {
        "device": hardware.name(device),
        "torch": torch.__version__,
        "triton": installed("triton"),
        # another assembler makes another kernel of the same source
        "ptxas": os.environ.get("TRITON_PTXAS_PATH", ""),
        "tree": content(ROOT, MEASURED)[:16],
    }


def require_same(file: Path, held: Any, ours: Any) -> None:
    """Raises Mixed where what a file holds was measured of something else than ours."""
    if held != ours:
        raise Mixed(f"{file} holds figures of {held}, and here is {ours}: give another --out, or delete it")  # fmt: skip


def installed(package: str) -> str:
    """The version of a package; "" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def content(root: Path, folders: Sequence[str]) -> str:
    """A digest of the sources in these folders of a tree, and of where in it they lie."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted((root / folder).glob("**/*")):
            # A hidden one is an editor's lock, a link to nowhere.
            known = file.suffix in SOURCES and not file.name.startswith(".")
            if known and "build" not in file.relative_to(root).parts:
                text = file.read_bytes()
                digest.update(f"{file.relative_to(root)} {len(text)} ".encode() + text)
    return digest.hexdigest()
