"""The implementations of an op: which run on which device, and which a kernel file has. The judge reads such a file, and imports none.

kernels/__init__.py says what each is.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

OURS = {"cpu": ("cpp",), "cuda": ("triton", "cuda")}  # beside plain torch, which runs on all
TABLES = ("IMPLEMENTATIONS", "LIBRARIES")  # of a kernel file


def runnable(names: Iterable[str], device: str) -> list[str]:
    """Those of the names that are not for another device."""
    elsewhere = {name for other, of in OURS.items() if other != device for name in of}
    return [name for name in names if name not in elsewhere]


def names_in(file: Path) -> set[str]:
    """The names in the TABLES of a kernel file. Raises ValueError where they are not plain to see."""
    tables = {
        ast.unparse(node.targets[0]): node.value.keys
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
    }
    keys = [key for table in TABLES for key in tables.get(table, ())]
    names = {str(key.value) for key in keys if isinstance(key, ast.Constant)}
    if TABLES[0] not in tables or len(names) < len(keys):
        raise ValueError(
            f"{file}: expected {TABLES[0]} = {{...}}, and in it and in {TABLES[1]} the names as plain strings, each once"
        )
    return names


def triton_kernels(file: Path) -> set[str]:
    """Names of the functions that triton.jit makes a kernel of; none where there is no such file."""
    if not file.is_file():  # an op that only the model knows
        return set()
    return kernels_of(ast.parse(file.read_text()))


def kernels_of(tree: ast.Module) -> set[str]:
    """The same of a kernel file that is parsed."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return {
        f.name
        for f in functions
        if any(
            "jit" in getattr(n, "attr", getattr(n, "id", ""))
            for d in f.decorator_list
            for n in ast.walk(d)
        )
    }
