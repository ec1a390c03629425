"""What a tree's set-up compiled, kept for the next set-up of the same tree: caches of torch.compile and Triton, which would go with the runner.

What is kept was written by a candidate. So no other candidate gets it: the file is named by a digest of the tree's sources, of what was asked of
the model and of the machine. The judge does not look inside: one runner packs it (bench/runner/keeping.py), and another unpacks it in its own
sandbox. And it is taken before the bell, after a set-up that has seen nothing but random tokens: what a trial learns cannot come back with it.
A profile (bench/step_profile.py), whose steps see random tokens alone, shares it. A trial whose set-up took long sets up again with it, and only the
second counts (bench/trial.py): so compiling what is kept here is charged to no trial.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import hardware
from bench.identity import content, installed
from bench.judge import Judge, Refused

FOLDERS = ("kernels", "csrc", "model")  # of a tree: what its runners compile from
MOST_BYTES = 512 << 20
PIECE = 16 << 20
TRAVEL_S = 60.0
KEPT = 24  # files


@dataclass(frozen=True)
class Compiled:
    """What is kept, in `file`, of one tree, one specification and one machine."""

    file: Path

    @classmethod
    def of(cls, tree: Path, spec: Mapping[str, Any], store: Path) -> Compiled:
        asked = {name: value for name, value in spec.items() if name != "seconds"}
        machine = [hardware.name(spec["device"]), *map(installed, ("torch", "triton"))]
        # Caches hold nothing for another compiler or assembler, and what is kept is never replaced.
        machine += [os.environ.get(name, "") for name in ("CXX", "TRITON_PTXAS_PATH")]
        key = json.dumps([content(tree, FOLDERS), asked, machine], sort_keys=True)
        return cls(store / hashlib.sha256(key.encode()).hexdigest()[:32])

    def bring(self, judge: Judge) -> None:
        """Give what is kept, if anything is, to a runner that has loaded nothing yet. Where it cannot be unpacked, deletes it and raises Refused."""
        try:
            fd = os.open(self.file, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            os.utime(fd)
            judge.ask("unpack", timeout=TRAVEL_S, fd=fd)
        except Refused:
            self.file.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)

    def take(self, judge: Judge) -> None:
        """Keep what a runner has made, unless something is kept already, or nothing was made, or too much. Raises Refused."""
        if self.file.exists():
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # Memory and no file: on a full disk the runner would fail, and its candidate be blamed.
        packed = os.memfd_create("packed")
        try:
            judge.ask("pack", timeout=TRAVEL_S, fd=packed, most=MOST_BYTES)
            size = os.fstat(packed).st_size
            if 0 < size <= MOST_BYTES:
                self._copy(packed, size)
        finally:
            os.close(packed)
        _forget(self.file.parent)

    def _copy(self, packed: int, size: int) -> None:
        """A copy: the runner may have kept the descriptor, and write on when it has seen text."""
        fd, own = tempfile.mkstemp(dir=self.file.parent)
        try:
            with open(fd, "wb") as file:
                for at in range(0, size, PIECE):
                    file.write(os.pread(packed, min(PIECE, size - at), at))
            os.rename(own, self.file)
        finally:
            Path(own).unlink(missing_ok=True)


def _forget(store: Path) -> None:
    """Delete all but the KEPT most recently used files; what a judge that was killed had begun is one of them."""
    for file in sorted(store.iterdir(), key=_used)[:-KEPT]:
        file.unlink(missing_ok=True)


def _used(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # another judge forgot it
        return 0.0
