"""How much code a change adds: of two equally good changes the shorter one wins.

Words are counted: names, numbers (in texts too) and keywords. Comments, layout, docstrings, other texts and the length of names do not count,
and two statements written as one (`a, b = 1, 2`) are no shorter.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Sequence

from agent.bare_code import without_comments, without_docstrings
from agent.records import Change


def added(changes: Sequence[Change]) -> int:
    """Words after the change minus words before; negative if it makes the code shorter."""
    return sum(_count(c.path, c.after) - _count(c.path, c.before) for c in changes)


def _count(path: str, content: bytes | None) -> int:
    text = (content or b"").decode(errors="replace")
    if not path.endswith(".py"):
        return len(re.findall(r"\w+", without_comments(text, strings=False)))
    tree = without_docstrings(ast.parse(text))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            node.value = " ".join(re.findall(r"\d+", str(node.value)))
    # A sum of some hundred terms is too deep: then the text as it stands counts, comments included.
    with contextlib.suppress(RecursionError):
        text = ast.unparse(tree)
    return len(re.findall(r"\w+", text))
