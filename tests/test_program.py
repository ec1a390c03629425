"""The commands of program.md exist, and what it says that may be edited is what may be edited."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from agent import surface
from agent.options import parser
from agent.research.prompt import MAX_AGENDA

PROGRAM = (Path(__file__).resolve().parent.parent / "program.md").read_text()


def commands() -> list[str]:
    return [re.split(r"  +", line)[0] for line in re.findall(r"^    (python .*)$", PROGRAM, re.M)]


def test_it_shows_commands() -> None:
    assert len(commands()) >= 5


@pytest.mark.parametrize("command", commands())
def test_its_commands_exist(command: str) -> None:
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "agent"]
    parser().parse_args(words[3:])  # raises SystemExit for an option that does not exist


def test_the_commands_of_the_workflow_exist() -> None:
    root = Path(__file__).resolve().parent.parent
    text = (root / ".github" / "workflows" / "gate.yml").read_text()
    typed = re.findall(r"\.venv/bin/python -m agent (.*?)(?: \|.*)?$", text, re.M)
    assert [words.split()[0] for words in typed] == ["doctor", "gate"]
    for words in typed:
        parser().parse_args(shlex.split(words))
    makefile = (root / "Makefile").read_text()
    targets = re.findall(r"run: make (\w+)", text)
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def test_the_commands_of_make_lab_exist() -> None:
    makefile = Path(__file__).resolve().parent.parent / "Makefile"
    text = makefile.read_text().replace("\\\n", "")
    typed = re.findall(r"^\t@?\$\(BIN\)/python -m agent (.*)$", text, re.M)
    assert len(typed) == 1
    for words in typed:
        parser().parse_args(shlex.split(words.replace("$(DEVICE)", "auto")))


def test_what_it_calls_frozen_is_frozen() -> None:
    for path in surface.FROZEN:
        assert f"`{path}`" in PROGRAM
        assert not surface.editable(path, "all")


def test_a_model_is_shown_the_whole_of_it() -> None:
    assert len(PROGRAM) <= MAX_AGENDA
