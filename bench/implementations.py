"""Which of an op's implementations, by name, run on which device; kernels/__init__.py, which no file of the judge imports, says what each is."""

from __future__ import annotations

from collections.abc import Iterable

OURS = {"cpu": ("cpp",), "cuda": ("triton", "cuda")}  # beside plain torch, which runs on all


def runnable(names: Iterable[str], device: str) -> list[str]:
    """Those that are not of another device."""
    elsewhere = {name for other, of in OURS.items() if other != device for name in of}
    return [name for name in names if name not in elsewhere]
