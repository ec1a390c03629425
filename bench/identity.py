"""What has to be the same for figures of two runs to stand beside each other: the machine, and the files that are measured or measure."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from bench import hardware

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ("kernels", "csrc", "model", "bench")


def identity(device: str) -> dict[str, Any]:
    """As plain JSON: equal or not is all that is asked of it."""
    import torch

    digest = hashlib.sha256()
    for folder in MEASURED:
        for file in sorted((ROOT / folder).glob("**/*")):
            if file.suffix in (".py", ".cpp", ".cu", ".h") and "build" not in file.parts:
                digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return {
        "device": hardware.name(device),
        "torch": torch.__version__,
        "tree": digest.hexdigest()[:16],
    }


def no_device(device: str) -> str:
    """Why nothing can be measured here, or ""."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return "no GPU: torch sees no CUDA device; `--device cpu` rehearses on a CPU"
    return ""
