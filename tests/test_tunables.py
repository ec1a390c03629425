"""Marked constants are found in any language and rewritten without another byte moving."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent import tunables

SOURCE = """\
BLOCK_N = 1024  # tune: 512 1024 2048
rate: float = 2e-2  # tune: 0.01 0.02 0.04 (per step)
constexpr int64_t kGrain = 1 << 14;  // tune: 4096 16384 65536
  #define UNROLL 4  // tune: 1 2 4
kernel(x, num_warps=4,  # tune: 2 4 8
    "depth": 4,  # tune: 2 4 6
constexpr float kA = 0.5f;  // tune: 0.5f 0.25f
static constexpr bool kFused = true;  // tune: true false
MODE = "row"  # tune: "row" "tile"
"""


def test_constants_of_each_language_are_found() -> None:
    found = {each.name: (each.value, each.choices) for each in tunables.find(SOURCE)}
    assert found == {
        "BLOCK_N": ("1024", ("512", "1024", "2048")),
        "rate": ("0.02", ("0.01", "0.02", "0.04")),
        "kGrain": ("16384", ("4096", "16384", "65536")),
        "UNROLL": ("4", ("1", "2", "4")),
        "num_warps": ("4", ("2", "4", "8")),
        "depth": ("4", ("2", "4", "6")),
        "kA": ("0.5f", ("0.5f", "0.25f")),
        "kFused": ("true", ("true", "false")),
        "MODE": ('"row"', ('"row"', '"tile"')),
    }


@pytest.mark.parametrize(
    "line",
    [
        "if a == 4:  # tune: 2 4",
        "x = f(n)  # tune: 2 4",
        "x = max(1, 4096 // n)  # tune: 1 2",
        "x = 4  # tune: 4",
        "x = 4  # tuned: 2 4",
        "# tune: 2 4",
    ],
)
def test_what_sets_no_constant_or_leaves_no_choice_is_not_tunable(line: str) -> None:
    assert tunables.find(line + "\n") == []


def test_a_value_outside_its_choices_is_one_of_them() -> None:
    (found,) = tunables.find("ROWS = 3  # tune: 4 8\n")
    assert (found.value, found.choices) == ("3", ("3", "4", "8"))


def test_a_name_that_stands_twice_is_told_apart() -> None:
    text = "constexpr int k = 8;  // tune: 4 8\nconstexpr int k = 4;  // tune: 2 4\n"
    assert [each.name for each in tunables.find(text)] == ["k", "k#2"]
    assert tunables.rewrite(text, {"k#2": "2"}) == text.replace("k = 4", "k = 2")


def test_rewriting_changes_the_value_and_nothing_else() -> None:
    changed = tunables.rewrite(SOURCE, {"kGrain": "65536", "depth": "2", "num_warps": "8"})
    expected = (
        SOURCE.replace("1 << 14;", "65536;")
        .replace('"depth": 4', '"depth": 2')
        .replace("warps=4", "warps=8")
    )
    assert changed == expected
    assert tunables.rewrite(SOURCE, {"kGrain": "16384"}) == SOURCE


def test_rewriting_refuses_names_and_values_that_are_not_offered() -> None:
    with pytest.raises(ValueError, match="expected one of 512 1024 2048"):
        tunables.rewrite(SOURCE, {"BLOCK_N": "7"})
    with pytest.raises(KeyError):
        tunables.rewrite(SOURCE, {"BLOCK_M": "64"})


def test_a_template_sees_code_and_not_settings() -> None:
    base = tunables.template(SOURCE)
    assert tunables.template(tunables.rewrite(SOURCE, {"BLOCK_N": "2048", "kA": "0.25f"})) == base
    assert tunables.template(SOURCE.replace("kernel(x", "kernel(y")) != base


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 << 14", 16384),
        ("0x10", 16),
        ("10_000.0", 1e4),
        ("1'000", 1000),
        ("64L", 64),
        ("-0.5f", -0.5),
        ("2 * 3", 6),
    ],
)
def test_equal_numbers_are_equal_however_written(text: str, value: float) -> None:
    assert tunables.number_of(text) == value


@pytest.mark.parametrize(
    "text",
    ["9**9**9", "1 << 9999999999", "2.0**5000", "1" + "+1" * 5000, "(((((9**64)**64)**64)**64)**64)**64", "'-' * 9**9"],
)  # fmt: skip
def test_what_would_take_for_ever_is_no_number(text: str) -> None:
    """Any line of a docstring may look like a constant."""
    assert tunables.number_of(text) == text


def test_a_constant_for_somewhere_counts_there_alone() -> None:
    text = "a = 1  # tune on cpu: 1 2\na = 4  # tune on cuda: 4 8\nkRows = 8;  // tune on avx512: 4 8\nb = 1  # tune: 1 2\n"
    on_cpu, on_cuda, on_avx512, anywhere = tunables.find(text)
    assert [each.name for each in (on_cpu, on_cuda, on_avx512, anywhere)] == [
        "a on cpu", "a on cuda", "kRows on avx512", "b",
    ]  # fmt: skip
    here = "cpu Intel(R) Xeon(R) Processor, AVX512, 2 threads"
    assert [each.applies_to(here) for each in (on_cpu, on_cuda, on_avx512, anywhere)] == [
        True, False, True, True,
    ]  # fmt: skip
    assert on_cuda.applies_to("cuda NVIDIA H100 80GB HBM3")
    assert not on_avx512.applies_to("cpu Zen 3, AVX2, 2 threads")
    assert tunables.rewrite(text, {"a on cuda": "8"}) == text.replace("a = 4", "a = 8")


def test_every_marker_of_this_project_is_understood() -> None:
    root = Path(__file__).resolve().parent.parent
    files = [f for folder in ("kernels", "csrc", "model") for f in (root / folder).glob("*.*")]
    marked = found = 0
    for file in files:
        text = file.read_text()
        marked += len(re.findall(r"(?:#|//) tune\b", text))
        found += len(tunables.find(text))
    assert found > 0
    assert found == marked, "a `tune:` marker stands beside something that is not a constant"
