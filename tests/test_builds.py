"""The build gate's compilers, each in a runner of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import builds


def test_ctrl_c_ends_the_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Compiling:
        def __init__(self, tree: Path, **_: object) -> None:
            self.tree, self.ended = tree, threading.Event()

        def __enter__(self) -> Compiling:
            return self

        def __exit__(self, *_: object) -> None:
            self.ended.set()

        def ask(self, do: str, sources: Sequence[str] = (), **_: object) -> dict[str, object]:
            if any("a.cpp" in source for source in sources):
                raise KeyboardInterrupt
            if sources:
                self.ended.wait(8)
            return {"seconds": {}, "objects": {}}

    monkeypatch.setattr(builds, "Judge", Compiling)
    monkeypatch.setattr(builds.os, "sched_getaffinity", lambda _: {0, 1})
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        builds._compiled(tmp_path, [tmp_path / "a.cpp", tmp_path / "b.cpp"])
    assert time.monotonic() - started < 4
