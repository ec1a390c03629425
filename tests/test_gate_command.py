"""`python -m agent gate`: what it judges, its exit status, and JSON alone on standard output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lab_tree import CPP, PY, Rules, Transcript, agent, git, write

from agent import gate_command
from agent.__main__ import main
from agent.lab import Lab, Unusable


def test_gate_refuses_a_file_with_status_1_and_json_alone_on_stdout(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import os\n\n\ndef rms_norm(x, weight=None, eps=1e-6):\n    return x\n")
    done = agent("gate", "--op", "rms_norm", "--candidate", str(file), "--json")
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert set(said) == {"passed", "refused_by", "gates"}
    assert (said["passed"], said["refused_by"]) == (False, "static")
    (gate,) = said["gates"]
    assert set(gate) == {"name", "passed", "reason", "evidence", "seconds"}
    assert (gate["name"], gate["passed"]) == ("static", False)
    assert "kernels/rms_norm.py:1: imports `os`" in gate["reason"]
    assert "static REFUSED" in done.stderr


def test_gate_of_the_working_tree_refuses_a_touched_judge(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    write(lab.root, {"bench/rule.py": "LIMIT = 100\n"})
    assert main(["gate", "--json"], lab) == 1
    (gate,) = json.loads(capsys.readouterr().out)["gates"]
    assert gate["name"] == "scope"
    assert "bench/rule.py" in gate["reason"]


def test_gate_passes_a_working_tree_with_nothing_to_judge(lab: Lab) -> None:
    write(lab.root, {"README.md": "more words\n"})
    assert main(["gate"], lab) == 0


def test_gate_judges_what_left_the_base_and_not_what_the_base_did_since(lab: Lab) -> None:
    git(lab.root, "checkout", "-qb", "mine")
    write(lab.root, {"csrc/scale.cpp": CPP.replace("kRows = 1", "kRows = 4")})
    git(lab.root, "commit", "-qam", "rows")
    git(lab.root, "checkout", "-q", "main")
    write(lab.root, {"bench/rule.py": "LIMIT = 2\n"})
    git(lab.root, "commit", "-qam", "a rule")
    git(lab.root, "checkout", "-q", "mine")
    results = gate_command.judge_working_tree(lab, "main", True, Transcript(), Rules())
    assert [result.name for result in results] == [
        "scope",
        "static",
        "build",
        "correctness",
        "microbench",
    ]
    assert results[-1].passed
    assert results[0].evidence["paths"] == ["csrc/scale.cpp"]


@pytest.mark.parametrize(("rows", "passed"), [(1, True), (4, False)])
def test_a_person_s_change_may_be_as_fast_but_not_slower(lab: Lab, rows: int, passed: bool) -> None:
    write(lab.root, {"csrc/scale.cpp": CPP.replace("kRows = 1", f"kRows = {rows}")})
    git(lab.root, "commit", "-qam", "rows", "--allow-empty")
    write(
        lab.root,
        {
            "csrc/scale.cpp": CPP.replace("kRows = 1", f"kRows = {rows if passed else 8}")
            + "int x;\n"
        },
    )
    results = gate_command.judge_working_tree(lab, None, True, Transcript(), Rules())
    assert results[-1].name == "microbench"
    assert results[-1].passed is passed


@pytest.mark.parametrize(
    ("rows", "speed", "passed"), [(4, True, True), (1, True, False), (1, False, True)]
)
def test_a_candidate_file_has_to_be_faster_unless_speed_is_left_out(
    lab: Lab, tmp_path: Path, rows: int, speed: bool, passed: bool
) -> None:
    file = tmp_path / "anything.cpp"
    file.write_text(CPP.replace("kRows = 1", f"kRows = {rows}"))
    before = git(lab.root, "status", "--porcelain")
    results = gate_command.judge_file(lab, "scale", file, speed, Transcript(), Rules())
    assert results[-1].passed is passed
    assert results[-1].name == ("microbench" if speed else "correctness")
    assert git(lab.root, "status", "--porcelain") == before


def test_the_first_kernel_of_a_new_op_is_compared_with_nothing(lab: Lab, tmp_path: Path) -> None:
    """Its contract is there already: a person has merged it, since it is part of the judge."""
    git(lab.root, "rm", "-q", "kernels/scale.py")
    git(lab.root, "commit", "-qm", "a contract alone")
    judge, file = Rules(), tmp_path / "mine.py"
    file.write_text(PY)
    found = [gate_command.judge_file(lab, "scale", file, True, Transcript(), judge)]
    write(lab.root, {"kernels/scale.py": PY})
    found.append(gate_command.judge_working_tree(lab, None, True, Transcript(), judge))
    for results in found:
        assert results[-1].passed
        assert results[-1].name == "microbench"
        assert "scale is new" in results[-1].reason


def test_a_repair_of_what_does_not_build_can_be_judged_but_for_its_time(lab: Lab) -> None:
    write(lab.root, {"csrc/scale.cpp": CPP.replace("kUnroll = 1", "kUnroll = 2")})
    git(lab.root, "commit", "-qam", "it does not build")
    write(lab.root, {"csrc/scale.cpp": CPP})
    results = gate_command.judge_working_tree(lab, None, False, Transcript(), Rules())
    assert [result.name for result in results][-1] == "correctness"
    assert results[-1].passed
    with pytest.raises(Unusable, match="does not build"):
        gate_command.judge_working_tree(lab, None, True, Transcript(), Rules())


def test_documents_and_tests_of_a_pull_request_have_any_size(lab: Lab) -> None:
    write(lab.root, {"csrc/scale.cpp": CPP.replace("kRows = 1", "kRows = 4"), "notes.md": "a line\n" * 3000})  # fmt: skip
    git(lab.root, "add", "-A")
    results = gate_command.judge_working_tree(lab, None, True, Transcript(), Rules())
    assert all(result.passed for result in results), results[-1].reason


def test_the_gate_builds_the_sources_of_the_ops_that_it_judges_alone(lab: Lab) -> None:
    asked = []

    class Builder(Rules):
        def build(self, tree, changed):
            asked.append(list(changed))
            return super().build(tree, changed)

    write(lab.root, {"csrc/other.cpp": CPP})
    git(lab.root, "add", "-A")
    git(lab.root, "commit", "-qm", "another op's")
    write(lab.root, {"csrc/scale.cpp": CPP + "int x;\n"})
    assert gate_command.judge_working_tree(lab, None, True, Transcript(), Builder())[-1].passed
    assert asked == [["csrc/scale.cpp"]] * 2


def test_a_python_candidate_stands_for_the_op_s_kernel_file(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "fast.py"
    file.write_text(PY.replace("IMPLEMENTATIONS", "KINDS"))
    results = gate_command.judge_file(lab, "scale", file, False, Transcript(), Rules())
    assert [result.passed for result in results] == [True, True, True]
