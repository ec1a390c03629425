"""What a Python file of the surface may not contain, read from its syntax tree: nothing is imported or run.

These rules stop what is plain to see and tell an honest author early; what hides behind them meets the sandbox. So each rule is about
names that a kernel has no use for, and a comment or a docstring may say anything.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

_STDLIB = (
    "__future__ abc bisect cmath collections contextlib copy dataclasses enum fractions functools heapq itertools math numbers "
    "operator re statistics string struct textwrap types typing typing_extensions warnings array"
)
KERNEL_MODULES = frozenset(_STDLIB.split()) | {"torch", "triton", "numpy", "einops", "kernels"}
MODEL_MODULES = KERNEL_MODULES | {
    "time",
    "concurrent",
    "threading",
    "queue",
    "random",
    "json",
    "resource",
    "importlib",
    "model",
}

_BUILTINS = frozenset(
    "exec eval compile __import__ open breakpoint globals locals vars setattr delattr __builtins__ __loader__".split()
)
_INTROSPECTION = frozenset(
    "__globals__ __code__ __closure__ __subclasses__ __builtins__ __getattribute__ __loader__ __spec__ __bases__ __mro__ "
    "f_back f_globals f_locals f_builtins tb_frame gi_frame cr_frame ag_frame co_code func_globals attrgetter methodcaller".split()
)
# Parts of the allowed packages that reach files, processes, the network or code from text.
_PARTS = {
    "torch": "hub package multiprocessing distributed load save from_file classes serialization",
    "torch.utils": "cpp_extension data model_zoo checkpoint_io mobile_optimizer dlpack_io file_baton hipify",
    "torch.jit": "load save CompilationUnit",
    "torch.ops": "load_library",
    "numpy": "load save savez savez_compressed loadtxt savetxt genfromtxt fromfile memmap ctypeslib f2py distutils DataSource fromregex",
    "types": "CodeType FunctionType LambdaType MethodType ModuleType",
    "resource": "setrlimit prlimit",
    "concurrent.futures": "ProcessPoolExecutor process",
    "triton": "profiler tools runtime_io",
}
_FORBIDDEN_PARTS = {
    f"{package}.{part}" for package, parts in _PARTS.items() for part in parts.split()
}
# Modules that allowed packages carry along, as in torch.os.
_PASSENGERS = frozenset(
    "os sys subprocess ctypes builtins importlib inspect gc socket shutil pathlib io pickle tempfile signal platform atexit".split()
)
_TIMERS = frozenset(
    {"torch.cuda.Event", "torch.profiler", "torch.autograd.profiler", "torch.cuda.nvtx"}
)
_METHODS = frozenset({"tofile", "from_file", "load_library", "_write_file"})
# Switches of the whole process: a kernel that sets one changes what it is compared with.
_GLOBAL_STATE = frozenset(
    "set_default_dtype set_default_device set_default_tensor_type set_num_threads set_num_interop_threads manual_seed seed "
    "set_rng_state use_deterministic_algorithms set_grad_enabled set_float32_matmul_precision set_flush_denormal".split()
)
_MODEL_MAY_ASSIGN = ("torch.backends.", "torch._dynamo.config.", "torch._inductor.config.")


@dataclass
class Report:
    """(line, sentence) of each refusal, and of what a reviewer should look at."""

    refusals: list[tuple[int, str]] = field(default_factory=list)
    advice: list[tuple[int, str]] = field(default_factory=list)


def inspect_source(path: str, source: str) -> Report:
    """Read one file of kernels/ or model/."""
    report = Report()
    try:
        tree = ast.parse(source, path)
    except SyntaxError as error:
        report.refusals.append((error.lineno or 1, f"does not parse: {error.msg}"))
        return report
    except (ValueError, RecursionError, MemoryError) as error:
        report.refusals.append((1, f"does not parse: {error}"))
        return report
    model = path.startswith("model/")
    imported = _imported(tree)
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 1)
        report.refusals += [(line, text) for text in _refusals(node, imported, model)]
        if isinstance(node, ast.ExceptHandler) and _is_broad(node):
            report.advice.append((line, "a broad except can hide that a kernel did not run"))
    report.refusals.sort()
    return report


def signature_of(source: str, name: str) -> list[tuple[str, str | None]] | None:
    """(parameter, default as text or None) of the last top-level `def name`; `impl` is left out. None if there is no such def."""
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            positional = [*node.args.posonlyargs, *node.args.args]
            absent = [None] * (len(positional) - len(node.args.defaults))
            found = list(zip(positional, [*absent, *node.args.defaults], strict=True))
            found += list(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
            return [
                (a.arg, None if d is None else ast.unparse(d)) for a, d in found if a.arg != "impl"
            ]
    return None


def top_level_names(source: str) -> set[str]:
    """Names that a module defines or assigns at its top level."""
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def methods(source: str, name: str) -> set[str]:
    """Methods of the top-level class `name`; empty if there is none."""
    classes = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == name]
    return {
        item.name for each in classes for item in each.body if isinstance(item, ast.FunctionDef)
    }


def _imported(tree: ast.Module) -> dict[str, str]:
    """Local name -> dotted origin, for every import of the file."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _refusals(node: ast.AST, imported: dict[str, str], model: bool) -> Iterator[str]:
    match node:
        case ast.Import():
            for alias in node.names:
                yield from _import(alias.name, model)
        case ast.ImportFrom():
            if node.level:
                yield "a relative import; name the module in full, as `from kernels import jit`"
            for alias in node.names:
                yield from _import(f"{node.module or ''}.{alias.name}", model)
        case ast.Name() if node.id in _BUILTINS and node.id not in imported:
            yield f"`{node.id}`: a kernel neither runs text as code, nor opens files, nor looks into namespaces"
        case ast.Attribute():
            yield from _attribute(node, imported, model)
        case ast.Call():
            yield from _call(node, imported, model)
        case (
            ast.Assign()
            | ast.AugAssign()
            | ast.AnnAssign()
            | ast.Delete()
            | ast.For()
            | ast.NamedExpr()
        ):
            yield from _assignment(node, imported, model)


def _import(name: str, model: bool) -> Iterator[str]:
    allowed = MODEL_MODULES if model else KERNEL_MODULES
    package = name.split(".")[0]
    if package not in allowed:
        yield f"imports `{package}`: only {', '.join(sorted(allowed - set(_STDLIB.split())))} and plain arithmetic modules may be imported"
    elif name.rpartition(".")[2] in _INTROSPECTION:
        yield f"imports `{name}`: a name that is not written out where it is used"
    elif hit := _forbidden(name, model):
        yield f"imports `{hit}`{_instead(hit)}"


def _forbidden(name: str, model: bool) -> str:
    """The forbidden part that a dotted name lies in, or ""."""
    parts = name.split(".")
    for n in range(2, len(parts) + 1):
        prefix = ".".join(parts[:n])
        if (
            prefix in _FORBIDDEN_PARTS
            or parts[n - 1] in _PASSENGERS
            or (not model and prefix in _TIMERS)
        ):
            return prefix
    return ""


def _instead(name: str) -> str:
    if name in ("torch.utils.cpp_extension", "torch.ops.load_library"):
        return "; build C++ with kernels.jit: `jit.load(op)`"
    return (
        ": it reaches files, processes, timers or the network, which a kernel has no business with"
    )


def _dotted(node: ast.expr, imported: dict[str, str]) -> str:
    """The origin of `a.b.c` if `a` is an import, else ""."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in imported:
        return ""
    return ".".join([imported[node.id], *reversed(parts)])


def _attribute(node: ast.Attribute, imported: dict[str, str], model: bool) -> Iterator[str]:
    if node.attr in _INTROSPECTION:
        yield f"`.{node.attr}`: a kernel has no business with frames, code objects and classes' insides"
    name = _dotted(node, imported)
    if name and _forbidden(name, model) == name:
        # the shortest one: of torch.os.path.join only torch.os
        yield f"`{name}`{_instead(name)}"
    elif node.attr in _METHODS:
        yield f"`.{node.attr}`: a kernel neither reads nor writes files"
    if not model and name.startswith("torch.") and node.attr in _GLOBAL_STATE:
        yield f"`{name}` sets state of the whole process; a kernel leaves it as it is"


def _call(node: ast.Call, imported: dict[str, str], model: bool) -> Iterator[str]:
    function = node.func
    if isinstance(function, ast.Name) and function.id in ("getattr", "hasattr"):
        name = node.args[1] if len(node.args) > 1 else None
        if not (isinstance(name, ast.Constant) and isinstance(name.value, str)):
            yield f"`{function.id}` with a name that is not a constant; write the attribute out"
        elif function.id == "getattr" and (name.value in _INTROSPECTION or name.value in _BUILTINS):
            yield f"`getattr` of `{name.value}`"
        elif isinstance(node.args[0], ast.Name | ast.Attribute):
            hit = _forbidden(f"{_dotted(node.args[0], imported)}.{name.value}", model)
            if hit:
                yield f"`{hit}`{_instead(hit)}"
    if _dotted(function, imported).startswith("importlib.") and not _loads_kernel(node, imported):
        yield '`importlib` loads `kernels.<op>` and nothing else: importlib.import_module(f"kernels.{op}")'
    if _dotted(function, imported).startswith("torch.library."):
        for value in (*node.args, *(keyword.value for keyword in node.keywords)):
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                if value.value.split("::")[0] in ("aten", "prim", "prims", "_"):
                    yield f"registers `{value.value}`: torch's own operators stay as they are; use a namespace of your own"


def _loads_kernel(node: ast.Call, imported: dict[str, str]) -> bool:
    """Whether the call is importlib.import_module of "kernels.<op>", perhaps an f-string that begins so."""
    first = node.args[0] if len(node.args) == 1 and not node.keywords else None
    if isinstance(first, ast.JoinedStr) and first.values:
        first = first.values[0]
    text = first.value if isinstance(first, ast.Constant) else None
    named = isinstance(text, str) and text.startswith("kernels.")
    return named and _dotted(node.func, imported) == "importlib.import_module"


def _assignment(node: ast.AST, imported: dict[str, str], model: bool) -> Iterator[str]:
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign | ast.Delete):
        targets = list(node.targets)
    elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For | ast.NamedExpr):
        targets = [node.target]
    while targets:
        target = targets.pop()
        if isinstance(target, ast.Tuple | ast.List):
            targets += target.elts
        elif isinstance(target, ast.Subscript | ast.Starred):
            targets.append(target.value) if isinstance(
                target.value, ast.Attribute | ast.Subscript
            ) else None
        elif isinstance(target, ast.Attribute) and (name := _dotted(target, imported)):
            if not (model and name.startswith(_MODEL_MAY_ASSIGN)):
                yield f"assigns `{name}`: what is imported stays as it is"


def _is_broad(node: ast.ExceptHandler) -> bool:
    return node.type is None or (
        isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
    )
