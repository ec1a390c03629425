"""Which implementations of an op, by name, run on which device. kernels/__init__.py says what each is; no file of the judge imports it."""

from __future__ import annotations

from collections.abc import Iterable

OURS = {"cpu": ("cpp",), "cuda": ("triton", "cuda")}  # beside plain torch, which runs on all


def runnable(names: Iterable[str], device: str) -> list[str]:
    """Those of the names that are not for another device."""
    elsewhere = {name for other, of in OURS.items() if other != device for name in of}
    return [name for name in names if name not in elsewhere]
