"""Clocks: a kernel may time its own settings, and nothing else may follow from what time it is.

A duration is the difference of two readings in one function. So a reading goes into a local name that holds nothing else, or into a difference
with another. It is not kept from call to call, not taken when the module is imported, and not compared with a date. Otherwise a kernel could
tell the first minutes of a process, when it is judged, from the rest.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

_READINGS = frozenset(
    "time perf_counter monotonic process_time thread_time time_ns perf_counter_ns monotonic_ns process_time_ns thread_time_ns "
    "clock_gettime clock_gettime_ns".split()
)
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_REASON = (
    "a clock that is read for more than a duration within one function: write `start = time.perf_counter()`, a name that holds nothing else, and "
    "`time.perf_counter() - start`; nothing may follow from what time it is"
)


def lasting_readings(
    tree: ast.Module, origin: Callable[[ast.AST], str]
) -> Iterator[tuple[int, str]]:
    """(line, sentence) of each reading that outlives its function. `origin` gives the dotted origin of an expression."""
    for scope, nodes in _scopes(tree):
        inside = nodes if scope is None else list(ast.walk(scope))
        parents = {id(child): node for node in inside for child in ast.iter_child_nodes(node)}
        readings = [n for n in nodes if isinstance(n, ast.Call) and _is_reading(origin(n.func))]
        stamps = _stamps(scope, nodes, parents, readings)
        later = _later(scope, nodes, inside)
        ends = {id(n) for n in readings} | {id(n) for n in inside if _reads(n, stamps)}
        for node in inside:
            if id(node) not in ends:
                continue
            parent = parents.get(id(node))
            stored = isinstance(node, ast.Call) and set(_stored_in(parent, node)) & stamps
            between = (
                isinstance(parent, ast.BinOp)
                and isinstance(parent.op, ast.Sub)
                and {id(parent.left), id(parent.right)} <= ends
            )
            if id(node) in later or not (stored or between):
                yield getattr(node, "lineno", 1), _REASON


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


def _stamps(
    scope: _Function | None,
    nodes: list[ast.AST],
    parents: dict[int, ast.AST],
    readings: list[ast.Call],
) -> set[str]:
    """Local names that hold a reading and never anything else."""
    if scope is None:
        return set()
    stored = [name for r in readings for name in _stored_in(parents.get(id(r)), r)]
    bound = [n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)]
    outer = {name for n in nodes if isinstance(n, ast.Global | ast.Nonlocal) for name in n.names}
    outer |= {n.arg for n in ast.walk(scope.args) if isinstance(n, ast.arg)}
    return {name for name in stored if stored.count(name) == bound.count(name)} - outer


def _reads(node: ast.AST, stamps: set[str]) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in stamps


def _later(scope: _Function | None, nodes: list[ast.AST], inside: list[ast.AST]) -> set[int]:
    """What runs when the function has ended, or goes on from call to call: functions made there, and generators."""
    if scope is None or any(isinstance(n, ast.Yield | ast.YieldFrom | ast.Await) for n in nodes):
        return {id(n) for n in inside}
    own = {id(n) for n in nodes}
    lazy = {id(m) for n in nodes if isinstance(n, ast.Lambda | ast.GeneratorExp) for m in ast.walk(n)}  # fmt: skip
    return lazy | {id(n) for n in inside if id(n) not in own}


def _targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign) else []


def _stored_in(parent: ast.AST | None, reading: ast.Call) -> list[str]:
    """The names that a reading is assigned to; none if it goes anywhere else."""
    if not isinstance(parent, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return []
    targets = _targets(parent)
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return names if len(names) == len(targets) and parent.value is reading else []
