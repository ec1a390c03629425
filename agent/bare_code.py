"""Code without what does not run (comments, layout, docstrings), and whether two texts are the same code."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Sequence

from agent.records import Change

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
