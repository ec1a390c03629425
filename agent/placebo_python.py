"""Changes of Python that change tokens and nothing that runs: a local variable under another name, two functions in the other order."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator

# A function that looks its own variables up by name is left alone.
_BY_NAME = {"locals", "eval", "exec", "vars", "dir"}


def rename(text: str, suffix: str, rng: random.Random) -> tuple[str, str] | None:
    """The text with one local variable renamed to end in `suffix`, and what was done; None if there is none to rename."""
    found = [(node, name) for node in _functions(ast.parse(text)) for name in _locals(node)]
    if not found:
        return None
    function, name = rng.choice(found)
    new = f"{name}_{suffix}"
    places = [
        (node.lineno, node.col_offset)
        for statement in function.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and node.id == name
    ]
    lines = text.encode().splitlines(keepends=True)
    for number, column in sorted(places, reverse=True):
        line = lines[number - 1]
        lines[number - 1] = line[:column] + new.encode() + line[column + len(name.encode()) :]
    return b"".join(lines).decode(), f"{name} of {function.name} is called {new}"


def reorder(text: str, rng: random.Random) -> tuple[str, str] | None:
    """The text with two neighbouring functions of the module swapped, and what was done; None if no two can be."""
    body = ast.parse(text).body
    lines = text.splitlines(keepends=True)
    pairs = [
        (one, other)
        for one, other in zip(body, body[1:], strict=False)
        if isinstance(one, ast.FunctionDef)
        and isinstance(other, ast.FunctionDef)
        and not "".join(lines[(one.end_lineno or 0) : _first(other)]).strip()
        and one.name not in set(_read_at_definition(other))
    ]
    if not pairs:
        return None
    one, other = rng.choice(pairs)
    a, b, c, d = _first(one), one.end_lineno or 0, _first(other), other.end_lineno or 0
    swapped = lines[:a] + _ended(lines[c:d]) + lines[b:c] + lines[a:b] + lines[d:]
    return "".join(swapped), f"{other.name} stands before {one.name}"


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            classes = any(isinstance(n, ast.ClassDef) for n in ast.walk(node))
            # of a Triton kernel nothing runs on a CPU, and the correctness gate says so
            jit = any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
            if not classes and not jit and not names & _BY_NAME:
                yield node


def _locals(function: ast.FunctionDef) -> list[str]:
    """Names that the function assigns and that occur in it only as plain names, so that all places can be found."""
    stored, elsewhere = set(), set()
    for statement in function.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                stored.add(node.id)
            elsewhere |= set(_other_places(node))
    elsewhere |= {arg.arg for arg in ast.walk(function.args) if isinstance(arg, ast.arg)}
    return sorted(stored - elsewhere)


def _other_places(node: ast.AST) -> Iterator[str]:
    """Names that a node holds in another way than as an `ast.Name` with a position of its own."""
    if isinstance(node, ast.Global | ast.Nonlocal):
        yield from node.names
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name
    elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        yield node.name
    elif isinstance(node, ast.alias):
        yield (node.asname or node.name).split(".")[0]
    elif isinstance(node, ast.JoinedStr):  # positions inside are wrong before Python 3.12
        yield from (n.id for n in ast.walk(node) if isinstance(n, ast.Name))


def _read_at_definition(function: ast.FunctionDef) -> Iterator[str]:
    """Names that are looked up when the function is defined: in decorators, defaults and annotations."""
    parts: list[ast.AST] = [*function.decorator_list, function.args]
    parts += [function.returns] if function.returns else []
    return (n.id for part in parts for n in ast.walk(part) if isinstance(n, ast.Name))


def _first(function: ast.FunctionDef) -> int:
    """Index of the function's first line, its decorators included."""
    return min([function.lineno, *(d.lineno for d in function.decorator_list)]) - 1


def _ended(lines: list[str]) -> list[str]:
    """The lines, the last one with a newline, which the end of a file may lack."""
    return [*lines[:-1], lines[-1].rstrip("\n") + "\n"]
