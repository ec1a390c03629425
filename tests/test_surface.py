"""Which ops a change touches, and whether what it changes is run at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from lab_tree import PY, Rules, write

from agent import gates, surface
from agent.records import Candidate, Change
from bench.contracts import ops
from bench.finding import Finding

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("path", "touched"),
    [
        ("kernels/attention.py", ["attention"]),
        ("csrc/rms_norm.cpp", ["rms_norm"]),
        ("csrc/norm_rows.h", ["add_rms_norm", "rms_norm"]),
        ("csrc/product.h", ["newton_schulz"]),
        ("kernels/jit.py", ops()),
        ("model/gpt.py", []),
    ],
)
def test_a_file_touches_the_ops_that_are_made_of_it(path: str, touched: list[str]) -> None:
    assert surface.touched_ops([path], ROOT, ops()) == touched


def test_a_header_that_a_header_includes_and_a_kernel_file_that_another_imports_are_followed(
    tmp_path: Path,
) -> None:
    files = {
        "kernels/a.py": "from kernels import jit\njit.load('a')\n",
        "kernels/b.py": "from kernels.a import half\n",
        "csrc/a.cpp": '#include "outer.h"\n',
        "csrc/outer.h": '#include "inner.h"\n',
    }
    write(tmp_path, files)
    assert surface.touched_ops(["csrc/inner.h"], tmp_path, ["a", "b", "c"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "stem"),
    [
        ('#include"inner.h"', "inner"),
        ('#  include  "inner.h"', "inner"),
        ('%:include "inner.h"', "inner"),
        ('#include "./inner.h"', "inner"),
        ("jit.load('inner').f", "inner"),
        ("jit.load(op='inner')", "inner"),
        ("from kernels.jit import load as get\nget('inner')", "inner"),
        ("jit.load('in' 'ner')", "inner"),
        ("import torch, kernels.inner", "inner"),
        ("import kernels.inner as i", "inner"),
        ("from kernels import (choose,\n    inner)", "inner"),
        ("    from kernels.inner import half", "inner"),
    ],
)
def test_every_spelling_of_a_dependency_is_seen(text: str, stem: str) -> None:
    assert stem in surface.named(text)


def judged(tree: Path, *paths: str) -> tuple[bool, str]:
    changes = tuple(Change(path, "0" * 6, "100644", None, b"x") for path in paths)
    found = gates.correctness(Candidate("kernels", tree, tree, changes), gates.Context(Rules()))
    return found.passed, found.reason


def test_a_change_of_which_nothing_is_run_is_refused(tmp_path: Path) -> None:
    """The judge by rules examines a C++ implementation, as one on a CPU does."""
    write(tmp_path, {"kernels/scale.py": PY, "csrc/scale.cu": "", "csrc/other.cpp": ""})
    for path in ("csrc/scale.cu", "csrc/other.cpp"):
        passed, said = judged(tmp_path, path)
        assert not passed
        assert f"{path}: no implementation that this device runs" in said
        assert "--device" in said


def test_what_is_not_run_of_a_change_is_told(tmp_path: Path) -> None:
    write(tmp_path, {"kernels/scale.py": PY, "csrc/scale.cu": "", "csrc/scale.cpp": ""})
    assert judged(tmp_path, "csrc/scale.cpp", "kernels/scale.py") == (True, "scale: 9 cases agree")
    passed, said = judged(tmp_path, "csrc/scale.cu", "kernels/scale.py")
    assert passed
    assert "not run: csrc/scale.cu" in said


TRITON = """import triton


@triton.jit
def _kernel(x_ptr):
    {body}


AOT = [{aot}]


def scale(x):
    return x{tail}
"""


@pytest.mark.parametrize(
    ("after", "passes"),
    [
        ({"body": "return"}, False),
        ({"aot": "(_kernel, {})"}, False),
        ({"body": "return", "tail": " * 1"}, True),
        ({"tail": "  # as it came"}, True),
    ],
    ids=["kernel", "compiled", "more", "comment"],
)
def test_a_change_of_triton_kernels_alone_is_run_on_a_gpu(
    tmp_path: Path, after: dict[str, str], passes: bool
) -> None:
    form = {"body": "pass", "aot": "", "tail": ""}
    contents = [TRITON.format(**each) for each in (form, form | after)]
    write(tmp_path, {"kernels/scale.py": contents[1]})
    change = Change("kernels/scale.py", "100644", "100644", *(c.encode() for c in contents))
    candidate = Candidate("kernels", tmp_path, tmp_path, (change,))
    found = gates.correctness(candidate, gates.Context(Rules()))
    assert found.passed is passes
    assert ("kernels/scale.py: no implementation that this device runs" in found.reason) is not passes  # fmt: skip


@dataclass
class Broken(Rules):
    def trains(self, tree: Path) -> Finding:
        return Finding(False, "the model does not train (AttributeError): no attribute 'heads'")


def test_a_changed_model_has_to_take_its_first_steps(tmp_path: Path) -> None:
    write(tmp_path, {"model/gpt.py": "x = 1\n"})
    change = Change("model/gpt.py", "100644", "100644", b"x = 2\n", b"x = 1\n")
    candidate = Candidate("model", tmp_path, tmp_path, (change,))
    assert gates.correctness(candidate, gates.Context(Rules())).passed
    found = gates.correctness(candidate, gates.Context(Broken()))
    assert not found.passed
    assert "no attribute 'heads'" in found.reason
