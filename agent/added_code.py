"""How much code a change adds: of two equally good changes the shorter one wins.

Statements are counted, not lines of text: comments, layout, docstrings and the length of names do not count.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from agent.records import Change
from agent.scope import without_comments


def added(changes: Sequence[Change]) -> int:
    """Statements after the change minus statements before; negative if it makes the code shorter."""
    return sum(_count(c.path, c.after) - _count(c.path, c.before) for c in changes)


def _count(path: str, content: bytes | None) -> int:
    text = (content or b"").decode()
    if path.endswith(".py"):
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)]
        return sum(not _is_docstring(node) for node in nodes)
    code = without_comments(text)
    return code.count(";") + code.count("{") + code.count("#")


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
