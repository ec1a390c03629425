"""Every command of the README runs or is covered by a test that is named here; its tree and its figures are the project's own."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from agent.options import parser

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()

# Commands that take minutes or leave this checkout, and what tests each instead.
ELSEWHERE = {
    "git clone": "plain git",
    "make lab": "tests/test_lab.py: the same command line with shorter trials and a scripted model in the place of the sweep",
    "make test": "this suite",
    "make bench": "tests/test_lab.py: pytest bench --benchmark on one op",
    "pytest bench": "bench/ is part of this suite; --benchmark: tests/test_lab.py",
}


def commands() -> list[str]:
    """The lines of the README's console blocks that a person types."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_the_readme_shows_commands() -> None:
    assert len(commands()) >= 10


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_is_one_that_exists(command: str) -> None:
    words = shlex.split(command.replace("[", "").replace("]", ""))
    if words[:3] == ["python", "-m", "agent"] or words[:3] == [".venv/bin/python", "-m", "agent"]:
        parser().parse_args(words[3:])  # raises SystemExit for an option that does not exist
    else:
        assert any(command.startswith(known) for known in ELSEWHERE), f"{command}: nothing tests it"


def test_make_targets_named_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, re.M), f"no target {target}"


def test_every_folder_of_the_tree_exists() -> None:
    tree = re.search(r"```text\n(.*?)```", README, re.S)
    assert tree
    for line in tree.group(1).splitlines():
        name = line.split()[0] if line.strip() else ""
        if name:
            assert (ROOT / name).exists(), f"the README's tree names {name}, which is not there"


def test_figures_of_the_readme_equal_the_committed_results() -> None:
    trial = json.loads((ROOT / "results" / "cpu_trial.json").read_text())
    assert f"{trial['shipped']['val_bpb']:.3f}" in README
    assert f"{trial['shipped']['tokens_per_second']:,.0f}" in README
    assert f"{trial['torch.compile']['tokens_per_second']:,.0f}" in README
    assert f"{trial['torch.compile']['val_bpb']:.3f}" in README
