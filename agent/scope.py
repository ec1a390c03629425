"""The scope gate: only the surface changes, only as plain text of a sane size, and never the same idea twice."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent import surface
from agent.records import Candidate, Change

MAX_LINES = 2_000  # added or removed; the whole project has about 6,000
MAX_BYTES = 200_000
MAX_STRING = 20_000  # bytes of one string; the longest docstring here is a tenth of it
MAX_STRINGS = 60_000  # bytes of all strings of a file
MAX_NUMBERS = 512  # in one literal: a table of weights, not of settings
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
    for change in candidate.changes:
        if change.after is not None and change.mode_after == _PLAIN:
            yield from _content(change, ops)
        elif change.deleted and _is_room(change.path):
            yield f"{change.path} is deleted: an op or a room of the model must stay; change it instead"


def judge_paths(paths: Sequence[str]) -> list[str]:
    """Those of the paths that belong to the judge: a change to it cannot be judged by it."""
    frozen = [path for path in paths if path in surface.FROZEN]
    return frozen + [path for path in paths if path.split("/")[0] in surface.JUDGE]


def patch_hash(changes: Sequence[Change]) -> str:
    """A hash of a change that comments, layout and docstrings do not move."""
    parts = [(c.path, normal_form(c.path, c.before), normal_form(c.path, c.after)) for c in changes]
    return hashlib.sha256(repr(sorted(parts)).encode()).hexdigest()[:16]


def is_idle(changes: Sequence[Change]) -> bool:
    """Whether nothing that runs differs: only comments, layout or docstrings."""
    return all(normal_form(c.path, c.before) == normal_form(c.path, c.after) for c in changes)


def normal_form(path: str, content: bytes | None) -> str:
    """The content without comments, layout and docstrings; as it is where it does not parse."""
    if content is None:
        return "absent"
    text = content.decode(errors="replace")
    if path.endswith(".py"):
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return text
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                if ast.get_docstring(node, clean=False) is not None:
                    del node.body[0]
        return ast.dump(tree)
    lines = [" ".join(line.split()) for line in without_comments(text).splitlines()]
    return "\n".join(line for line in lines if line)


_CPP = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)|(?P<raw>R"(?P<tag>[^\s()\\]{0,16})\(.*?\)(?P=tag)")|(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+')""",
    re.S,
)


_TABLE = re.compile(rf"(?:[-+]?[ \t]*[\d.](?:[eE][-+]|[\w.'])*[ \t]*,[{{}}\s]*){{{MAX_NUMBERS},}}")


def without_comments(text: str, strings: bool = True) -> str:
    """C++ without comments and, if `strings` is False, with every string emptied; line numbers stay."""

    def blank(match: re.Match[str]) -> str:
        found = match.group()
        if match["comment"] is None and (strings or found[0] == "'"):
            return found
        return (" " if match["comment"] else '""') + "\n" * found.count("\n")

    return _CPP.sub(blank, text)


def evidence(candidate: Candidate) -> Mapping[str, Any]:
    return {
        "paths": list(candidate.paths),
        "lines": _lines(candidate.patch),
        "bytes": len(candidate.patch),
    }


def _is_room(path: str) -> bool:
    return path.endswith(".py") and path.startswith(("kernels/", "model/"))


def _lines(patch: str) -> int:
    return sum(
        line[:1] in "+-" and line[:3] not in ("+++", "---") for line in patch.splitlines() if line
    )


def _kind(change: Change) -> Iterator[str]:
    if change.mode_after in _KINDS:
        yield f"{change.path} becomes {_KINDS[change.mode_after]}: commit a plain file (mode 100644)"
    elif change.mode_before in _KINDS and not change.deleted:
        yield f"{change.path} is {_KINDS[change.mode_before]} that becomes a file: leave its mode as it is"


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
        yield f"{change.path}: no contract bench/contracts/{stem}.py; every file of kernels/ is an op, known are {', '.join(ops)}"
    found = _python_literals(text) if change.path.endswith(".py") else _cpp_literals(text)
    for line, what in found:
        yield f"{change.path}:{line}: {what}; weights and tables are learned in the trial, not brought along"


def _python_literals(text: str) -> Iterator[tuple[int, str]]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # the static gate says why
    strings = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            size = len(
                node.value.encode(errors="replace") if isinstance(node.value, str) else node.value
            )
            strings += size
            if size > MAX_STRING:
                yield node.lineno, f"a literal of {size:,} bytes, at most {MAX_STRING:,}"
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, int)
            and node.value.bit_length() > 8 * 64
        ):
            yield node.lineno, f"an integer of {node.value.bit_length():,} bits, at most 512"
        elif isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict):
            # Only numbers of this literal and of those inside it; nested ones are then reported with it.
            count = sum(
                isinstance(n, ast.Constant) and isinstance(n.value, int | float)
                for n in ast.walk(node)
            )
            if count > MAX_NUMBERS:
                yield node.lineno, f"a table of {count:,} numbers, at most {MAX_NUMBERS}"
                return
    if strings > MAX_STRINGS:
        yield 1, f"{strings:,} bytes of strings, at most {MAX_STRINGS:,}"


def _cpp_literals(text: str) -> Iterator[tuple[int, str]]:
    code = without_comments(text)
    strings = 0
    for match in _CPP.finditer(code):
        size = len(match.group())
        strings += size
        if size > MAX_STRING:
            yield (
                code.count("\n", 0, match.start()) + 1,
                f"a literal of {size:,} bytes, at most {MAX_STRING:,}",
            )
    if strings > MAX_STRINGS:
        yield 1, f"{strings:,} bytes of strings, at most {MAX_STRINGS:,}"
    for match in _TABLE.finditer(without_comments(text, strings=False)):
        count = match.group().count(",")
        yield (
            text.count("\n", 0, match.start()) + 1,
            f"a table of {count:,} numbers, at most {MAX_NUMBERS}",
        )
