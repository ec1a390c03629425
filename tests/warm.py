"""The correctness gate without the start of a runner: one process that has imported torch, of which each check gets a fork (bench/runner/lives.py).

A check takes 2 to 4 s less (rms_norm 7.3 in place of 9.5, newton_schulz 13.5 in place of 17.9, one thread, a slow hour), and there are more than a hundred.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from agent.lab import Lab
from bench.correctness import examined
from bench.finding import Finding
from bench.judge import Judge, Refused
from kernels import jit

LEAVE_S = 5.0


class Warm:
    """The project's kernels in a folder, of which a file at a time is another."""

    def __init__(self, folder: Path) -> None:
        self.tree = Lab().copy_tree(folder)
        self._judge: Judge | None = None

    @contextlib.contextmanager
    def replaced(self, place: str, source: bytes):
        file = self.tree / place
        original = file.read_bytes()
        file.write_bytes(source)
        try:
            yield self.tree
        finally:
            file.write_bytes(original)

    def build(self, source: str) -> None:
        """Compile a C++ file of the tree into the runners' cache, in this process: the build gate starts a runner for it, which takes 2 s more."""
        jit.build(self.tree / source, into=jit.cache_directory())

    def check(self, op: str, seed: int) -> Finding:
        """As bench.correctness.check, of the tree as it is now."""
        if self._judge is None:
            self._judge = Judge(self.tree, poison=True)
        self._judge.ask("live")
        found = examined(op, self._judge, seed)
        try:
            self._judge.ask("leave", timeout=LEAVE_S)
        except Refused:  # it has died, or is still at work
            self.close()
        return found

    def close(self) -> None:
        if self._judge is not None:
            self._judge.__exit__(None, None, None)
            self._judge = None
