"""Clocks: a kernel may time its own settings, and nothing else may follow from what time it is.

A duration is the difference of two readings in one function. So a reading goes into a local name, or into a difference with one. It is
not kept from call to call, not taken when the module is imported, and not compared with a date. Otherwise a kernel could tell the first
minutes of a process, when it is judged, from the rest.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

_READINGS = frozenset(
    "time perf_counter monotonic process_time thread_time time_ns perf_counter_ns monotonic_ns process_time_ns thread_time_ns "
    "clock_gettime clock_gettime_ns".split()
)
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_REASON = "a clock that is read for more than a duration within one function; nothing may follow from what time it is"


def lasting_readings(
    tree: ast.Module, origin: Callable[[ast.AST], str]
) -> Iterator[tuple[int, str]]:
    """(line, sentence) of each reading that outlives its function. `origin` gives the dotted origin of an expression."""
    for scope, nodes in _scopes(tree):
        local = _locals(scope, nodes)
        parents = {id(child): node for node in nodes for child in ast.iter_child_nodes(node)}
        readings = [n for n in nodes if isinstance(n, ast.Call) and _is_reading(origin(n.func))]
        stamps: set[str] = set()
        for reading in readings:
            parent = parents.get(id(reading))
            names = _stored_in(parent, reading)
            if scope is not None and names and set(names) <= local:
                stamps |= set(names)
            elif scope is None or not _is_duration(parent, reading, local):
                yield reading.lineno, _REASON
        for node in nodes:
            if isinstance(node, ast.Assign | ast.AugAssign | ast.Return) and node.value is not None:
                kept = isinstance(node, ast.Return) or any(
                    not isinstance(t, ast.Name) or t.id not in local for t in _targets(node)
                )
                if kept and isinstance(node.value, ast.Name) and node.value.id in stamps:
                    yield node.lineno, _REASON


def _is_reading(name: str) -> bool:
    package, _, function = name.rpartition(".")
    return package == "time" and function in _READINGS


def _scopes(tree: ast.Module) -> Iterator[tuple[_Function | None, list[ast.AST]]]:
    """Each function, and None for the module and its classes, with the nodes that run as part of it."""
    open_ends: list[tuple[_Function | None, ast.AST]] = [(None, tree)]
    found: dict[int, tuple[_Function | None, list[ast.AST]]] = {}
    while open_ends:
        scope, node = open_ends.pop()
        found.setdefault(id(scope), (scope, []))[1].append(node)
        inner = node if isinstance(node, _Function) else scope
        open_ends += [(inner, child) for child in ast.iter_child_nodes(node)]
    yield from found.values()


def _locals(scope: _Function | None, nodes: list[ast.AST]) -> set[str]:
    if scope is None:
        return set()
    outer = {name for n in nodes if isinstance(n, ast.Global | ast.Nonlocal) for name in n.names}
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)} - outer


def _targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign | ast.NamedExpr) else []


def _stored_in(parent: ast.AST | None, reading: ast.Call) -> list[str]:
    """The names that a reading is assigned to; none if it goes anywhere else."""
    if not isinstance(parent, ast.Assign | ast.AnnAssign | ast.NamedExpr | ast.AugAssign):
        return []
    targets = _targets(parent)
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return names if len(names) == len(targets) and parent.value is reading else []


def _is_duration(parent: ast.AST | None, reading: ast.Call, local: set[str]) -> bool:
    """Whether a reading is one side of a subtraction whose other side is local."""
    if not (isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Sub)):
        return False
    other = parent.right if parent.left is reading else parent.left
    names = {n.id for n in ast.walk(other) if isinstance(n, ast.Name)}
    return bool(names) and names <= local
