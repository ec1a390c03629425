"""How much code a change adds: a tie between two that are equally good goes to the shorter one.

Statements are counted, not lines of text: comments, layout, docstrings and names weigh nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from agent.records import Change
from agent.scope import without_comments


def added(changes: Sequence[Change]) -> int:
    """Statements after less statements before; below zero: the change makes the code shorter."""
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
