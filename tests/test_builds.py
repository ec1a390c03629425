"""The build gate's compilers, each in a runner of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import builds


def test_ctrl_c_ends_the_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[bool] = []
    begun = threading.Event()

    class Compiling:
        def __init__(self, tree: Path, **_: object) -> None:
            self.tree, self.ended = tree, threading.Event()

        def __enter__(self) -> Compiling:
            return self

        def __exit__(self, *_: object) -> None:
            self.ended.set()

        def ask(self, do: str, sources: Sequence[str] = (), **_: object) -> dict[str, object]:
            if any("a.cpp" in source for source in sources):
                assert begun.wait(20)
                raise KeyboardInterrupt
            if sources:
                begun.set()
                waited.append(self.ended.wait(60))
            return {"seconds": {}, "objects": {}}

    monkeypatch.setattr(builds, "Judge", Compiling)
    monkeypatch.setattr(builds.os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(KeyboardInterrupt):
        builds._compiled(tmp_path, [tmp_path / "a.cpp", tmp_path / "b.cpp"])
    # told to end, and not by the clock
    assert waited == [True]


def test_nvcc_is_found_where_the_runners_build_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path.resolve()
    for file in (tree / "toolkit" / "bin" / "nvcc", tree / "csrc" / "x.cu"):
        file.parent.mkdir(parents=True)
        file.touch(mode=0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_HOME", str(tree / "toolkit"))
    assert builds._sources(tree, ["csrc/x.cu"]) == [tree / "csrc" / "x.cu"]
