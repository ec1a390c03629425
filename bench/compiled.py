"""What a tree's set-up compiled, kept for the next run of the same tree: caches of torch.compile and Triton.

A runner's folders die with it, so each would compile all from nothing: the CPU's model under torch.compile takes 60 s to set up, and 4 from a copy of what an earlier
set-up left (4.5 MB, in another folder). A trial has two runners that compile, a parity probe three.

What is kept was written by a candidate, so it is never another's: its folder has the name of the tree's files, what was asked of the model and the
machine, and each runner has a copy of its own, which nobody reads again. It is taken after set-up, which has seen random tokens and nothing else, and
never after the bell: what a trial learns cannot come back with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import hardware
from bench.identity import content

FOLDERS = ("kernels", "csrc", "model")  # of a tree: what its runners compile from
MOST_BYTES = 512 << 20
MOST_FILES = 20_000
KEPT = 24  # trees and specifications; the ones that were used longest ago go


@dataclass(frozen=True)
class Compiled:
    """`folder`: of one tree, one specification and one machine."""

    folder: Path

    @classmethod
    def of(cls, tree: Path, spec: Mapping[str, Any], store: Path) -> Compiled:
        asked = {name: value for name, value in spec.items() if name != "seconds"}
        machine = [hardware.name(spec["device"]), *map(version, ("torch", "triton"))]
        key = json.dumps([content(tree, FOLDERS), asked, machine], sort_keys=True)
        return cls(store / hashlib.sha256(key.encode()).hexdigest()[:32])

    def bring(self, into: Path) -> None:
        """Copy what is kept into a runner's folder; nothing where nothing is."""
        if self.folder.is_dir():
            os.utime(self.folder)
            shutil.copytree(self.folder / "files", into, dirs_exist_ok=True)
            # Triton's list of a kernel's files names them by whole paths, and what is not there it compiles.
            before, now = (self.folder / "from").read_bytes(), os.fsencode(into)
            for group in into.glob("triton/*/__grp__*.json"):
                group.write_bytes(group.read_bytes().replace(before, now))

    def take(self, out_of: Path) -> None:
        """Keep what a runner's folder holds, unless something is kept already, nothing is there, or too much."""
        if self.folder.exists():
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="new-", dir=self.folder.parent) as new:
            whole = Path(new, "whole")
            if _copied(out_of, whole / "files"):
                (whole / "from").write_bytes(os.fsencode(out_of))
                try:
                    whole.rename(self.folder)
                except OSError:
                    if not self.folder.exists():  # another judge may have been first
                        raise
        _forget(self.folder.parent)


def _copied(source: Path, target: Path) -> bool:
    """Copy regular files and folders, whatever the process that owns them makes of them meanwhile: no link is followed. False for no file, and for too much."""
    files = size = folders = 0
    for folder, _, names, descriptor in os.fwalk(source, follow_symlinks=False):
        here = target / Path(folder).relative_to(source)
        here.mkdir(parents=True)
        folders += 1
        for name in names:
            try:
                opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)  # fmt: skip
            except OSError:  # a link, or gone
                continue
            with open(opened, "rb") as file:
                found = os.fstat(opened)
                if not stat.S_ISREG(found.st_mode):
                    continue
                files, size = files + 1, size + found.st_size
                if files + folders > MOST_FILES or size > MOST_BYTES:
                    return False
                (here / name).write_bytes(file.read(found.st_size))
    return files > 0


def _forget(store: Path) -> None:
    kept = sorted((f for f in store.iterdir() if not f.name.startswith("new-")), key=_used)
    for folder in kept[:-KEPT]:
        shutil.rmtree(folder, ignore_errors=True)


def _used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # another judge forgot it
        return 0.0
