"""What each op means: one file an op, found by its name. `kernels/<op>.py` says how it is computed; neither imports the other."""

from __future__ import annotations

import importlib
from pathlib import Path

from bench.contracts.contract import Case, Contract, Input

__all__ = ["Case", "Contract", "Input", "contract", "ops", "written"]


def ops() -> list[str]:
    """The ops that have a contract, by file name."""
    folder = Path(__file__).parent
    return sorted(
        p.stem
        for p in folder.glob("[!.]*.py")
        if p.stem not in ("__init__", "contract", "captured")
    )


def written(tree: Path) -> list[str]:
    """The ops of which a tree has a kernel file. A new op has none at first: its contract is committed before its first kernel."""
    return [op for op in ops() if (tree / "kernels" / f"{op}.py").is_file()]


def contract(op: str) -> Contract:
    """The contract of an op. Raises ValueError with the list if there is none of that name."""
    if op not in ops():
        raise ValueError(f"op {op!r} has no contract: expected one of {', '.join(ops())}")
    found = importlib.import_module(f"bench.contracts.{op}").CONTRACT
    assert isinstance(found, Contract)
    return found
