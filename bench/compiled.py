"""What a tree's set-up compiled, kept for the next run of the same tree: caches of torch.compile and Triton, which a runner's end would take along.

What is kept was written by a candidate. So it is never another's: the file has the name of the tree's sources, of what was asked of the model and of
the machine. The judge does not look inside: the runner packs it (bench/runner/keeping.py), and another unpacks it within its own walls. And it is taken
after set-up, which has seen random tokens and nothing else, before the bell: what a trial learns cannot come back with it. The time of a long
compilation is charged to the first trial of a tree alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import hardware
from bench.identity import content
from bench.judge import Judge, Refused

FOLDERS = ("kernels", "csrc", "model")  # of a tree: what its runners compile from
MOST_BYTES = 512 << 20
PIECE = 16 << 20
TRAVEL_S = 60.0
KEPT = 24  # files; those that were used longest ago go


@dataclass(frozen=True)
class Compiled:
    """`file`: of one tree, one specification and one machine."""

    file: Path

    @classmethod
    def of(cls, tree: Path, spec: Mapping[str, Any], store: Path) -> Compiled:
        asked = {name: value for name, value in spec.items() if name != "seconds"}
        machine = [hardware.name(spec["device"]), *map(_version, ("torch", "triton"))]
        key = json.dumps([content(tree, FOLDERS), asked, machine], sort_keys=True)
        return cls(store / hashlib.sha256(key.encode()).hexdigest()[:32])

    def bring(self, judge: Judge) -> None:
        """Give a runner, which has loaded nothing yet, what is kept, if anything is. Raises Refused where it cannot be unpacked, and keeps it no longer."""
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
        """Keep what a runner has made, unless something is kept already, nothing is there, or too much. Raises Refused."""
        if self.file.exists():
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.file.parent) as packed:
            judge.ask("pack", timeout=TRAVEL_S, fd=packed.fileno(), most=MOST_BYTES)
            size = os.fstat(packed.fileno()).st_size
            if 0 < size <= MOST_BYTES:
                # A copy: the runner may have kept the descriptor, and write on when it has seen a text.
                fd, own = tempfile.mkstemp(dir=self.file.parent)
                with open(fd, "wb") as file:
                    for at in range(0, size, PIECE):
                        file.write(os.pread(packed.fileno(), min(PIECE, size - at), at))
                os.rename(own, self.file)
        _forget(self.file.parent)


def _version(package: str) -> str:
    """Empty where it is not installed, as Triton is not everywhere."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _forget(store: Path) -> None:
    """All but the latest, what a judge that was killed had begun among them."""
    for file in sorted(store.iterdir(), key=_used)[:-KEPT]:
        file.unlink(missing_ok=True)


def _used(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # another judge forgot it
        return 0.0
