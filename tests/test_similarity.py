"""The same change in other words is found; another constant, another algorithm and a mended mistake in short code are not."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest

from agent import similarity
from agent.records import Change
from agent.similarity import ALIKE, MIN_TOKENS, is_duplicate, likeness, nearest, sketch

ROOT = Path(__file__).resolve().parent.parent
CPP, PY = "csrc/rms_norm.cpp", "kernels/rms_norm.py"

BEFORE_CPP = """#include "lab.h"
namespace {
constexpr int64_t kRows = 4;

float total(const float* x, int64_t n) {
  float sum = 0.f;
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

void scale(float* y, const float* x, float s, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * s;
}
}  // namespace
"""
AFTER_CPP = """#include "lab.h"
namespace {
constexpr int64_t kRows = 4;

// Two sums hide the latency of the adder.
float total(const float* x, int64_t n) {
  float even = 0.f, odd = 0.f;
  int64_t i = 0;
  for (; i + 1 < n; i += 2) {
    even += x[i] * x[i];
    odd += x[i + 1] * x[i + 1];
  }
  if (i < n) even += x[i] * x[i];
  const float both = even + odd;
  return both;
}

void scale(float* y, const float* x, float s, int64_t n) {
  torch::stable::parallel_for(0, n, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = x[i] * s;
  });
}
}  // namespace
"""
BEFORE_PY = '''"""Norm."""
BLOCK = 1024

def tile(D):
    """Rows of a tile."""
    return max(BLOCK // D, 1)

def norm(x, eps):
    y = x * x
    return x / (y.mean(-1) + eps)
'''
AFTER_PY = '''"""Norm."""
BLOCK = 1024

def tile(D):
    """Rows of a tile."""
    rows = BLOCK // D
    return max(rows, 1)

def norm(x, eps):
    # float32 sums
    wide = x.float()
    squares = wide.square()
    rstd = (squares.mean(-1, keepdim=True) + eps).rsqrt()
    return (wide * rstd).to(x.dtype)
'''


def change(path: str, before: str | None, after: str | None) -> Change:
    modes = ("000000" if side is None else "100644" for side in (before, after))
    sides = (None if side is None else side.encode() for side in (before, after))
    return Change(path, *modes, *sides)


def of(path: str, before: str, after: str) -> similarity.Sketch:
    return sketch([change(path, before, after)])


def renamed(text: str, **names: str) -> str:
    for old, new in names.items():
        text = re.sub(rf"\b{old}\b", new, text)
    return text


CPP_SKETCH, PY_SKETCH = of(CPP, BEFORE_CPP, AFTER_CPP), of(PY, BEFORE_PY, AFTER_PY)
SPLIT = AFTER_CPP.index("// Two sums"), AFTER_CPP.index("void scale"), AFTER_CPP.index("}  // name")
REORDERED_CPP = (
    AFTER_CPP[: SPLIT[0]]
    + AFTER_CPP[SPLIT[1] : SPLIT[2]]
    + AFTER_CPP[SPLIT[0] : SPLIT[1]]
    + AFTER_CPP[SPLIT[2] :]
)
REORDERED_PY = (
    AFTER_PY[: AFTER_PY.index("def tile")]
    + AFTER_PY[AFTER_PY.index("def norm") :]
    + "\n"
    + AFTER_PY[AFTER_PY.index("def tile") : AFTER_PY.index("def norm")]
)


@pytest.mark.parametrize(
    "twin",
    [
        renamed(AFTER_CPP, even="a0", odd="a1", both="result"),
        renamed(AFTER_CPP, i="index", x="values", begin="first", end="last"),
        AFTER_CPP.replace("// Two sums hide the latency of the adder.\n", "")
        + "// a word at the end\n",
        AFTER_CPP.replace(";\n", "; /* so */\n\n"),
        AFTER_CPP.replace("if (i < n) even", "if (i < n)\n    even"),
        REORDERED_CPP,
        renamed(REORDERED_CPP, both="sum", s="factor"),
    ],
    ids=["renamed", "loops", "comments", "layout", "broken line", "reordered", "all of it"],
)
def test_cpp_in_other_words_is_a_duplicate(twin: str) -> None:
    assert twin != AFTER_CPP
    assert is_duplicate(CPP_SKETCH, of(CPP, BEFORE_CPP, twin))


@pytest.mark.parametrize(
    "twin",
    [
        renamed(AFTER_PY, wide="xf", squares="sq", rstd="inverse", rows="R"),
        renamed(AFTER_PY, x="inp"),
        AFTER_PY.replace("    # float32 sums\n", '    """Sums in float32."""\n'),
        AFTER_PY.replace("(wide * rstd).to(x.dtype)", "(\n        wide\n        * rstd\n    ).to(x.dtype)"),
        REORDERED_PY,
    ],
    ids=["renamed", "argument", "docstring", "layout", "reordered"],
)  # fmt: skip
def test_python_in_other_words_is_a_duplicate(twin: str) -> None:
    assert twin != AFTER_PY
    assert is_duplicate(PY_SKETCH, of(PY, BEFORE_PY, twin))


@pytest.mark.parametrize(
    "other",
    [
        AFTER_CPP.replace("64", "128"),
        AFTER_CPP.replace("kRows = 4", "kRows = 8"),
        AFTER_CPP.replace("0.f", "1.f", 1),
        AFTER_CPP.replace("even += x[i] * x[i]", "even = std::fma(x[i], x[i], even)"),
        AFTER_CPP.replace("const float both = even + odd;\n  return both;", "return odd + even;"),
        BEFORE_CPP.replace("sum += x[i] * x[i]", "sum += std::abs(x[i])"),
        AFTER_CPP.replace("odd += x[i + 1]", "odd -= x[i + 1]"),
    ],
    ids=["grain", "rows", "start", "fma", "shorter", "another idea", "sign"],
)
def test_another_constant_or_idea_is_not_a_duplicate(other: str) -> None:
    assert other not in (AFTER_CPP, BEFORE_CPP)
    assert not is_duplicate(CPP_SKETCH, of(CPP, BEFORE_CPP, other))


def test_a_statement_hoisted_out_of_a_loop_is_a_change() -> None:
    inside = BEFORE_CPP.replace(
        "y[i] = x[i] * s;", "{ const float t = s * s + s / 3.f; y[i] = x[i] * t; }"
    )
    outside = inside.replace("{ const float t = s * s + s / 3.f;", "").replace("* t; }", "* t;")
    outside = outside.replace(
        "int64_t n) {\n  for (int64_t i = 0; i < n; ++i)  y",
        "int64_t n) {\n  const float t = s * s + s / 3.f;\n  for (int64_t i = 0; i < n; ++i) y",
    )
    assert "t = s * s" in outside
    found = of(CPP, inside, outside)
    assert found[0] > 0
    assert found[2:] != sketch([])[2:]


def test_two_rewrites_that_remove_the_same_code_are_not_alike_for_that() -> None:
    first = "float total(const float* x, int64_t n) { return at::sum(x, n); }\n"
    second = "float total(const float* x, int64_t n) { return pairwise<8>(x, x + n / 2); }\n"
    long = AFTER_CPP * 5
    assert likeness(of(CPP, long, first), of(CPP, long, second)) < 0.8


def test_a_short_change_is_never_a_near_duplicate() -> None:
    after = BEFORE_CPP.replace("return sum;", "return 2.f * sum;")
    found = of(CPP, BEFORE_CPP, after)
    assert 0 < found[0] < MIN_TOKENS
    assert likeness(found, found) == 1.0
    assert not is_duplicate(found, found)


def test_the_same_lines_in_another_file_are_another_change() -> None:
    assert not is_duplicate(CPP_SKETCH, of("csrc/add_rms_norm.cpp", BEFORE_CPP, AFTER_CPP))


def test_added_deleted_and_broken_files_have_sketches() -> None:
    added, deleted = (
        sketch([change(CPP, None, AFTER_CPP)]),
        sketch([change(CPP, AFTER_CPP, None)]),
    )
    assert is_duplicate(added, added)
    assert is_duplicate(deleted, deleted)
    assert likeness(added, deleted) == 0.0
    broken = "def f(:\n    return (\n" * 9
    assert is_duplicate(of(PY, BEFORE_PY, broken), of(PY, BEFORE_PY, broken))
    for text in ("", "}}}}))", "{{{((", "/* never closed", '"', "#define X \\\n  1\n", "\x00\xff"):
        assert len(of(CPP, BEFORE_CPP, text)) == len(CPP_SKETCH)


def test_a_sketch_is_the_same_in_every_process() -> None:
    code = "import test_similarity as t; print(hash(t.CPP_SKETCH), hash(t.PY_SKETCH))"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    # The hash of a tuple of integers does not depend on PYTHONHASHSEED.
    assert said == {f"{hash(CPP_SKETCH)} {hash(PY_SKETCH)}\n"}


def honest() -> list[tuple[str, Change]]:
    """Each honest oddity as a patch of the shipped file of its op."""
    found = []
    for file in sorted((ROOT / "tests" / "honest").glob("*.*")):
        ops = sorted(p.stem for p in (ROOT / "bench" / "contracts").glob("*.py"))
        op = max((op for op in ops if file.stem.startswith(op)), key=len, default="")
        path = f"csrc/{op}.cpp" if file.suffix == ".cpp" else f"kernels/{op}.py"
        if op and (ROOT / path).is_file():
            found.append((file.name, change(path, (ROOT / path).read_text(), file.read_text())))
    return found


def test_real_patches_of_kernels_are_told_apart_and_their_twins_found() -> None:
    patches = [(name, one, sketch([one])) for name, one in honest()]
    assert len(patches) > 40
    alike = [
        (a, b) for (a, _, one), (b, _, two) in combinations(patches, 2) if is_duplicate(one, two)
    ]
    assert alike == []
    for name, one, found in patches:
        mark = "//" if name.endswith(".cpp") else "#"
        lines = (one.after or b"").decode().splitlines()
        code = [line for line in lines if not line.strip().startswith(mark)]
        twin = "\n\n".join([f"{mark} in other words", *code])
        if "'''" in twin or '"""' in twin or name.endswith(".cpp"):
            twin = "\n".join([f"{mark} in other words", *code, f"{mark} the end"])
        after = Change(one.path, "100644", "100644", one.before, twin.encode())
        assert is_duplicate(found, sketch([after])), name


def test_a_comparison_with_3000_earlier_changes_ends_after_a_few_values_of_each() -> None:
    """The worst honest case: all of them have the same numbers and the same number of tokens."""
    rng = random.Random(0)
    head = CPP_SKETCH[:2]
    earlier = [(n, (*head, *(rng.randrange(2**32) for _ in CPP_SKETCH[2:]))) for n in range(3000)]
    assert not any(is_duplicate(CPP_SKETCH, other) for _, other in earlier)
    takes: dict[str, list[float]] = {"ended early": [], "whole": []}
    for _ in range(7):
        for name, compared in (("ended early", is_duplicate), ("whole", likeness)):
            began = time.thread_time()
            for _, other in earlier:
                compared(CPP_SKETCH, other)
            takes[name].append(time.thread_time() - began)
    # Side by side: a machine that is slow is slow for both. It is about an eighth.
    assert min(takes["ended early"]) < 0.4 * min(takes["whole"])
    earlier.append((3001, CPP_SKETCH))
    assert nearest([change(CPP, BEFORE_CPP, AFTER_CPP)], earlier) == 3001
    assert nearest([change(PY, BEFORE_PY, AFTER_PY)], earlier) is None
    assert nearest([change(PY, BEFORE_PY, AFTER_PY)], []) is None


def shingles(tokens: list[str]) -> set[tuple[str, ...]]:
    return {tuple(tokens[at : at + 4]) for at in range(len(tokens) - 3)}


@pytest.mark.parametrize("kept", [600, 900, 1100, 1190])
def test_the_estimate_is_close_to_the_likeness_that_it_estimates(kept: int) -> None:
    one = ["{", *(f"word{n}" for n in range(1200)), "}"]
    two = one[:kept] + [f"other{n}" for n in range(kept, 1201)] + ["}"]
    a, b = shingles(one), shingles(two)
    estimate = likeness(*(of(CPP, "", " ".join(tokens)) for tokens in (one, two)))
    assert estimate == pytest.approx(len(a & b) / len(a | b), abs=0.1)


def test_half_a_per_cent_of_other_tokens_is_a_duplicate_and_a_tenth_is_not() -> None:
    one = ["{", *(f"word{n}" for n in range(1200)), "}"]
    for others, verdict in ((6, True), (120, False)):
        two = [f"other{n}" if n % (1200 // others) == 5 else word for n, word in enumerate(one)]
        sketches = [of(CPP, "", " ".join(tokens)) for tokens in (one, two)]
        assert is_duplicate(*sketches) is verdict
    assert ALIKE == 0.92
