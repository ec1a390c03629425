"""Silent fallbacks: a handler that answers with another computation where the kernel fails.

A kernel says what it cannot do, and the caller chooses by `impl`. So a handler of a kernel's errors may note, re-raise, or go on with
the next setting of an autotuner, but it may compute no result: it neither returns what a call gives, nor binds a name to a torch
function, to a function of this file that computes with torch, or to what one of these returns. A lookup that misses (KeyError,
IndexError, StopIteration, around statements that compute nothing) is no failure of a kernel, and its handler may compute.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence

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
_Of = Callable[[ast.AST], Sequence[str]]
_REASON = (
    "a silent fallback: where the kernel fails, another computation answers; let the error out, "
    "and name the other way in IMPLEMENTATIONS"
)


def fallbacks(tree: ast.Module, of: _Of) -> list[tuple[int, str]]:
    """(line, sentence) of each fallback. `of` gives the dotted origins that an expression may have."""
    computing = _computing(tree, of)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Try | ast.TryStar):
            for handler in node.handlers:
                if not (_is_lookup(handler.type) and _looks_up(node.body, computing, of)):
                    found += [(line, _REASON) for line in _answers(handler.body, computing, of)]
        elif isinstance(node, ast.With):
            for item in node.items:
                if _suppresses(item.context_expr, of):
                    found.append(
                        (node.lineno, f"`contextlib.suppress` around a kernel is {_REASON}")
                    )
    return found


def _is_lookup(kind: ast.expr | None) -> bool:
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return all(isinstance(each, ast.Name) and each.id in _LOOKUP_ERRORS for each in kinds)


def _suppresses(item: ast.expr, of: _Of) -> bool:
    if not isinstance(item, ast.Call) or "contextlib.suppress" not in of(item.func):
        return False
    return any(not _is_lookup(argument) for argument in item.args)


def _computing(tree: ast.Module, of: _Of) -> set[str]:
    """Functions of the file that compute with torch: they call it, or multiply matrices, or call one that does."""
    functions = list(_functions(tree))
    found: set[str] = set()
    grown = True
    while grown:
        new = {
            name
            for name, function in functions
            if name not in found and any(_computes(n, found, of) for n in ast.walk(function))
        }
        found |= new
        grown = bool(new)
    return found


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """(name, node) of each function of the file, named lambdas among them; several may have one name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            yield from ((t.id, node.value) for t in node.targets if isinstance(t, ast.Name))


def _computes(node: ast.AST, computing: set[str], of: _Of) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.MatMult)
    return isinstance(node, ast.Call) and _is_computation(node.func, computing, of)


def _is_computation(node: ast.expr, computing: set[str], of: _Of) -> bool:
    """Whether an expression is a function that computes with torch."""
    if isinstance(node, ast.Name) and node.id in computing:
        return True
    return any(
        name.startswith("torch.")
        and name.split(".")[-1] not in _VALUES
        and not name.startswith(_NO_COMPUTATION)
        for name in of(node)
    )


def _looks_up(body: list[ast.stmt], computing: set[str], of: _Of) -> bool:
    """Whether the statements compute nothing: then a KeyError comes from a lookup, as in a cache."""
    return not any(
        _computes(node, computing, of) for statement in body for node in ast.walk(statement)
    )


def _answers(body: list[ast.stmt], computing: set[str], of: _Of) -> Iterator[int]:
    """Lines of a handler's body that give a result."""
    for node in (n for statement in body for n in ast.walk(statement)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno
        elif isinstance(node, ast.ImportFrom):
            # libdevice has had two places in triton: another import from triton is no other computation.
            if (node.module or "").startswith(("torch", "kernels")):
                yield node.lineno
        elif isinstance(node, ast.Call | ast.BinOp) and _computes(node, computing, of):
            yield node.lineno
        elif isinstance(node, ast.Return) and node.value is not None:
            calls = [n for n in ast.walk(node.value) if isinstance(n, ast.Call)]
            if any(getattr(call.func, "id", "") not in _PLAIN for call in calls):
                yield node.lineno
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value:
            parts = [n for n in ast.walk(node.value) if isinstance(n, ast.Name | ast.Attribute)]
            if isinstance(node.value, ast.Lambda) or any(
                _is_computation(n, computing, of) for n in parts
            ):
                yield node.lineno
