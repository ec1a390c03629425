"""Puts a change that was made on one commit on another: three-way, file by file, by git's own merge."""

from __future__ import annotations

import tempfile
from pathlib import Path

from agent.git import GitError, Repository
from agent.records import Change


def onto(
    repository: Repository, base: str, changed: str, target: str
) -> dict[str, str | None] | None:
    """Whole texts of the files that put the change from `base` to `changed` onto `target`; None if both changed the same lines.

    Empty if `target` has the change already.
    """
    theirs = {change.path: change for change in repository.changes(base, target)}
    merged: dict[str, str | None] = {}
    for change in repository.changes(base, changed):
        other = theirs.get(change.path)
        if other is None:
            merged[change.path] = None if change.after is None else change.text()
        elif other.after != change.after:
            text = _merge(repository, change, other)
            if text is None:
                return None
            if text.encode() != other.after:
                merged[change.path] = text
    return merged


def _merge(repository: Repository, ours: Change, theirs: Change) -> str | None:
    """The file with both changes; None if they overlap, or if one of them adds or deletes the file."""
    if None in (ours.before, ours.after, theirs.after):
        return None
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for name, content in (
            ("ours", ours.after),
            ("base", ours.before),
            ("theirs", theirs.after),
        ):
            file = Path(folder) / name
            file.write_bytes(content or b"")
            names.append(str(file))
        try:
            return repository.raw("merge-file", "--stdout", *names).decode()
        except GitError:
            return None
