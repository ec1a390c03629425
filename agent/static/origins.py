"""Where the names of a Python file come from: imports, other names for them, and the parent of each node.

Scopes are not told apart: a name has every origin that it has anywhere in the file, so that none can be hidden by another.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from agent.static import names

_MAX_ORIGINS = 8  # of one name; `a = a.b` would add to them without end
_MAKERS = ("torch.library.custom_op", "torch.library.triton_op", "torch.library.Library")


def written_annotations(tree: ast.Module) -> Iterator[ast.expr]:
    """Annotations that are written as strings, parsed: typing and torch.library turn them into code."""
    for node in ast.walk(tree):
        found: list[ast.expr | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            found = [node.annotation]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found = [node.returns]
        given = [each for each in found if each is not None]
        words = {id(n) for each in given for n in _literal_words(each)}
        for part in (n for each in given for n in ast.walk(each)):
            if (
                isinstance(part, ast.Constant)
                and isinstance(part.value, str)
                and id(part) not in words
            ):
                try:
                    parsed = ast.parse(part.value, mode="eval").body
                except (SyntaxError, ValueError):
                    # Such as jaxtyping's "batch time": not an expression, so nobody can run it.
                    continue
                for inner in ast.walk(parsed):
                    if hasattr(inner, "lineno"):
                        inner.lineno = part.lineno
                yield parsed


class Origins:
    """The names of one file.

    `imports` has those that an import statement binds, `modules` those that are modules, `libraries` those of ops and libraries that torch.library
    has made, `bound` all, `values` those that may hold a text.
    """

    def __init__(self, tree: ast.Module, annotations: Sequence[ast.expr]) -> None:
        self.parents = {
            id(child): node
            for root in (tree, *annotations)
            for node in ast.walk(root)
            for child in ast.iter_child_nodes(node)
        }
        self.modules: set[str] = set(names.MODULES)
        stores = Counter(n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))  # fmt: skip
        self.bound = {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)} | set(stores)
        self._found = self._imported(tree)
        self.bound |= set(self._found)
        self.imports = {name: set(found) for name, found in self._found.items()}
        self._follow_aliases(tree)
        self.libraries = set(self._made_by_torch_library(tree, stores))
        self.values = _values(tree, stores, self.of)
        self.specs = self._parameter_specs(tree, stores)

    def _made_by_torch_library(self, tree: ast.Module, stores: Counter[str]) -> Iterator[str]:
        """Names of ops and libraries: each is bound once, by a call or a decorator of torch.library."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name, makers = node.targets[0].id, [node.value]
            elif isinstance(node, ast.FunctionDef):
                name, makers = node.name, node.decorator_list
            else:
                continue
            made = any(
                isinstance(each, ast.Call) and self.first(each.func) in _MAKERS for each in makers
            )
            if made and stores[name] <= isinstance(node, ast.Assign):
                yield name

    def _parameter_specs(self, tree: ast.Module, stores: Counter[str]) -> set[str]:
        """Names that typing.ParamSpec made, and nothing else binds."""
        made = {
            node.targets[0].id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Call)
            and {f"{m}.ParamSpec" for m in _TYPING} & set(self.of(node.value.func))
        }
        return {name for name in made if stores[name] == 1} - _defined(tree) - self.values

    def _imported(self, tree: ast.Module) -> dict[str, set[str]]:
        """Local name -> dotted origins, for every import of the file."""
        found: dict[str, set[str]] = defaultdict(set)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    whole = alias.name if alias.asname else alias.name.split(".")[0]
                    found[alias.asname or whole].add(whole)
                    self.modules.add(whole)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    found[alias.asname or alias.name].add(f"{node.module}.{alias.name}")
        return found

    def _follow_aliases(self, tree: ast.Module) -> None:
        """`F = torch.nn.functional` gives F that origin, and so does `(F := ...)`; a chain of aliases is followed to its start."""
        pairs = [
            (target.id, value)
            for node in ast.walk(tree)
            for target, value in _bindings(node)
            if isinstance(target, ast.Name)
        ]
        grown = True
        while grown:
            grown = False
            for name, value in pairs:
                for origin in {o for part in _references(value) for o in self.of(part)}:
                    if origin not in self._found[name] and len(self._found[name]) < _MAX_ORIGINS:
                        self._found[name].add(origin)
                        grown = True

    def of(self, node: ast.AST | None) -> list[str]:
        """The dotted origins that `a.b.c` may have, if `a` is an import or another name for one."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self._found:
            return []
        return sorted(".".join([o, *reversed(parts)]) for o in self._found[node.id])

    def first(self, node: ast.AST | None) -> str:
        """The first of the origins, nearly always the only one, or ""."""
        return next(iter(self.of(node)), "")


def _bindings(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """(target, value) of what a node binds; tuples are taken apart if both sides are written as tuples."""
    pairs: list[tuple[ast.expr, ast.expr]] = []
    if isinstance(node, ast.Assign):
        pairs = [(target, node.value) for target in node.targets]
    elif isinstance(node, ast.NamedExpr) or (isinstance(node, ast.AnnAssign) and node.value):
        pairs = [(node.target, node.value)]  # type: ignore[list-item]
    elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
        if isinstance(node.iter, ast.Tuple | ast.List | ast.Set):
            pairs = [(node.target, each) for each in node.iter.elts]
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        taken = [*node.args.posonlyargs, *node.args.args]
        given = list(zip(taken[::-1], node.args.defaults[::-1], strict=False))
        given += [
            (a, d) for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d
        ]
        pairs = [(ast.Name(a.arg, ast.Store()), default) for a, default in given]
    for target, value in pairs:
        if isinstance(target, ast.Tuple | ast.List) and isinstance(value, ast.Tuple | ast.List):
            yield from zip(target.elts, value.elts, strict=False)
        else:
            yield target, value


def _references(value: ast.expr) -> Iterator[ast.expr]:
    """The names that an expression may evaluate to, such as either branch of a conditional."""
    if isinstance(value, ast.Name | ast.Attribute):
        yield value
    elif isinstance(value, ast.IfExp):
        yield from (*_references(value.body), *_references(value.orelse))
    elif isinstance(value, ast.BoolOp):
        yield from (part for each in value.values for part in _references(each))
    elif isinstance(value, ast.NamedExpr | ast.Starred):
        yield from _references(value.value)


_Of = Callable[[ast.AST | None], list[str]]
_OF_TYPES = (ast.Name, ast.Attribute, ast.Subscript, ast.Tuple, ast.List, ast.BinOp, ast.BitOr, ast.expr_context)  # fmt: skip
_TYPING = ("typing", "typing_extensions")
_MAKE_TYPES = "TypeVar ParamSpec TypeVarTuple NewType NamedTuple TypedDict".split()
_TYPE_MAKERS = {f"{module}.{name}" for module in _TYPING for name in _MAKE_TYPES} | {
    "collections.namedtuple"
}
_LITERAL = {f"{module}.Literal" for module in _TYPING}
_WORD = re.compile(r"[\w-]+")


def _values(tree: ast.Module, stores: Counter[str], of: _Of) -> set[str]:
    """Names that may hold a text: arguments, and each name that is bound to anything but a type written as one, or a type variable."""
    aliases: dict[str, list[ast.expr]] = defaultdict(list)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    aliases[target.id].append(node.value)
    own = _defined(tree)

    def imported(node: ast.AST | None) -> list[str]:
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        return [] if isinstance(root, ast.Name) and root.id in own else of(node)

    typed = {
        name
        for name, bound in aliases.items()
        if stores[name] == len(bound) and all(_is_type(each, imported) for each in bound)
    }
    found = {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)} | (set(stores) - typed)
    found |= {n.name for n in ast.walk(tree) if isinstance(n, ast.MatchAs | ast.MatchStar) and n.name}  # fmt: skip
    grown = True
    while grown:
        more = {
            name
            for name in typed - found
            for value in aliases[name]
            for part in ast.walk(value)
            if isinstance(part, ast.Name) and part.id in found
        }
        grown, found = bool(more), found | more
    return found


def _defined(tree: ast.Module) -> set[str]:
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def _literal_words(value: ast.expr) -> Iterator[ast.Constant]:
    """The words of Literal["a", "b-c"]: torch.library runs them as code, in which a word calls nothing."""
    for node in ast.walk(value):
        if isinstance(node, ast.Subscript) and "Literal" in (
            getattr(node.value, "attr", ""),
            getattr(node.value, "id", ""),
        ):
            for part in ast.walk(node.slice):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield from (part,) if _WORD.fullmatch(part.value) else ()


def _is_type(value: ast.expr, of: _Of) -> bool:
    if isinstance(value, ast.Call):
        return bool(_TYPE_MAKERS & set(of(value.func)))
    literals = [n for n in ast.walk(value) if isinstance(n, ast.Subscript) and _LITERAL & set(of(n.value))]  # fmt: skip
    words = {id(word) for each in literals for word in _literal_words(each)}
    return all(of(n) for n in ast.walk(value) if isinstance(n, ast.Attribute)) and all(
        isinstance(n, _OF_TYPES)
        or (isinstance(n, ast.Constant) and (n.value in (None, ...) or id(n) in words))
        for n in ast.walk(value)
    )
