"""The scope gate: only the surface changes, only as plain text of a sane size, and never the same idea twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from agent import surface
from agent.records import PLAIN, Candidate, Change

# Added and removed lines count both: enough to rewrite the longest file (attention.cpp, 700), not an op in all of its implementations (1,360).
MAX_LINES = 2_000
MAX_BYTES = 200_000
MODEL_FILES = tuple(f"model/{name}.py" for name in ("__init__", "gpt", "optim", "train"))
_KINDS = {
    "120000": "a symbolic link",
    "160000": "a submodule",
    "100755": "an executable file",
    "040000": "a folder",
}


def refusals(candidate: Candidate, op: str | None, ops: Sequence[str]) -> Iterator[str]:
    """What is wrong with the shape of a change, one sentence each, with what would mend it."""
    outside = [path for path in candidate.paths if not surface.editable(path, candidate.target, op)]
    if outside:
        allowed = surface.describe(candidate.target, op)
        yield f"{', '.join(outside)}: outside the surface of this target; change only {allowed}"
    for change in candidate.changes:
        yield from _kind(change)
    yield from _size(candidate)
    yield from _twins(candidate)
    for change in candidate.changes:
        if change.after is not None and change.mode_after == PLAIN:
            yield from _content(change, ops)
        elif change.deleted and _must_stay(change.path):
            yield f"{change.path} is deleted: every op and {', '.join(MODEL_FILES)} must stay; change it instead"


def judge_paths(paths: Sequence[str]) -> list[str]:
    """The paths among these that belong to the judge, which cannot judge a change of itself."""
    frozen = [path for path in paths if path in surface.FROZEN]
    return frozen + [path for path in paths if path.split("/")[0] in surface.JUDGE]


def evidence(candidate: Candidate) -> dict[str, Any]:
    return {
        "paths": list(candidate.paths),
        "lines": _lines(candidate.patch),
        "bytes": len(candidate.patch.encode()),
    }


def _must_stay(path: str) -> bool:
    """Whether a file may not be deleted; other files of the model, which an earlier change has added, may be."""
    return path in MODEL_FILES or (path.endswith(".py") and path.startswith("kernels/"))


def _lines(patch: str) -> int:
    return sum(
        line[:1] in "+-" and line[:3] not in ("+++", "---") for line in patch.splitlines() if line
    )


def _kind(change: Change) -> Iterator[str]:
    if change.mode_after in _KINDS:
        yield f"{change.path} becomes {_KINDS[change.mode_after]}: commit a plain file (mode 100644)"
    elif change.mode_before in _KINDS and not change.deleted:
        yield f"{change.path} is {_KINDS[change.mode_before]} that becomes a file: leave its mode as it is"


def _twins(candidate: Candidate) -> Iterator[str]:
    """Paths that a file system without upper and lower case would take for one file."""
    there = {
        str(file.relative_to(candidate.incumbent))
        for folder in surface.FOLDERS
        for file in (candidate.incumbent / folder).rglob("*")
    } | set(candidate.paths)
    for change in candidate.changes:
        twins = [p for p in there if p.casefold() == change.path.casefold() and p != change.path]
        if change.added and twins:
            yield f"{change.path} differs from {twins[0]} in upper and lower case alone: name it otherwise"


def _size(candidate: Candidate) -> Iterator[str]:
    lines, size = _lines(candidate.patch), len(candidate.patch.encode())
    # A patch omits binaries.
    size += sum(len(c.after or b"") for c in candidate.changes if b"\0" in (c.after or b""))
    if lines > MAX_LINES or size > MAX_BYTES:
        yield (
            f"{lines:,} changed lines and {size:,} bytes: at most {MAX_LINES:,} and {MAX_BYTES:,} in one experiment; "
            "split it into changes that can be judged one by one"
        )


def _content(change: Change, ops: Sequence[str]) -> Iterator[str]:
    try:
        text = change.text()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        yield f"{change.path} is not UTF-8 text: kernels are built from source, nothing else is taken"
        return
    stem = change.path.split("/")[-1].split(".")[0]
    if change.path.startswith("kernels/") and stem not in ops and change.path not in surface.FROZEN:
        yield (
            f"{change.path}: no contract bench/contracts/{stem}.py; every file of kernels/ is an op, one of {', '.join(ops)}; a new one needs a "
            "contract, which a person writes: put the change into an op that there is"
        )
