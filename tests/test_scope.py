"""The scope gate: what lies outside the surface, is not plain text, is too large, or was proposed before."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from lab_tree import CPP, PY, Rules, git, make, write

from agent import bare_code, gates
from agent.git import Repository
from agent.records import Candidate
from bench.finding import Finding

SEEN: dict[str, int] = {}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make(tmp_path / "checkout")


def judged(
    root: Path,
    target: str = "kernels",
    op: str | None = None,
    earlier: Mapping[str, int] | None = SEEN,
) -> Finding:
    """The gate's finding on whatever differs from HEAD in the working tree."""
    git(root, "add", "-A")
    git(root, "commit", "-qm", "change")
    repository = Repository(root)
    changes = repository.changes("HEAD~1", "HEAD")
    candidate = Candidate(target, root, root, changes, repository.patch("HEAD~1", "HEAD"))
    return gates.scope(candidate, gates.Context(Rules(), op, earlier))


def test_a_change_of_the_surface_passes(root: Path) -> None:
    write(
        root, {"csrc/scale.cpp": CPP.replace("kRows = 1", "kRows = 4"), "csrc/tiles.h": "// rows\n"}
    )
    found = judged(root)
    assert found.passed
    assert found.evidence["paths"] == ["csrc/scale.cpp", "csrc/tiles.h"]
    assert found.evidence["lines"] == 3


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("kernels/__init__.py", "kernels"),
        ("kernels/jit.py", "kernels"),
        ("kernels/sub/scale.py", "kernels"),
        ("kernels/scale.txt", "kernels"),
        ("kernels/scale.pth", "all"),
        ("model/optim.py", "kernels"),
        ("csrc/scale.cpp", "model"),
        ("csrc/build/scale.cpp", "all"),
        ("conftest.py", "all"),
        ("setup.py", "all"),
        ("tests/test_scale.py", "all"),
        (".gitattributes", "all"),
        (".github/workflows/x.yml", "all"),
        ("pyproject.toml", "all"),
        ("KERNELS/scale.py", "all"),
        ("kernels/sc ale.py", "all"),
    ],
)
def test_a_path_outside_the_surface_is_refused_by_name(root: Path, path: str, target: str) -> None:
    write(root, {path: "changed = 1\n"})
    found = judged(root, target)
    assert not found.passed
    assert path in found.reason


@pytest.mark.parametrize("path", ["bench/rule.py", "bench/contracts/scale.py", "agent/gates.py"])
@pytest.mark.parametrize("earlier", [SEEN, None], ids=["proposal", "working tree"])
def test_a_diff_that_touches_the_judge_is_refused_for_everyone(
    root: Path, path: str, earlier: Mapping[str, int] | None
) -> None:
    write(root, {path: "LIMIT = 100\n", "csrc/scale.cpp": CPP.replace("kRows = 1", "kRows = 4")})
    found = judged(root, "all", earlier=earlier)
    assert not found.passed
    assert path in found.reason
    assert "judge" in found.reason


def test_with_an_op_only_its_own_files_are_open(root: Path) -> None:
    write(root, {"csrc/lab.h": "// more\n"})
    said = judged(root, op="scale").reason
    assert "kernels/scale.py, csrc/scale.cpp, csrc/scale.cu, csrc/scale.h" in said
    write(root, {"csrc/scale.cpp": "// less\nint x;\n"})
    assert judged(root, op="scale").passed


def test_a_person_s_documents_and_tests_are_noted_not_judged(root: Path) -> None:
    write(
        root,
        {"README.md": "more", "tests/test_x.py": "def test(): ...\n", "csrc/scale.cpp": "int x;\n"},
    )
    found = judged(root, "all", earlier=None)
    assert found.passed
    assert found.evidence["not_judged"] == ["README.md", "tests/test_x.py"]


def test_a_symbolic_link_is_refused(root: Path) -> None:
    (root / "csrc/scale.cpp").unlink()
    os.symlink("/etc/passwd", root / "csrc/scale.cpp")
    assert "a symbolic link" in judged(root).reason


def test_a_mode_change_is_refused(root: Path) -> None:
    (root / "csrc/scale.cpp").chmod(0o755)
    assert "an executable file" in judged(root, earlier=None, target="all").reason


def test_a_submodule_is_refused(root: Path) -> None:
    head = git(root, "rev-parse", "HEAD")
    git(root, "update-index", "--add", "--cacheinfo", f"160000,{head},csrc/third.h")
    git(root, "commit", "-qm", "change")
    repository = Repository(root)
    changes = repository.changes("HEAD~1", "HEAD")
    candidate = Candidate("all", root, root, changes, repository.patch("HEAD~1", "HEAD"))
    assert "a submodule" in gates.scope(candidate, gates.Context(Rules(), None, {})).reason


@pytest.mark.parametrize("content", [b"int x;\0\x7fELF", b"int x; // \xff\xfe"])
def test_a_binary_is_refused(root: Path, content: bytes) -> None:
    (root / "csrc/scale.cpp").write_bytes(content)
    assert "not UTF-8 text" in judged(root).reason


def test_a_large_binary_counts_towards_the_size(root: Path) -> None:
    (root / "csrc/scale.cpp").write_bytes(b"\0" * 300_000)
    assert "bytes: at most" in judged(root).reason


def test_a_diff_of_too_many_lines_is_refused_with_both_figures(root: Path) -> None:
    write(root, {"csrc/scale.cpp": "".join(f"int x{i};\n" for i in range(2500))})
    assert "2,503 changed lines" in judged(root).reason


def test_a_kernel_file_without_a_contract_is_refused(root: Path) -> None:
    write(root, {"kernels/other.py": "def other(): ...\n"})
    assert "no contract bench/contracts/other.py" in judged(root).reason


@pytest.mark.parametrize(
    ("path", "target"), [("kernels/scale.py", "kernels"), ("model/train.py", "model")]
)
def test_deleting_an_op_or_a_room_of_the_model_is_refused(
    root: Path, path: str, target: str
) -> None:
    (root / path).unlink()
    assert f"{path} is deleted" in judged(root, target).reason


def test_a_name_that_differs_in_case_alone_is_refused(root: Path) -> None:
    write(root, {"csrc/SCALE.cpp": "int x;\n"})
    assert (
        "csrc/SCALE.cpp differs from csrc/scale.cpp in upper and lower case" in judged(root).reason
    )


def test_a_sum_that_is_too_deep_to_be_written_out_is_compared_as_it_is() -> None:
    deep = "x = 1" + " + 1" * 3000
    assert bare_code.normal_form("kernels/a.py", deep.encode()) == deep


def test_the_same_change_in_other_words_is_a_duplicate(root: Path) -> None:
    write(root, {"csrc/scale.cpp": CPP.replace("kRows = 1", "kRows = 4")})
    git(root, "stash", "-q")
    git(root, "stash", "apply", "-q")
    repository = Repository(root)
    seen = {bare_code.patch_hash(repository.changes("HEAD", repository.snapshot(["csrc"]))): 3}
    write(root, {"csrc/scale.cpp": "/* a new idea */" + CPP.replace("kRows = 1", "kRows   =   4")})
    found = judged(root, earlier=seen)
    assert not found.passed
    assert "experiment 3" in found.reason


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("csrc/scale.cpp", CPP.replace("// scale", "// scales rows\n\n")),
        ("kernels/scale.py", PY.replace('"""Scale."""', '"""Scales, fast."""\n# really\n')),
    ],
)
def test_comments_alone_are_no_proposal_but_a_person_may_write_them(
    root: Path, path: str, text: str
) -> None:
    write(root, {path: text})
    assert "nothing that runs is changed" in judged(root).reason
    write(root, {path: text + "\n"})
    assert judged(root, "all", earlier=None).passed


def test_a_file_that_an_earlier_change_added_to_the_model_may_go(root: Path) -> None:
    write(root, {"model/rotary.py": "BASE = 10_000\n"})
    git(root, "add", "-A")
    git(root, "commit", "-qm", "a file more")
    (root / "model/rotary.py").unlink()
    assert judged(root, "model").passed


def test_the_size_of_a_change_is_told_in_bytes(root: Path) -> None:
    write(root, {"csrc/scale.cpp": CPP + "// µµµµ\nint x;\n"})
    found = judged(root)
    patch = git(root, "diff", "--", "csrc/scale.cpp")
    assert found.evidence["bytes"] >= len(patch.encode())
