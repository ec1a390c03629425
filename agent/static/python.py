"""What a Python file of the surface may not contain, read from its syntax tree: nothing is imported or run.

Two things are refused: what a kernel has no use for (files, processes, threads, frames, code from text, changing what is imported), and
what hides from this reading (names put together at run time, modules handed around, classes made by a call). What is right in one place
and wrong in another, such as a clock, is advice; the run-time gates decide there. A comment or a docstring may say anything.

agent/static/names.py has the names that are refused, agent/static/origins.py finds where a name comes from. What shows only in a whole
function or file is read by agent/static/fallback.py and agent/static/clock.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from agent.static import names
from agent.static.clock import lasting_readings
from agent.static.fallback import fallbacks
from agent.static.origins import Origins, written_annotations

# Functions of torch.library whose first argument says which op is meant.
_TAKE_A_NAME = ("custom_op", "Library", "triton_op", "impl", "define", "register_")
_GENERIC = frozenset("list tuple dict set frozenset type".split())
# What a template of PTX has beside arithmetic.
_NO_ARITHMETIC = re.compile(r"clock|globaltimer|smid|\bcall|\bexit|\btrap|nanosleep")
_MODEL_MAY_ASSIGN = ("torch.backends.", "torch._dynamo.config.", "torch._inductor.config.")
# By such a comment in its first two lines Python decodes a file otherwise than it is read here: a comment could be code.
_CODED = re.compile(r"[ \t\f]*#.*?coding[:=][ \t]*(?!(?i:utf-?8)\b)[-\w.]")


@dataclass
class Report:
    """(line, sentence) of each refusal, and of each thing that a reviewer should look at."""

    refusals: list[tuple[int, str]] = field(default_factory=list)
    advice: list[tuple[int, str]] = field(default_factory=list)


def inspect_source(path: str, source: str) -> Report:
    """Read one file of kernels/ or model/."""
    report = Report()
    if any(_CODED.match(line) for line in re.split(r"\r\n?|\n", source)[:2]):
        report.refusals.append((1, "a coding other than UTF-8: leave the line out"))
        return report
    try:
        tree = ast.parse(source, path)
        written = list(written_annotations(tree))
        origins = Origins(tree, written)
    except SyntaxError as error:
        report.refusals.append((error.lineno or 1, f"does not parse: {error.msg}"))
        return report
    except (ValueError, RecursionError, MemoryError) as error:
        report.refusals.append((1, f"does not parse: {error}"))
        return report
    report.refusals += _false_starts(tree, source)
    reader = _Reader(origins, path)
    for node in (*ast.walk(tree), *(n for part in written for n in ast.walk(part))):
        line = getattr(node, "lineno", 1)
        report.refusals += [(line, text) for text in reader.refusals(node)]
        report.advice += [(line, text) for text in reader.advice(node)]
    if not reader.model:
        report.refusals += fallbacks(tree, origins.of)
        report.refusals += lasting_readings(tree, origins.of)
    report.refusals = sorted(set(report.refusals))
    report.advice = sorted(set(report.advice))
    return report


def _false_starts(tree: ast.Module, source: str) -> Iterator[tuple[int, str]]:
    """Lines within texts that Triton, which looks for `def` at a line's beginning, would take for the kernel below or above them."""
    starts = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    text = re.sub(r"\r\n?", "\n", source)
    for match in re.finditer(r"^\s*(def)\s+\w+\s*\(", text, re.M):
        line = text.count("\n", 0, match.start(1)) + 1
        if line not in starts:
            yield (
                line,
                "a line of a text that begins with `def`: Triton takes it for its kernel; begin it otherwise",
            )


class _Reader:
    """Reads one file: what is wrong with a node, by the origin of its names."""

    def __init__(self, origins: Origins, path: str) -> None:
        self.origins, self.path, self.model = origins, path, path.startswith("model/")

    # ---- refusals ----

    def refusals(self, node: ast.AST) -> Iterator[str]:
        match node:
            case ast.Import():
                yield from self._import([alias.name for alias in node.names])
            case ast.ImportFrom():
                yield from self._import_from(node)
            case ast.Name():
                yield from self._name(node)
            case ast.Attribute():
                yield from self._attribute(node)
            case ast.Call():
                yield from self._call(node)
            case ast.ClassDef():
                yield from self._class(node)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from self._function(node)
            case ast.Constant(value=str(text)) if text in names.HOOKS:
                yield f"`{text}` as a text: such a method runs without being called"
            case ast.MatchClass():
                for name in node.kwd_attrs:
                    yield from _named(name)
                if node.patterns:
                    yield "a class pattern by position: `__match_args__` says then which attributes it reads; write `case int() as n`, or name the attributes"
        for target in _targets(node):
            yield from self._target(target)

    def _import(self, modules: list[str]) -> Iterator[str]:
        for name in modules:
            error = names.import_error(name, self.path)
            if error:
                yield error if error.startswith("imports") else f"imports {error}"

    def _import_from(self, node: ast.ImportFrom) -> Iterator[str]:
        if node.level:
            yield "a relative import; name the module in full, such as `from kernels import jit`"
            return
        for alias in node.names:
            if alias.name == "*":
                yield f"imports everything of `{node.module}`: name what you use"
            else:
                yield from self._import([f"{node.module}.{alias.name}"])

    def _name(self, node: ast.Name) -> Iterator[str]:
        if node.id in names.BUILTINS and not (node.id == "compile" and self._is_asked(node)):
            yield (
                f"`{node.id}`: a kernel neither runs text as code, nor opens files, nor looks into namespaces, nor ends the process; give what is "
                "your own another name"
            )
        elif node.id in names.LOOKUPS and not self._is_called(node):
            yield f"`{node.id}` under another name; call it where you need it, with the name written out"
        if isinstance(node.ctx, ast.Load):
            yield from self._module(node)
            yield from self._handed_on(node)

    def _handed_on(self, node: ast.Name | ast.Attribute) -> Iterator[str]:
        """What is judged by its arguments is called where it stands."""
        for origin in self.origins.of(node):
            decorates = origin == "torch.compile" and isinstance(
                self.origins.parents.get(id(node)), ast.FunctionDef
            )
            if origin in names.CALLED and not (self._is_called(node) or decorates):
                yield f"`{origin}` as a value: call it where you need it"

    def _module(self, node: ast.Name | ast.Attribute) -> Iterator[str]:
        """A module is used by its attributes; if it is handed around, no reading shows what becomes of it."""
        parent = self.origins.parents.get(id(node))
        if not any(o in self.origins.modules or names.is_module(o) for o in self.origins.of(node)):
            return
        asked = isinstance(parent, ast.Compare) and all(isinstance(op, ast.Is | ast.IsNot) for op in parent.ops)  # fmt: skip
        if isinstance(parent, ast.Attribute) or asked or self._is_asked(node):
            return
        if isinstance(parent, ast.Assign | ast.NamedExpr | ast.AnnAssign):
            targets = parent.targets if isinstance(parent, ast.Assign) else [parent.target]
            if all(isinstance(target, ast.Name) for target in targets):
                return
        if isinstance(parent, ast.Call) and _name_of(parent.func) in names.LOOKUPS:
            return
        yield f"module `{self.origins.first(node)}` as a value: use its attributes where you need them"

    def _is_asked(self, node: ast.expr) -> bool:
        """Whether a name is only bound, or looked at as in `if compile:`, `not triton`."""
        child, parent = node, self.origins.parents.get(id(node))
        while isinstance(parent, ast.BoolOp):
            child, parent = parent, self.origins.parents.get(id(parent))
        asked = (
            isinstance(parent, ast.If | ast.IfExp | ast.While | ast.Assert) and parent.test is child
        )
        return (
            asked
            or isinstance(parent, ast.UnaryOp)
            or isinstance(getattr(node, "ctx", None), ast.Store)
        )

    def _is_called(self, node: ast.expr) -> bool:
        parent = self.origins.parents.get(id(node))
        return isinstance(parent, ast.Call) and parent.func is node

    def _attribute(self, node: ast.Attribute) -> Iterator[str]:
        yield from self._module(node)
        yield from self._handed_on(node)
        loads = self.model and self.origins.first(node) == "importlib.import_module"
        if not (loads or self._sets_its_own(node) or self._is_label(node)):
            yield from _named(node.attr)
        if not self.model and node.attr in names.FORMS:
            yield f"`.{node.attr}`: what a kernel computes does not depend on who calls it"
        # In torch.os.path.join only torch.os is reported.
        before = {names.path_error(each, self.model) for each in self.origins.of(node.value)}
        for each in self.origins.of(node):
            error = names.path_error(each, self.model)
            if error and error not in before and not self._in_with(node):
                yield error

    def _is_label(self, node: ast.Attribute) -> bool:
        """Whether this is the class in `x.__class__.__name__`, a text."""
        parent = self.origins.parents.get(id(node))
        read = isinstance(parent, ast.Attribute) and isinstance(parent.ctx, ast.Load)
        return node.attr == "__class__" and read and getattr(parent, "attr", "") in names.LABELS

    def _sets_its_own(self, node: ast.Attribute) -> bool:
        """Whether this is `object.__setattr__(self, "name", ...)` in a __post_init__, as a frozen dataclass needs it."""
        call = inner = self.origins.parents.get(id(node))
        while inner is not None and not isinstance(inner, ast.FunctionDef | ast.Lambda):
            inner = self.origins.parents.get(id(inner))
        if not (isinstance(inner, ast.FunctionDef) and inner.name == "__post_init__" and inner.args.args):  # fmt: skip
            return False
        if not (isinstance(call, ast.Call) and call.func is node and len(call.args) == 3 and not call.keywords):  # fmt: skip
            return False
        plain = _name_of(node.value) == "object" and "object" not in self.origins.bound
        own = _name_of(call.args[0]) == inner.args.args[0].arg and not self.origins.of(call.args[0])
        written = _is_text(call.args[1:2]) and not _is_dunder(
            str(getattr(call.args[1], "value", ""))
        )
        return node.attr == "__setattr__" and plain and own and written

    def _in_with(self, node: ast.Attribute) -> bool:
        """Whether this is `with torch.set_grad_enabled(...)` or the like, which puts back what it sets."""
        held = self.origins.parents.get(id(self.origins.parents.get(id(node))))
        return node.attr in names.CONTEXTS and self._is_called(node) and isinstance(held, ast.withitem)  # fmt: skip

    def _call(self, node: ast.Call) -> Iterator[str]:
        function = _name_of(node.func)
        if function in names.LOOKUPS:
            yield from self._lookup(node, function)
        elif self._is_assembly(node.func):
            given = node.args[:1] or [k.value for k in node.keywords if k.arg == "asm"]
            told = str(getattr(given[0], "value", "")) if _is_text(given) else ""
            if not told or _NO_ARITHMETIC.search(told):
                yield "inline assembly that is not written out, or that is no arithmetic"
        elif function == "type" and len(node.args) + len(node.keywords) > 1:
            yield "a class made by calling `type`; write `class ...:`"
        for origin in self.origins.of(node.func):
            yield from self._call_of(node, origin)

    def _is_assembly(self, function: ast.expr) -> bool:
        named = {
            getattr(function, "attr", ""),
            *(o.split(".")[-1] for o in self.origins.of(function)),
        }
        return "inline_asm_elementwise" in named

    def _call_of(self, node: ast.Call, origin: str) -> Iterator[str]:
        """What is wrong with a call of something imported."""
        if origin.startswith("importlib.") and not self._loads_kernel(node):
            yield '`importlib` loads `kernels.<op>` and nothing else: importlib.import_module(f"kernels.{op}")'
        elif origin == "kernels.jit.load" and not self.model and not _is_text(node.args[:1]):
            yield '`jit.load` of a name that is not written out; write jit.load("<op>")'
        elif origin == "warnings.catch_warnings" and (node.args or node.keywords):
            yield "`warnings.catch_warnings` that records: a warning tells who is calling; use it without arguments"
        elif origin in names.FILTERS and not _ignores(node):
            yield f'`{origin}` of anything but "ignore", written out: a warning that is raised tells who is calling'
        elif origin in ("torch._dynamo.config.patch", "torch._inductor.config.patch"):
            if not _patches_by_name(node):
                yield f"`{origin}` of a setting that is not written out, or of the compilers: name it as a keyword"
        elif origin == "torch.compile":
            for keyword in node.keywords:
                if keyword.arg is None or (keyword.arg == "options" and not _are_settings(keyword.value)):  # fmt: skip
                    yield "`torch.compile` with options that are not written out, of the compilers, or that take a function"
                elif keyword.arg == "backend" and not _is_text([keyword.value]):
                    yield "`torch.compile` with a backend that is not named by a text: torch.fx, which it would be given, makes code of text"
        elif origin == "dataclasses.field" and not isinstance(
            self.origins.parents.get(id(node)), ast.AnnAssign
        ):
            yield "`dataclasses.field` but as the value of an annotated name: dataclasses run a field's name as code"
        elif origin in ("weakref.ref", "weakref.proxy") and len(node.args) > 1:
            yield f"`{origin}` with a callback: code that runs when nobody calls it"
        elif origin == "functools.wraps" and not self._decorates(node):
            yield "`functools.wraps` outside a decorator, or with more than a function, changes what it is given; use it as `@functools.wraps(f)`"
        elif origin.startswith("torch.library."):
            yield from self._library(node, origin)

    def _decorates(self, node: ast.Call) -> bool:
        """Whether the call decorates a function, and is given one alone."""
        parent = self.origins.parents.get(id(node))
        functions = ast.FunctionDef | ast.AsyncFunctionDef
        # Two more arguments say which attributes it copies, such as `__globals__`.
        one = (
            len(node.args) == 1 and not node.keywords and not isinstance(node.args[0], ast.Starred)
        )
        return one and isinstance(parent, functions) and node in parent.decorator_list

    def _lookup(self, node: ast.Call, function: str) -> Iterator[str]:
        if not _is_text(node.args[1:2]):
            yield f"`{function}` with a name that is not written out as a string; write the attribute out"
            return
        name = str(node.args[1].value)  # type: ignore[attr-defined]
        yield from _named(name)
        if not self.model and name in names.FORMS:
            yield f"`.{name}`: what a kernel computes does not depend on who calls it"
        if name in names.BUILTINS:
            yield f"`{function}` of `{name}`, which a kernel may not use"
        for origin in self.origins.of(node.args[0]):
            error = names.path_error(f"{origin}.{name}", self.model)
            if error:
                yield error

    def _loads_kernel(self, node: ast.Call) -> bool:
        """Whether the call is importlib.import_module of "kernels.<op>", or of an f-string that begins so."""
        named = len(node.args) == 1 and not node.keywords
        return (
            self.origins.first(node.func) == "importlib.import_module"
            and named
            and _beginning(node.args[0]).startswith("kernels.")
        )

    def _library(self, node: ast.Call, origin: str) -> Iterator[str]:
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        for value in values:
            text, called = _beginning(value), self.origins.first(value)
            if text.split("::")[0] in names.OWN_OPERATORS or called.startswith("torch.ops.aten"):
                yield f"registers `{text or called}`: torch's own operators stay as they are; use a namespace of your own"
        named = [k.value for k in node.keywords if k.arg in (None, "ns", "name", "qualname", "op")]
        first = next(iter([*node.args, *named]), None)
        # an op or a Library of this file has been made by a name that was written out
        made = isinstance(first, ast.Name) and first.id in self.origins.libraries
        takes_name = origin.split(".")[-1].startswith(_TAKE_A_NAME)
        if takes_name and first is not None and not made and not _beginning(first):
            yield f"`{origin}` of a name that is not written out; begin it with your own namespace"

    def _class(self, node: ast.ClassDef) -> Iterator[str]:
        for keyword in node.keywords:
            if keyword.arg is None or (
                keyword.arg == "metaclass" and self.origins.first(keyword.value) != "abc.ABCMeta"
            ):
                yield "a metaclass, or class arguments that are not written out: a kernel needs plain classes"

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
        parent = self.origins.parents.get(id(node))
        if node.name in names.HOOKS:
            yield f"defines `{node.name}`, which runs without being called; a kernel takes plain tensors and gives plain tensors"
        elif not isinstance(parent, ast.ClassDef) and node.name in ("__getattr__", "__dir__"):
            yield f"defines `{node.name}` of the module: its names are then not what is written here"
        given = [a.annotation for a in ast.walk(node.args) if isinstance(a, ast.arg)]
        for part in (
            n for each in [*given, node.returns] if each is not None for n in ast.walk(each)
        ):
            if self._is_computed(part):
                said = ast.unparse(part)[:60]
                yield (
                    f"annotation `{said}`: torch.library would run it as code if it were a text; write the type out, under a name that no "
                    "argument or variable of this file has"
                )

    def _is_computed(self, part: ast.AST) -> bool:
        """Whether a part of an annotation is anything but the name of a type."""
        if isinstance(part, ast.Attribute):
            spec = part.attr in ("args", "kwargs") and _name_of(part.value) in self.origins.specs
            return not spec and not self.origins.of(part)
        if isinstance(part, ast.Subscript) and _is_text([part.slice]):
            known = self.origins.of(part.value) or _name_of(part.value) in _GENERIC
            return not known
        if isinstance(part, ast.Name):
            return part.id in self.origins.values
        return isinstance(part, ast.Call | ast.JoinedStr | ast.Lambda | ast.NamedExpr | ast.IfExp | ast.BoolOp)  # fmt: skip

    def _target(self, target: ast.expr) -> Iterator[str]:
        """What an assignment or `del` changes: names and the file's own objects may change, what is imported stays."""
        if isinstance(target, ast.Name):
            imported = self.origins.imports.get(target.id, set())
            # A constant is allowed: `triton = None` where it cannot be imported.
            if imported & self.origins.modules and not self._is_constant(target):
                yield f"rebinds `{target.id}`, which is imported; use another name"
            if target.id in names.HOOKS or target.id == "__getattr__":
                yield f"assigns `{target.id}`, which runs without being called"
            elif _is_dunder(target.id) and target.id not in names.DUNDERS | names.OWN:
                yield f"assigns `{target.id}`: what Python keeps of a class or a module stays as it is"
            return
        changed = target
        while isinstance(changed, ast.Subscript):
            changed = changed.value
        whole = target is changed
        for origin in self.origins.of(changed):
            # A local list may hold torch.float32 and change; torch.x.y may not.
            if (whole or "." in origin) and not self._may_assign(origin, changed, whole):
                yield f"assigns `{origin}`: what is imported stays as it is"
                return
        if isinstance(target, ast.Attribute) and target.attr.startswith("__"):
            if target.attr.endswith("__") and target.attr not in names.LABELS:
                yield f"assigns `.{target.attr}`: define it in a class of your own"
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Call):
            function = _name_of(target.value.func)
            if function in ("type", "getattr", "super"):
                yield f"assigns `.{target.attr}` of what `{function}` gives: classes stay as they are"

    def _is_constant(self, target: ast.Name) -> bool:
        parent = self.origins.parents.get(id(target))
        return isinstance(parent, ast.Assign) and isinstance(parent.value, ast.Constant)

    def _may_assign(self, origin: str, changed: ast.expr, whole: bool) -> bool:
        if self.model and origin.startswith(_MODEL_MAY_ASSIGN):
            return not names.TAKES_CODE.search(origin)
        return (
            isinstance(changed, ast.Name) and not whole and changed.id not in self.origins.imports
        )

    # ---- advice ----

    def advice(self, node: ast.AST) -> Iterator[str]:
        if self.model:
            return
        if isinstance(node, ast.ExceptHandler) and _is_broad(node):
            yield "a broad except can hide that a kernel did not run"
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            origin = self.origins.first(node)
            if origin and names.is_clock(origin):
                yield f"`{origin}`: right in an autotuner on its first call; the judge keeps its own clock"
            elif origin and names.is_graph(origin):
                yield f"`{origin}`: a replay overwrites what the one before left in the graph's memory; a result needs memory of its own"
            elif isinstance(node, ast.Attribute) and node.attr in ("data_ptr", "untyped_storage"):
                yield f"`.{node.attr}`: right for alignment; an answer kept by address is stale when the contents change"
        elif isinstance(node, ast.ClassDef) and any(
            self.origins.first(base) == "torch.Tensor" for base in node.bases
        ):
            yield "a subclass of torch.Tensor: results must be plain tensors"


def _named(name: str) -> Iterator[str]:
    """What is wrong with an attribute of this name, whatever it hangs on."""
    if _is_dunder(name) and name not in names.DUNDERS:
        yield f"`.{name}`: a kernel has no business with frames, code objects, namespaces and classes' insides"
    elif name in names.ATTRIBUTES:
        yield (
            f"`.{name}`: a kernel has no business with files, processes, frames and names made at run time; for `.format` write an f-string, and "
            "give what is your own another name"
        )


def _is_dunder(name: str) -> bool:
    return len(name) > 4 and name.startswith("__") and name.endswith("__")


def _ignores(node: ast.Call) -> bool:
    given = [*node.args, *(k.value for k in node.keywords if k.arg == "action")]
    return bool(given) and _beginning(given[0]) == "ignore"


def _patches_by_name(node: ast.Call) -> bool:
    """Whether a call of a config's `patch` writes out which settings it changes, none of them a compiler's ("cpp.cxx")."""
    named = all(
        keyword.arg and not names.TAKES_CODE.search(keyword.arg) for keyword in node.keywords
    )
    return named and all(_are_settings(each) for each in node.args[:1])


def _are_settings(value: ast.expr) -> bool:
    """Whether a setting of torch.compile, or the keys of a dict of them, are written out and no compiler's."""
    keys = value.keys if isinstance(value, ast.Dict) else [value]
    written = [k.value for k in keys if isinstance(k, ast.Constant) and isinstance(k.value, str)]
    return len(written) == len(keys) and not any(
        ("." in key and not key.startswith("triton.")) or names.TAKES_CODE.search(key)
        for key in written
    )


def _targets(node: ast.AST) -> Iterator[ast.expr]:
    """Everything that a statement or expression assigns or deletes, unpacked."""
    targets: list[ast.expr | None] = []
    if isinstance(node, ast.Assign | ast.Delete):
        targets = list(node.targets)
    elif isinstance(
        node,
        ast.AugAssign | ast.AnnAssign | ast.For | ast.AsyncFor | ast.NamedExpr | ast.comprehension,
    ):
        targets = [node.target]
    elif isinstance(node, ast.withitem):
        targets = [node.optional_vars]
    while targets:
        target = targets.pop()
        if isinstance(target, ast.Tuple | ast.List):
            targets += target.elts
        elif isinstance(target, ast.Starred):
            targets.append(target.value)
        elif target is not None:
            yield target


def _name_of(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _is_text(values: list[ast.expr]) -> bool:
    return (
        len(values) == 1
        and isinstance(values[0], ast.Constant)
        and isinstance(values[0].value, str)
    )


def _beginning(node: ast.expr) -> str:
    """The constant text that a string begins with; "" if it is no string."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _is_broad(node: ast.ExceptHandler) -> bool:
    return node.type is None or _name_of(node.type) in ("Exception", "BaseException")
