"""The correctness gate without the start of a runner: one process that has imported torch, of which each check gets a fork (bench/runner/lives.py).

A check takes 2 to 4 s less (rms_norm 7.3 in place of 9.5, newton_schulz 13.5 in place of 17.9, one thread, a slow hour), and there are more than a hundred.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

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


class Trials:
    """Judges for bench.trial without the start of runners. They look at one folder, into which a trial's model is copied; what an earlier trial left in a
    runner's scratch folder is there as well, so a trial that is about that, or that does not end, takes runners of its own."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._idle: list[Judge] = []

    def judge(self, tree: Path, *, device: str) -> Fork:
        """In the place of bench.judge.Judge."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="trials-")
        model = Path(self._folder.name, "model")
        model.mkdir(exist_ok=True)
        # in place: a runner has this very folder
        for file in (tree / "model").glob("*.py"):
            (model / file.name).write_bytes(file.read_bytes())
        judge = self._idle.pop() if self._idle else Judge(model.parent, device=device)
        return Fork(judge, self._idle)

    def close(self) -> None:
        for judge in self._idle:
            judge.__exit__(None, None, None)
        self._idle.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


class Fork:
    """A judge for one trial; afterwards another may have it, unless its process has died or is still at work."""

    def __init__(self, judge: Judge, idle: list[Judge]) -> None:
        self._judge, self._idle = judge, idle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._judge, name)

    def __enter__(self) -> Fork:
        try:
            self._judge.ask("live")
        except Refused:
            self._judge.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._judge.ask("leave", timeout=LEAVE_S)
            # Answered by the process that waits, unless there was no fork and it is the one that left.
            self._judge.ask("recall", outputs=[])
        except Refused:
            self._judge.__exit__(None, None, None)
        else:
            self._idle.append(self._judge)


class Timers:
    """Judges for bench.timing without the start of runners: a comparison takes three, and 6 s of processor time less. Each has a folder of its own,
    in which the project's files are those of the arm that asks for it. What is timed is a fork, as it is without this."""

    def __init__(self, folder: Path) -> None:
        self._folders = (folder / str(number) for number in itertools.count())
        self._idle: list[Judge] = []

    def judge(self, tree: Path, *, device: str, memory: None) -> Timed:
        """In the place of bench.judge.Judge."""
        if self._idle:
            judge = self._idle.pop()
        else:
            judge = Judge(Lab().copy_tree(next(self._folders)), device=device)
        shutil.copytree(tree, judge.tree, dirs_exist_ok=True)
        return Timed(judge, self._idle)

    def fork(self, tree: Path, *, device: str, memory: None = None) -> Fork:
        """In the place of bench.judge.Judge, for what asks for no forks itself."""
        return Fork(self.judge(tree, device=device, memory=memory)._judge, self._idle)

    def close(self) -> None:
        for judge in self._idle:
            judge.__exit__(None, None, None)


class Timed(Fork):
    """A judge for one comparison, which asks for forks itself."""

    def __enter__(self) -> Timed:
        return self
