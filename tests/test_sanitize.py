"""A sanitizer sees what is planted: one element past an end, and two threads that write to one place."""

from __future__ import annotations

from pathlib import Path

import pytest
import sanitize

from agent.lab import Lab
from kernels import jit

ROOT = Path(__file__).resolve().parent.parent
LOOP = "for (int64_t i = begin; i < end; ++i) {"
PLANTED = {
    "address": (LOOP, LOOP.replace("<", "<="), "heap-buffer-overflow at"),
    "thread": (LOOP, f"{LOOP}\n    static volatile float last;\n    last = m[i];", "data race at"),
}


@pytest.mark.parametrize("name", ["address", pytest.param("thread", marks=pytest.mark.proof)])
def test_a_planted_fault_is_found_with_its_line_and_the_call(name: str, tmp_path: Path) -> None:
    Lab().copy_tree(tmp_path)
    before, after, said = PLANTED[name]
    source = tmp_path / "csrc" / "nesterov.cpp"
    assert source.read_text().count(before) == 1
    source.write_text(source.read_text().replace(before, after))
    row = sanitize.check("nesterov", sanitize.SANITIZERS[name], jit.isa(), tmp_path, drawn=2)
    assert said in row.found
    assert "nesterov.cpp:1" in row.found
    assert "threads: momentum[" in row.found


def test_what_ends_without_a_report_is_a_finding_too() -> None:
    assert sanitize.finding("Segmentation fault\n", []) == "no verdict: Segmentation fault"


def test_every_op_is_planned_for_each_instruction_set_and_once_for_races() -> None:
    planned = [(op, with_.name) for op, with_, _ in sanitize.plan(None)]
    assert {op for op, _ in planned} == {path.stem for path in (ROOT / "csrc").glob("*.cpp")}
    assert planned.count(("attention", "thread")) == 1
