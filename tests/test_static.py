"""The static gate as a whole: the public function, weights in the source, and this project's own files. Honest oddities: test_honest.py."""

from __future__ import annotations

import random
import string

import pytest
from lab_tree import CPP, PY, TRAIN
from static_gate import ROOT, judged

from agent import gates
from agent.judging import Bench
from agent.records import Candidate, Change
from agent.static import literals


@pytest.mark.parametrize(
    "more",
    [
        "scale = other",
        "if x: scale = other",
        "if x:\n    def scale(x, factor=2.0): ...",
        "from torch import neg as scale",
        "for scale in []: pass",
        "def f():\n    global scale\n    scale = 1",
        "class scale: ...",
        "del scale",
        "with a as scale: ...",
        "try:\n    pass\nexcept ValueError as scale: ...",
        "[0 for i in x if (scale := i)]",
        "match x:\n    case scale: ...",
        "match x:\n    case {**scale}: ...",
        "def helper(x=(scale := other)): ...",
        "@(scale := other)\ndef helper(): ...",
        "class A((scale := other)): ...",
    ],
)
def test_the_public_name_means_one_thing_in_the_whole_file(more: str) -> None:
    assert "more than once" in judged("kernels/scale.py", f"{PY}\n{more}\n").reason


def test_a_local_name_of_the_op_s_name_is_no_second_definition() -> None:
    more = "def f():\n    scale = 1\n    return scale\nclass A:\n    def scale(self): ..."
    assert judged("kernels/scale.py", f"{PY}\n{more}\n").passed


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("kernels/scale.py", PY + 'W = "' + "ab " * 8_000 + '"\n'),
        ("kernels/scale.py", PY + "W = b'" + "ab" * 200 + "'\n"),
        ("kernels/scale.py", PY + "W = [" + "0.125, " * 600 + "]\n"),
        ("kernels/scale.py", PY + "W = [" + "[1, -2, 3], " * 300 + "]\n"),
        ("kernels/scale.py", PY + "W = " + "7" * 400 + "\n"),
        ("kernels/scale.py", PY + "".join(f'W{i} = "{"x y " * 400}"\n' for i in range(12))),
        ("kernels/scale.py", PY + "".join(f"W{i} = {list(range(100))}\n" for i in range(50))),
        ("csrc/scale.cpp", CPP + "float w[] = {" + "0.5f, -1e-3f, " * 300 + "};\n"),
        ("csrc/scale.cpp", CPP + "float w[] = {" + "0x1.8p-3f, 0x2, " * 300 + "};\n"),
        ("csrc/scale.cpp", CPP + 'const char* w = "' + "ab " * 12_000 + '";\n'),
        ("csrc/scale.cpp", CPP + 'const char* w = R"x(' + "ab)\n" * 6_000 + ')x";\n'),
        ("csrc/scale.cpp", CPP + 'const char* w = "' + "ab" * 200 + '";\n'),
        ("csrc/scale.cpp", CPP + "".join(f"int w{i}[] = {{{'1, ' * 400}}};\n" for i in range(12))),
    ],
    ids="string bytes numbers nested integer strings tables array hex C-string raw-string packed C-tables".split(),
)
def test_weights_in_the_source_are_refused_with_their_line(path: str, text: str) -> None:
    found = judged(path, text)
    assert not found.passed
    assert f"{path}:" in found.reason
    assert "learned in the trial" in found.reason


def added(*files: tuple[str, str]) -> list[str]:
    """What the gate says of new files that regards all of them together."""
    parts = tuple(Change(p, "000000", "100644", None, text.encode()) for p, text in files)
    found = gates.static(Candidate("all", ROOT, ROOT, parts), gates.Context(Bench()))
    refusals = found.evidence.get("refusals", [])
    return [each for each in refusals if "all files together" in each]


def test_weights_that_are_spread_over_files_are_refused() -> None:
    text = f"W = {list(range(200))}\n"
    assert added(*((f"model/part{n}.py", text) for n in range(12)))


def test_data_in_names_is_refused_and_so_is_data_in_their_order() -> None:
    draw = random.Random(1)
    new = ["".join(draw.choices(string.ascii_letters, k=40)) for _ in range(900)]
    known = draw.choices([f"turn{n}" for n in range(64)], k=36_000)
    for words in (new, known):
        python = f"WORDS = [{', '.join(words)}]\n"
        cpp = f"#define TEXT(...) #__VA_ARGS__\nconst char* w = TEXT({' '.join(words)});\n"
        for path, text in (("model/words.py", python), ("csrc/words.h", cpp)):
            (said,) = literals.too_much_added([(path, "", text)])
            assert "when compressed" in said
    assert added(("csrc/words.cpp", cpp))


def test_a_small_edit_of_a_long_file_adds_little() -> None:
    draw = random.Random(1)
    lines = [f"def f{n}(x): return x * {draw.random()}" for n in range(2_000)]
    before, after = "\n".join(lines), "\n".join([*lines, "ONE = 1"])
    assert list(literals.too_much_added([("model/long.py", before, after)])) == []


def test_an_op_may_be_written_anew_in_one_change() -> None:
    paths = ("kernels/attention.py", "csrc/attention.cpp")  # the longest
    files = [(path, "", (ROOT / path).read_text()) for path in paths]
    assert list(literals.too_much_added(files)) == []


def test_an_autotune_table_is_no_table_of_weights() -> None:
    configs = ", ".join(f"({m}, {n}, 4, 3)" for m in (16, 32, 64, 128) for n in (16, 32, 64, 128))
    assert judged("kernels/scale.py", f"{PY}CONFIGS = [{configs}]\n").passed
    table = ", ".join(str(n * n) for n in range(64))
    assert judged("csrc/scale.cpp", f"{CPP}constexpr int squares[] = {{{table}}};\n").passed


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        (PY.replace("def scale", "def scaled"), "write `def scale(x, factor=2.0)`"),
        (PY.replace("factor=2.0", "factor=3.0"), "is not the public signature"),
        (PY.replace("factor=2.0", "factor"), "is not the public signature"),
        (PY.replace("(x, factor", "(y, factor"), "is not the public signature"),
        (PY.replace("*, impl=None", "more"), "does not parse"),
        (PY.replace("IMPLEMENTATIONS", "KINDS"), "no IMPLEMENTATIONS"),
    ],
)
def test_the_public_function_must_stay_and_the_reason_says_how_it_looks(
    text: str, mend: str
) -> None:
    assert mend in judged("kernels/scale.py", text).reason


def test_a_single_file_needs_neither_impl_nor_implementations() -> None:
    text = "def scale(x, factor=2e0, fast=True):\n    return x * factor\n"
    assert judged("kernels/scale.py", text, complete=False).passed


def test_the_trainer_keeps_the_methods_that_the_trial_calls() -> None:
    assert judged("model/train.py", TRAIN).passed
    assert "lacks logits" in judged("model/train.py", TRAIN.replace("logits", "scores")).reason


def test_this_project_s_own_files_pass() -> None:
    files = [
        file
        for folder in ("kernels", "csrc", "model")
        for file in sorted((ROOT / folder).glob("*.*"))
        if file.suffix in (".py", ".cpp", ".cu", ".h")
    ]
    changes = [
        Change(
            str(file.relative_to(ROOT)), "100644", "100644", file.read_bytes(), file.read_bytes()
        )
        for file in files
    ]
    found = gates.static(Candidate("all", ROOT, ROOT, tuple(changes)), gates.Context(Bench()))
    assert found.passed, found.reason


def test_a_sum_that_is_too_deep_to_be_written_out_is_read_as_it_stands() -> None:
    deep = "x = n" + " + n" * 900 + "\n"
    assert list(literals.too_much_added([("model/deep.py", "", deep)])) == []
    assert judged("kernels/scale.py", PY + deep).passed
