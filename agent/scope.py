"""The scope gate: only the surface changes, only as plain text of a sane size, and never the same idea twice."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from agent import surface
from agent.records import Candidate, Change

MAX_LINES = 2_000  # added or removed; the whole surface has about 6,500
MAX_BYTES = 200_000
ROOMS = tuple(f"model/{name}.py" for name in ("__init__", "gpt", "optim", "train"))
_PLAIN = "100644"
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
        if change.after is not None and change.mode_after == _PLAIN:
            yield from _content(change, ops)
        elif change.deleted and _must_stay(change.path):
            yield f"{change.path} is deleted: an op or a room of the model must stay; change it instead"


def judge_paths(paths: Sequence[str]) -> list[str]:
    """The paths among these that belong to the judge, which cannot judge a change of itself."""
    frozen = [path for path in paths if path in surface.FROZEN]
    return frozen + [path for path in paths if path.split("/")[0] in surface.JUDGE]


def patch_hash(changes: Sequence[Change]) -> str:
    """A hash of a change that does not depend on comments, layout and docstrings."""
    parts = [(c.path, normal_form(c.path, c.before), normal_form(c.path, c.after)) for c in changes]
    return hashlib.sha256(repr(sorted(parts)).encode()).hexdigest()[:16]


def is_idle(changes: Sequence[Change]) -> bool:
    """Whether nothing that runs differs: only comments, layout or docstrings."""
    return all(normal_form(c.path, c.before) == normal_form(c.path, c.after) for c in changes)


def normal_form(path: str, content: bytes | None) -> str:
    """The content without comments, layout and docstrings; unchanged if it does not parse."""
    if content is None:
        return "absent"
    text = content.decode(errors="replace")
    if path.endswith(".py"):
        try:
            return _python_form(text)
        # A sum of a thousand terms parses, but is too deep to be dumped.
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return text
    lines = [" ".join(line.split()) for line in without_comments(text).splitlines()]
    return "\n".join(line for line in lines if line)


def _python_form(text: str) -> str:
    return ast.dump(without_docstrings(ast.parse(text)))


def without_docstrings(tree: ast.Module) -> ast.Module:
    """The same tree, with its docstrings removed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
    return tree


# The comments, numbers and strings of C++; what lies between them is code. A quote within a number (1'000) opens nothing, one behind a word
# (return'"') does, and the R of BAR"(" is no prefix.
CPP_TOKENS = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z))|(?P<number>(?<!\w)\.?\d(?:[eEpP][-+]|'\w|[\w.])*)|(?P<raw>(?<!\w)(?:u8|[uUL])?R"(?P<tag>[^\s()\\]{0,16})\(.*?(?:\)(?P=tag)"|\Z))|(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+')""",
    re.S,
)


def without_comments(text: str, strings: bool = True) -> str:
    """C++ without comments and, if `strings` is False, with every string emptied; line numbers stay."""

    def blank(match: re.Match[str]) -> str:
        found = match.group()
        if match["comment"] is None and (strings or match["number"] or found[0] == "'"):
            return found
        return (" " if match["comment"] else '""') + "\n" * found.count("\n")

    return CPP_TOKENS.sub(blank, text)


def evidence(candidate: Candidate) -> dict[str, Any]:
    return {
        "paths": list(candidate.paths),
        "lines": _lines(candidate.patch),
        "bytes": len(candidate.patch.encode()),
    }


def _must_stay(path: str) -> bool:
    """Whether the lab counts on a file; what a change has added to the model, another may take away."""
    return path in ROOMS or (path.endswith(".py") and path.startswith("kernels/"))


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
        yield f"{change.path}: no contract bench/contracts/{stem}.py; every file of kernels/ is an op, one of {', '.join(ops)}"
