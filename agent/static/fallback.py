"""Silent fallbacks: a handler that answers with another computation where the kernel fails.

A kernel says what it cannot do, and the caller chooses by `impl`. So a handler of a kernel's errors may note, re-raise, or go on with
the next setting of an autotuner, but it may compute no result: it neither returns what a call gives, nor binds a name to a torch
function, to a function of this file that computes with torch, or to what one of these returns. A lookup that misses (KeyError,
IndexError, StopIteration, around statements that compute nothing) is no failure of a kernel, and its handler may compute.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

_LOOKUP_ERRORS = frozenset({"KeyError", "IndexError", "LookupError", "StopIteration"})
# Calls that a handler may return: they make a message or a number, no tensor.
_PLAIN = frozenset(
    "str repr len format float int bool tuple list dict set min max sum print isinstance type range zip enumerate sorted".split()
)
# What computes nothing in torch.
_NO_COMPUTATION = (
    "torch.cuda.", "torch.backends.", "torch.compiler.", "torch.get_", "torch.is_", "torch.finfo", "torch.iinfo", "torch.dtype", "torch.device",
    "torch.Size", "torch.promote_types", "torch.result_type",
)  # fmt: skip
_VALUES = frozenset(
    "inf nan pi e float bool half double bfloat16 float16 float32 float64 int8 int16 int32 int64 uint8 Tensor strided".split()
)
_REASON = (
    "a silent fallback: where the kernel fails, another computation answers; let the error out, "
    "and name the other way in IMPLEMENTATIONS"
)


def fallbacks(tree: ast.Module, origin: Callable[[ast.AST], str]) -> list[tuple[int, str]]:
    """(line, sentence) of each fallback. `origin` gives the dotted origin of an expression that begins with an imported name."""
    computing = _computing(tree, origin)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Try | ast.TryStar):
            for handler in node.handlers:
                if not (_is_lookup(handler.type) and _looks_up(node.body, computing, origin)):
                    found += [(line, _REASON) for line in _answers(handler.body, computing, origin)]
        elif isinstance(node, ast.With):
            for item in node.items:
                if _suppresses(item.context_expr, origin):
                    found.append(
                        (node.lineno, f"`contextlib.suppress` around a kernel is {_REASON}")
                    )
    return found


def _is_lookup(kind: ast.expr | None) -> bool:
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return all(isinstance(each, ast.Name) and each.id in _LOOKUP_ERRORS for each in kinds)


def _suppresses(item: ast.expr, origin: Callable[[ast.AST], str]) -> bool:
    if not isinstance(item, ast.Call) or origin(item.func) != "contextlib.suppress":
        return False
    return any(not _is_lookup(argument) for argument in item.args)


def _computing(tree: ast.Module, origin: Callable[[ast.AST], str]) -> set[str]:
    """Functions of the file that compute with torch: they call it, or multiply matrices, or call one that does."""
    functions = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    found: set[str] = set()
    grown = True
    while grown:
        new = {
            name
            for name, function in functions.items()
            if name not in found and any(_computes(n, found, origin) for n in ast.walk(function))
        }
        found |= new
        grown = bool(new)
    return found


def _computes(node: ast.AST, computing: set[str], origin: Callable[[ast.AST], str]) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.MatMult)
    return isinstance(node, ast.Call) and _is_computation(node.func, computing, origin)


def _is_computation(node: ast.expr, computing: set[str], origin: Callable[[ast.AST], str]) -> bool:
    """Whether an expression is a function that computes with torch."""
    name = origin(node)
    if isinstance(node, ast.Name) and node.id in computing:
        return True
    if name.split(".")[-1] in _VALUES or name.startswith(_NO_COMPUTATION):
        return False
    return name.startswith("torch.")


def _looks_up(body: list[ast.stmt], computing: set[str], origin: Callable[[ast.AST], str]) -> bool:
    """Whether the statements compute nothing: then a KeyError comes from a lookup, as in a cache."""
    return not any(
        _computes(node, computing, origin) for statement in body for node in ast.walk(statement)
    )


def _answers(
    body: list[ast.stmt], computing: set[str], origin: Callable[[ast.AST], str]
) -> Iterator[int]:
    """Lines of a handler's body that give a result."""
    for node in (n for statement in body for n in ast.walk(statement)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno
        elif isinstance(node, ast.ImportFrom):
            # libdevice has had two places in triton: another import from triton is no other computation.
            if (node.module or "").startswith(("torch", "kernels")):
                yield node.lineno
        elif isinstance(node, ast.Call | ast.BinOp) and _computes(node, computing, origin):
            yield node.lineno
        elif isinstance(node, ast.Return) and node.value is not None:
            calls = [n for n in ast.walk(node.value) if isinstance(n, ast.Call)]
            if any(_name(call.func) not in _PLAIN for call in calls):
                yield node.lineno
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value:
            parts = [n for n in ast.walk(node.value) if isinstance(n, ast.Name | ast.Attribute)]
            if isinstance(node.value, ast.Lambda) or any(
                _is_computation(n, computing, origin) for n in parts
            ):
                yield node.lineno


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""
