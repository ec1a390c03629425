"""Clocks: a kernel may time its own settings, but nothing else that it does may depend on the time.

A duration is the difference of two readings of one clock in one function. So a reading goes into a local name that holds nothing else, or into
a difference with another. It is not kept from call to call, not taken when the module is imported, and not compared with a date or with another
clock. Otherwise a kernel could tell the first minutes of a process, when it is judged, from the rest.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from agent.static.exports import binds

_READINGS = frozenset(
    "time perf_counter monotonic process_time thread_time time_ns perf_counter_ns monotonic_ns process_time_ns thread_time_ns "
    "clock_gettime clock_gettime_ns".split()
)
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Of = Callable[[ast.AST], Sequence[str]]
_REASON = (
    "a clock that is read for more than a duration within one function: write `start = time.perf_counter()`, a name that holds nothing else, and "
    "`time.perf_counter() - start`; nothing may follow from what time it is"
)
_AS_A_VALUE = "a clock as a value: call it where you need it, as `time.perf_counter()`, and give what is no clock another name"


def lasting_readings(tree: ast.Module, of: _Of) -> Iterator[tuple[int, str]]:
    """(line, sentence) of each reading that outlives its function, and of each clock that is handed on.

    `of` gives the dotted origins that an expression may have.
    """
    for scope, nodes in _scopes(tree):
        inside = nodes if scope is None else list(ast.walk(scope))
        parents = {id(child): node for node in inside for child in ast.iter_child_nodes(node)}
        yield from ((line, _AS_A_VALUE) for line in _handed_on(nodes, parents, of))
        # What a reading gives: itself, and the names that hold it; each with its clock.
        clocks = {
            id(n): _clock(of(n.func))
            for n in nodes
            if isinstance(n, ast.Call) and _tells_time(of(n.func))
        }
        stamps = _stamps(scope, nodes, inside, parents, clocks)
        for n in inside:
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load) and n.id in stamps:
                clocks[id(n)] = stamps[n.id]
        later = _later(scope, nodes, inside)
        for node in inside:
            if id(node) not in clocks:
                continue
            if id(node) in later or not _measures(node, parents.get(id(node)), clocks, stamps):
                yield getattr(node, "lineno", 1), _REASON


def _tells_time(origins: Sequence[str]) -> bool:
    parts = (origin.rpartition(".") for origin in origins)
    return any(package == "time" and function in _READINGS for package, _, function in parts)


def _clock(origins: Sequence[str]) -> str:
    """The clock that a call reads; "" where it may be one of several, as that of time.clock_gettime, whose argument says which."""
    return origins[0] if len(origins) == 1 and "clock_gettime" not in origins[0] else ""


def _handed_on(nodes: Sequence[ast.AST], parents: Mapping[int, ast.AST], of: _Of) -> Iterator[int]:
    """Lines where a clock is passed on instead of called: no reading shows who reads it then. Another name for it, or a default, is followed."""
    bodies = {id(n) for c in nodes if isinstance(c, ast.ClassDef) for n in ast.walk(c)}
    for node in nodes:
        parent = parents.get(id(node))
        if isinstance(node, ast.Call) and node.args and getattr(node.func, "id", "") == "getattr":
            if "time" in of(node.args[0]):
                yield node.lineno
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            called = isinstance(parent, ast.Call) and parent.func is node
            named = bool(_stored_in(parent, node)) and id(node) not in bodies
            followed = called or named or isinstance(parent, ast.arguments)
            if not followed and _tells_time(of(node)):
                yield node.lineno


def _measures(
    node: ast.AST, parent: ast.AST | None, clocks: Mapping[int, str], stamps: Mapping[str, str]
) -> bool:
    """Whether a reading, or a name that holds one, goes into such names alone, or into a difference with another of the same clock."""
    if isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Sub):
        left, right = clocks.get(id(parent.left)), clocks.get(id(parent.right))
        return bool(left) and left == right
    names = _stored_in(parent, node)
    return bool(names) and all(name in stamps for name in names)


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
    nodes: Sequence[ast.AST],
    inside: Sequence[ast.AST],
    parents: Mapping[int, ast.AST],
    clocks: Mapping[int, str],
) -> dict[str, str]:
    """Local names that hold readings of one clock and never anything else, each with its clock."""
    if scope is None:
        return {}
    stored = [
        (name, clocks[id(n)])
        for n in nodes
        if id(n) in clocks
        for name in _stored_in(parents.get(id(n)), n)
    ]
    bound = Counter(name for n in nodes for name, _ in binds(n))
    # Also where a function within this one says `nonlocal`.
    outer = {name for n in inside if isinstance(n, ast.Global | ast.Nonlocal) for name in n.names}
    outer |= {n.arg for n in ast.walk(scope.args) if isinstance(n, ast.arg)}
    return {
        name: clock
        for name, clock in stored
        if clock and name not in outer and stored.count((name, clock)) == bound[name]
    }


def _later(
    scope: _Function | None, nodes: Sequence[ast.AST], inside: Sequence[ast.AST]
) -> set[int]:
    """What runs when the function has ended, or goes on from call to call: functions made there, and generators."""
    if scope is None or any(isinstance(n, ast.Yield | ast.YieldFrom | ast.Await) for n in nodes):
        return {id(n) for n in inside}
    own = {id(n) for n in nodes}
    lazy = {id(m) for n in nodes if isinstance(n, ast.Lambda | ast.GeneratorExp) for m in ast.walk(n)}  # fmt: skip
    return lazy | {id(n) for n in inside if id(n) not in own}


def _stored_in(parent: ast.AST | None, value: ast.AST) -> list[str]:
    """The names that a value is assigned to; none if it goes anywhere else."""
    if not isinstance(parent, ast.Assign | ast.AnnAssign) or parent.value is not value:
        return []
    targets = parent.targets if isinstance(parent, ast.Assign) else [parent.target]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return names if len(names) == len(targets) else []
