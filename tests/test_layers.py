"""The two towers: agent -> bench judges, model -> kernels is judged, and nothing is imported between them."""

from __future__ import annotations

import ast
from pathlib import Path

import kernels

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "kernels": {"kernels"},
    "model": {"model", "kernels"},
    "bench": {"bench"},
    "agent": {"agent", "bench"},
}
OURS = set(ALLOWED)
# The one place where the towers meet: the runner, a child process that loads candidate code by name.
MEETING_PLACE = "bench/runner/"


def imported(file: Path) -> set[str]:
    """Top-level names of ours that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names & OURS


def test_no_import_crosses_the_towers() -> None:
    for layer, allowed in ALLOWED.items():
        for file in sorted((ROOT / layer).rglob("*.py")):
            path = str(file.relative_to(ROOT))
            met = {"kernels", "model"} if path.startswith(MEETING_PLACE) else set()
            crossing = imported(file) - allowed - met
            assert not crossing, f"{path} imports {crossing}; {layer} may import {sorted(allowed)}"


def test_a_kernel_file_imports_no_other_kernel() -> None:
    for file in sorted((ROOT / "kernels").glob("*.py")):
        named: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "kernels":
                named |= {f"kernels.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                named.add(node.module or "")
            elif isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
        found = named & {f"kernels.{op}" for op in kernels.ops()}
        assert not found, f"{file.name} imports {found}: share code through csrc or in the model"


def test_kernels_is_ours_and_not_the_package_of_the_same_name() -> None:
    assert Path(kernels.__file__).resolve() == ROOT / "kernels" / "__init__.py"


def test_every_kernel_file_has_a_contract_of_the_same_name() -> None:
    contracts = {p.stem for p in (ROOT / "bench" / "contracts").glob("*.py")} - {
        "__init__",
        "contract",
        "captured",
    }
    assert contracts >= set(kernels.ops())  # a contract is committed before its first kernel
