"""Places where one small change makes a Python kernel another program: found in the syntax tree, applied to the text.

What is not mutated: docstrings, annotations, error messages and the conditions that lead to nothing but an error, decorators, and everything
that only Triton or another's library for a GPU reaches (neither runs on a CPU as such, so the gate here would never see the change).
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

ONLY_TRITON = (
    "_aot",
    "_block_d",
    "_fused",
    "_launch",
    "_operands",
    "_precision",
    "_tile",
    "_tiles",
    "_tiling",
)
# adamw's _fused is torch's own, which the campaign does not run either.
ONLY_LIBRARIES = (
    "_cudnn", "_compiled_flex", "_band_mask", "_flex", "_flash_attention_4", "_fa4_band", "_laid_out_as", "_fa4_forward", "_fa4_backward",
)  # fmt: skip
ONLY_ERRORS = ("_check", "_check_targets", "_only_halves")
# Constants at module level that change values; the others are sizes of tiles and chunks.
TABLES = ("POLAR_EXPRESS", "QUINTIC", "SAFETY", "TINY")
MODULES = ("torch", "math", "F", "jit")

ARITHMETIC = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "%", "%": "//", "|": "&", "&": "|"}
COMPARISON = {
    "<": ("<=", ">"),
    "<=": ("<", ">="),
    ">": (">=", "<"),
    ">=": (">", "<="),
    "==": ("!=",),
    "!=": ("==",),
    "is": ("is not",),
    "is not": ("is",),
}
FUNCTIONS = {
    "max": "min",
    "min": "max",
    "ceil": "floor",
    "sqrt": "square",
    "rsqrt": "sqrt",
    "mean": "sum",
    "sum": "mean",
    "square": "abs",
    "softmax": "log_softmax",
    "tanh": "sin",
    "clamp_min": "clamp_max",
    "empty_like": "zeros_like",
    "reversed": "list",
    "sorted": "list",
}


class Site(NamedTuple):
    """Text to put in place of source[start:end]."""

    start: int
    end: int
    text: str
    kind: str


def sites(source: str) -> list[Site]:
    """Every change of a kernel file, in the order of the text. The source is ASCII, so that its columns are offsets."""
    finder = _Finder(source)
    for node in _module(source).body:
        if _is_reached(node):
            finder.walk(node)
    return sorted(set(finder.found))


@functools.cache
def reached_from(source: str, entry: str) -> frozenset[str]:
    """Names of the module's functions and constants that the function `entry` leads to, itself included."""
    named = {name: node for node in _module(source).body for name in _names(node)}
    seen: set[str] = set()
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        if name in named and name not in seen:
            seen.add(name)
            waiting += [n.id for n in ast.walk(named[name]) if isinstance(n, ast.Name)]
    return frozenset(seen)


def owner(source: str, line: int) -> str:
    """Name of the function or constant at module level that holds a line."""
    for node in _module(source).body:
        if node.lineno <= line <= (node.end_lineno or 0):
            return next(iter(_names(node)), "")
    return ""


@functools.cache
def _module(source: str) -> ast.Module:
    return ast.parse(source)


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [t.id for t in node.targets if isinstance(t, ast.Name)]
    return []


def _is_reached(node: ast.stmt) -> bool:
    name = next(iter(_names(node)), "")
    if isinstance(node, ast.Assign):
        return name in TABLES
    if not isinstance(node, ast.FunctionDef) or name in ONLY_TRITON + ONLY_LIBRARIES + ONLY_ERRORS:
        return False
    on_gpu = any(ast.unparse(each).startswith("triton.jit") for each in node.decorator_list)
    return not on_gpu and not name.startswith("_triton")


class _Finder:
    def __init__(self, source: str) -> None:
        self.source = source
        self.found: list[Site] = []
        self._lines = [0]
        for line in source.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def walk(self, node: ast.AST) -> None:
        if isinstance(node, ast.Raise | ast.JoinedStr) or _is_docstring(node):
            return
        if isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise):
            return
        if isinstance(node, ast.FunctionDef):
            defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
            before = len(self.found)
            for child in defaults:
                self.walk(child)
            self.found[before:] = [s._replace(kind="default") for s in self.found[before:]]
            for child in node.body:
                self.walk(child)
            return
        if isinstance(node, ast.AnnAssign):
            self.walk(node.value) if node.value else None
            return
        for site in getattr(self, f"in_{type(node).__name__}", lambda _: ())(node):
            if self.source[site.start : site.end] != site.text:
                self.found.append(site)
        for child in ast.iter_child_nodes(node):
            self.walk(child)

    def start(self, node: ast.AST) -> int:
        return self._lines[node.lineno - 1] + node.col_offset

    def end(self, node: ast.AST) -> int:
        return self._lines[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        return self.source[self.start(node) : self.end(node)]

    def replace(self, node: ast.AST, text: str, kind: str) -> Site:
        return Site(self.start(node), self.end(node), text, kind)

    def keep(self, node: ast.AST, part: ast.AST, kind: str) -> Site:
        """The part instead of the whole."""
        atoms = ast.Name | ast.Attribute | ast.Call | ast.Subscript | ast.Constant
        text = self.text(part)
        return self.replace(node, text if isinstance(part, atoms) else f"({text})", kind)

    def between(self, left: ast.AST, right: ast.AST, old: str, new: str, kind: str) -> Site:
        """Another operator in the text between two operands."""
        gap = self.source[self.end(left) : self.start(right)]
        edge = r"\b" if old.isalpha() else ""
        changed = re.sub(edge + re.escape(old) + edge, lambda _: new, gap, count=1)
        return Site(self.end(left), self.start(right), changed, kind)

    def in_BinOp(self, node: ast.BinOp) -> Iterator[Site]:
        gap = self.source[self.end(node.left) : self.start(node.right)].strip(" ()\n")
        operator = gap.split()[0]
        if operator in ARITHMETIC:
            yield self.between(
                node.left, node.right, operator, ARITHMETIC[operator], "arithmetic operator"
            )
        if operator in ("+", "*", "-", "/", "|", "&"):
            kind = "dropped term" if operator in "+-|&" else "dropped factor"
            yield self.keep(node, node.left, kind)
            if operator in "+*|&":
                yield self.keep(node, node.right, kind)

    def in_Compare(self, node: ast.Compare) -> Iterator[Site]:
        operator = {
            ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
            ast.Is: "is", ast.IsNot: "is not",
        }.get(type(node.ops[0]), "")  # fmt: skip
        for other in COMPARISON.get(operator, ()):
            pattern = r"is\s+not" if operator == "is not" else re.escape(operator)
            gap = self.source[self.end(node.left) : self.start(node.comparators[0])]
            changed = re.sub(pattern, other, gap, count=1)
            yield Site(self.end(node.left), self.start(node.comparators[0]), changed, "comparison")

    def in_BoolOp(self, node: ast.BoolOp) -> Iterator[Site]:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield self.between(left, right, old, new, "condition")
        for value in node.values:
            yield self.keep(node, value, "condition")

    def in_UnaryOp(self, node: ast.UnaryOp) -> Iterator[Site]:
        if isinstance(node.op, ast.Not | ast.USub):
            kind = "condition" if isinstance(node.op, ast.Not) else "sign"
            yield self.replace(node, self.text(node.operand), kind)

    def in_Constant(self, node: ast.Constant) -> Iterator[Site]:
        value = node.value
        if isinstance(value, bool):
            yield self.replace(node, repr(not value), "constant")
        elif isinstance(value, int):
            yield self.replace(node, repr(value + 1), "constant")
            if value > 0:
                yield self.replace(node, repr(value - 1), "constant")
        elif isinstance(value, float):
            yield self.replace(node, repr(value * 1.01 if value else 1.0), "constant")
            yield self.replace(node, repr(value * 2 if value else -1.0), "constant")

    def in_IfExp(self, node: ast.IfExp) -> Iterator[Site]:
        yield self.keep(node, node.body, "condition")
        yield self.keep(node, node.orelse, "condition")

    def in_If(self, node: ast.If) -> Iterator[Site]:
        if not isinstance(node.test, ast.Compare):
            # a comparison has its own opposite
            yield self.replace(node.test, f"not ({self.text(node.test)})", "condition")

    def in_For(self, node: ast.For) -> Iterator[Site]:
        iterated = self.text(node.iter)
        yield self.replace(node.iter, f"list({iterated})[:-1]", "loop bound")
        yield self.replace(node.iter, f"list({iterated})[1:]", "loop bound")

    def in_Call(self, node: ast.Call) -> Iterator[Site]:
        yield from self.swapped(node.args, "swapped arguments")
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        if name in FUNCTIONS:
            at = self.end(node.func) - len(name)
            yield Site(at, self.end(node.func), FUNCTIONS[name], "function")
        if isinstance(node.func, ast.Attribute):
            inner = node.func.value
            if not (isinstance(inner, ast.Name) and inner.id in MODULES):
                yield self.keep(node, inner, "dropped call")
        given = [*node.args, *node.keywords]
        for before, keyword in zip(given, given[1:], strict=False):
            if isinstance(keyword, ast.keyword):
                yield Site(self.end(before), self.end(keyword), "", "dropped argument")

    def in_Attribute(self, node: ast.Attribute) -> Iterator[Site]:
        if node.attr == "mT":
            yield self.keep(node, node.value, "dropped call")

    def in_Return(self, node: ast.Return) -> Iterator[Site]:
        if isinstance(node.value, ast.Tuple):
            yield from self.swapped(node.value.elts, "swapped results")

    def in_Assign(self, node: ast.Assign) -> Iterator[Site]:
        target = node.targets[0]
        if isinstance(target, ast.Tuple):
            yield from self.swapped(target.elts, "swapped results")
        if isinstance(target, ast.Name) and target.id in {
            n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)
        }:
            yield self.replace(node, "pass", "dropped statement")

    def in_Expr(self, node: ast.Expr) -> Iterator[Site]:
        yield self.replace(node, "pass", "dropped statement")

    def swapped(self, items: list[ast.expr], kind: str) -> Iterator[Site]:
        for left, right in zip(items, items[1:], strict=False):
            first, second = self.text(left), self.text(right)
            if first != second and not isinstance(left, ast.Starred):
                gap = self.source[self.end(left) : self.start(right)]
                yield Site(self.start(left), self.end(right), second + gap + first, kind)


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
