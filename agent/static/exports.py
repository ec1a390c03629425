"""What a file must export: the gates and the trial call the same function, and its name means one thing in the whole file."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Sequence

TRAINER = ("describe", "warm_up", "train", "logits")
Parameter = tuple[str, str | None]


def op_problems(
    source: str, op: str, public: inspect.Signature, complete: bool = True
) -> Iterator[str]:
    """What is wrong with kernels/<op>.py; with `complete` it must export IMPLEMENTATIONS too. The source has to parse."""
    tree = ast.parse(source)
    bound = [line for name, line in _module_bindings(tree) if name == op]
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == op]
    if not functions:
        yield f"no function `{op}` at top level; write `def {op}{public}`"
    elif len(bound) > 1:
        lines = ", ".join(map(str, sorted(bound)))
        yield f"`{op}` is bound more than once (lines {lines}); what is judged must be what runs: define it once"
    elif not _same_signature(found := _parameters(functions[0]), public):
        yield f"`{op}({', '.join(name for name, _ in found)})` is not the public signature; write `def {op}{public}`"
    names = {name for name, _ in _module_bindings(tree)}
    if complete and "IMPLEMENTATIONS" not in names:
        yield 'no IMPLEMENTATIONS; export a dict from name to function, such as {"torch": ..., "cpp": ..., "triton": ...}'


def trainer_problems(source: str) -> Iterator[str]:
    """What is wrong with model/train.py. The source has to parse."""
    tree = ast.parse(source)
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Trainer"]
    found = {n.name for each in classes for n in each.body if isinstance(n, ast.FunctionDef)}
    missing = sorted(set(TRAINER) - found)
    if missing:
        yield f"class Trainer lacks {', '.join(missing)}, which the trial calls"


def _parameters(function: ast.FunctionDef) -> list[Parameter]:
    """(parameter, default as text or None); `impl` is left out."""
    positional = [*function.args.posonlyargs, *function.args.args]
    absent = [None] * (len(positional) - len(function.args.defaults))
    found = list(zip(positional, [*absent, *function.args.defaults], strict=True))
    found += list(zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True))
    return [(a.arg, None if d is None else ast.unparse(d)) for a, d in found if a.arg != "impl"]


def _same_signature(found: Sequence[Parameter], public: inspect.Signature) -> bool:
    """Whether the names, their order and the defaults agree; further parameters may follow if they have defaults."""
    wanted = list(public.parameters.values())
    if len(found) < len(wanted) or any(default is None for _, default in found[len(wanted) :]):
        return False
    for (name, default), parameter in zip(found, wanted, strict=False):
        absent = parameter.default is inspect.Parameter.empty
        if name != parameter.name or (default is None) != absent:
            return False
        if default is not None and ast.unparse(ast.parse(default)) != ast.unparse(
            ast.parse(repr(parameter.default))
        ):
            return False
    return True


def _module_bindings(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(name, line) of whatever binds or deletes a name of the module, also in a branch, or in a function that says `global`."""
    open_ends: list[tuple[ast.AST, bool]] = [(tree, True)]
    while open_ends:
        node, inside = open_ends.pop()
        if inside:
            yield from binds(node)
        if isinstance(node, ast.Global):
            yield from ((name, node.lineno) for name in node.names)
        own = _body(node)
        open_ends += [(each, inside and id(each) not in own) for each in ast.iter_child_nodes(node)]


def _body(node: ast.AST) -> set[int]:
    """What of a function or class has names of its own; its defaults, decorators and bases do not."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return set(map(id, node.body))
        case ast.Lambda():
            return {id(node.body)}
    return set()


def binds(node: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, line) of what a node itself binds or deletes, whatever lies within it left out."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield node.name, node.lineno
        case ast.Name(ctx=ast.Store() | ast.Del()):
            yield node.id, node.lineno
        case ast.Import() | ast.ImportFrom():
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0], node.lineno
        case (
            ast.ExceptHandler(name=str(name))
            | ast.MatchAs(name=str(name))
            | ast.MatchStar(name=str(name))
            | ast.MatchMapping(rest=str(name))
        ):
            yield name, node.lineno
