"""The correctness gate refuses every cheat in tests/cheats/ and no honest oddity in tests/honest/, and passes the shipped kernels."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench.contracts import ops
from bench.correctness import check

ROOT = Path(__file__).resolve().parent.parent
CHEATS = sorted((ROOT / "tests" / "cheats").glob("*.py"))
SEED = 7  # the gate draws a secret one; a test that fails should fail again
HONEST = sorted((ROOT / "tests" / "honest").glob("*.py"))


def op_of(path: Path) -> str:
    return next(op for op in sorted(ops(), key=len, reverse=True) if path.stem.startswith(op))


@pytest.fixture
def tree_with(tmp_path: Path):
    """The project's kernels with one file replaced."""

    def build(candidate: Path) -> Path:
        for folder in ("kernels", "csrc"):
            shutil.copytree(
                ROOT / folder,
                tmp_path / folder,
                ignore=shutil.ignore_patterns("build", "__pycache__"),
            )
        shutil.copy(candidate, tmp_path / "kernels" / f"{op_of(candidate)}.py")
        return tmp_path

    return build


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda p: p.stem)
def test_cheat_is_refused(cheat: Path, tree_with) -> None:
    finding = check(op_of(cheat), tree_with(cheat), seed=SEED)
    assert not finding.passed, f"{cheat.stem} passed: {finding.evidence}"
    assert finding.evidence["kind"] not in ("timeout", "crash", "ImportError", "SyntaxError"), (
        finding.reason
    )


@pytest.mark.parametrize("oddity", HONEST, ids=lambda p: p.stem)
def test_honest_oddity_passes(oddity: Path, tree_with) -> None:
    finding = check(op_of(oddity), tree_with(oddity), seed=SEED)
    assert finding.passed, finding.reason


@pytest.mark.parametrize("op", ops())
def test_shipped_kernel_passes(op: str) -> None:
    finding = check(op, ROOT, seed=SEED)
    assert finding.passed, finding.reason
    assert "cpp" in [row["impl"] for row in finding.evidence["implementations"]]
