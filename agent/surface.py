"""What may be edited: the surface of each target, and which ops a set of paths touches."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

FOLDERS = ("kernels", "csrc", "model")  # everything that a trial runs
JUDGE = ("bench", "agent")  # everything that decides about it
FROZEN = ("kernels/__init__.py", "kernels/jit.py")
PLACES = {".py": "kernels", ".cpp": "csrc", ".cu": "csrc", ".h": "csrc"}  # of an op's files

_NAME = r"[A-Za-z0-9_]{1,100}"  # longer ones are of no use, and beyond 255 bytes no file system takes them
_KERNELS = re.compile(rf"kernels/{_NAME}\.py|csrc/{_NAME}\.(cpp|cu|h)")
_MODEL = re.compile(rf"model/{_NAME}\.py")
# Whatever could be one of these: an op too many is examined, an op too few would change unseen.
_IMPORTS = re.compile(r"\bkernels\s*\.\s*(\w+)|\bkernels\s+import\s+(\([^)]*\)|.+)")
_LIBRARIES = re.compile(
    r"""\bload\(\s*(?:\w+\s*=\s*)?["'](\w+)["']|(?:\#|%:)\s*include(?:_next)?\s*"(?:[^"]*/)?(\w+)\.\w+\""""
)


def editable(path: str, target: str, op: str | None = None) -> bool:
    """Whether a proposal for `target` (and `op`, if it is for one op) may change `path`."""
    if path in FROZEN:
        return False
    if op is not None:
        return bool(_KERNELS.fullmatch(path)) and Path(path).stem == op
    kernels = target in ("kernels", "all") and _KERNELS.fullmatch(path)
    return bool(kernels or (target in ("model", "all") and _MODEL.fullmatch(path)))


def describe(target: str, op: str | None = None) -> str:
    """The surface in words, for a refusal."""
    if op is not None:
        return f"kernels/{op}.py, csrc/{op}.cpp, csrc/{op}.cu, csrc/{op}.h"
    kernels = "kernels/*.py (not __init__.py, jit.py), csrc/*.cpp, csrc/*.cu, csrc/*.h"
    return {"kernels": kernels, "model": "model/*.py", "all": f"{kernels}, model/*.py"}[target]


def is_kernel(path: str) -> bool:
    return path.startswith(("kernels/", "csrc/"))


def files(tree: Path) -> list[str]:
    """The paths of the files that lie directly in a tree's FOLDERS, sorted within each."""
    return [
        f"{folder}/{file.name}"
        for folder in FOLDERS
        for file in sorted((tree / folder).glob("*"))
        if file.is_file()
    ]


def sources(tree: Path) -> list[str]:
    """The paths in a tree that a compiler has to build."""
    return [p for p in files(tree) if p.startswith("csrc/") and p.endswith((".cpp", ".cu"))]


def touched_ops(paths: Iterable[str], tree: Path, ops: Iterable[str]) -> list[str]:
    """The ops whose result may change with these paths: their own files, and the files that they include or import."""
    touched = {Path(path).stem for path in paths if is_kernel(path)}
    if any(path in FROZEN for path in paths):
        return sorted(ops)
    uses = {op: uses_of(op, tree) for op in ops}
    return sorted(op for op, names in uses.items() if touched & names)


def uses_of(op: str, tree: Path) -> set[str]:
    """Stems of the files that an op is made of, itself included, followed through imports and includes."""
    found: set[str] = set()
    open_ends = {op}
    while open_ends:
        stem = open_ends.pop()
        found.add(stem)
        for path in (*tree.glob(f"kernels/{stem}.py"), *tree.glob(f"csrc/{stem}.*")):
            if path.is_file():
                open_ends |= named(path.read_text(errors="replace")) - found
    return found - {"jit"}


def named(source: str) -> set[str]:
    """Stems of the files that a source imports, includes or loads."""
    names = {name for groups in _LIBRARIES.findall(source) for name in groups if name}
    names |= _words(source)
    for one, several in _IMPORTS.findall(source):
        names |= {one, *re.findall(r"\w+", several)}
    return names - {"", "jit", "choose"}


def _words(source: str) -> set[str]:
    """Texts of a Python file that are one word: by whatever name it calls jit.load, what it loads is one of these."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # C++
        return set()
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {each for each in constants if isinstance(each, str) and re.fullmatch(r"\w+", each)}
