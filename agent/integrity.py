"""While a candidate is judged, neither it nor the judge may change.

A `Seal` remembers the files of some folders by content. The judge's own are sealed when a command starts and checked before a verdict
counts; a candidate's tree is sealed before the first gate and checked after each, so that the trial runs what the gates saw.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.surface import FOLDERS, JUDGE

# Python writes these while the judge runs; in a tree under judgement not even these may appear.
_CACHES = "__pycache__"


class Tampered(RuntimeError):
    """Files of the judge changed while it judged; the message names them."""


@dataclass(frozen=True)
class Seal:
    """The files of `folders` under `root` as they were: by path a hash of the content, or in words what is no plain file.

    `caches`: __pycache__ and hidden files count too.
    """

    root: Path
    folders: tuple[str, ...]
    caches: bool
    files: Mapping[str, str]

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(sorted(self.files.items())).encode()).hexdigest()[:16]

    def odd(self) -> list[str]:
        """What is no plain file of its own, and what it is instead: links, devices, files with a second name."""
        return [f"{path} is {kind}" for path, kind in self.files.items() if not kind.isalnum()]

    def changed(self) -> list[str]:
        """Paths that now differ, are gone, or are new."""
        now = _files(self.root, self.folders, self.caches)
        return sorted({path for path, _ in self.files.items() ^ now.items()})


def of_judge(root: Path) -> Seal:
    """The judge of a checkout."""
    return Seal(root, JUDGE, False, _files(root, JUDGE, False))


def of_tree(tree: Path) -> Seal:
    """A tree under judgement."""
    return Seal(tree, FOLDERS, True, _files(tree, FOLDERS, True))


def verify(judge: Seal) -> None:
    """Raises Tampered if the judge has changed since it was sealed."""
    changed = judge.changed()
    if changed:
        raise Tampered(
            f"{', '.join(changed[:5])} changed while the judge was at work: what was measured before and after cannot be compared. "
            "Look at `git diff`, then start again"
        )


def _files(root: Path, folders: Sequence[str], caches: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    for folder in folders:
        top = root / folder
        if top.is_symlink():
            found[folder] = "a symbolic link"
            continue
        for where, below, names in os.walk(top):
            if not caches:
                below[:] = [name for name in below if name != _CACHES]
            for name in [*names, *(b for b in below if (Path(where) / b).is_symlink())]:
                path = Path(where) / name
                if not caches and name.startswith("."):
                    # An editor's own, such as .rule.py.swp.
                    continue
                found[str(path.relative_to(root))] = _content(path)
    return found


def _content(path: Path) -> str:
    """A hash of a plain file, its executable bit included; words for anything else."""
    try:
        seen = path.lstat()
        if stat.S_ISLNK(seen.st_mode):
            return f"a symbolic link to {os.readlink(path)}"
        if not stat.S_ISREG(seen.st_mode):
            return "no plain file"
        if seen.st_nlink > 1:
            return f"a hard link, one of {seen.st_nlink}"
        digest = hashlib.sha256(path.read_bytes())
    except FileNotFoundError:
        return "no plain file"
    digest.update(b"x" if seen.st_mode & 0o111 else b"-")
    return digest.hexdigest()
