"""What one run's set-up compiled the next run of the same tree finds, and nobody else."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import compiled, trial
from bench.compiled import Compiled
from bench.data import prepare
from bench.judge import COMPILED, Judge, Refused
from bench.trial import run_trial

TESTS = Path(__file__).resolve().parent
SPEC = {"device": "cpu", "vocab_size": 300, "seconds": 20.0, "impl": None}

TRAIN = """
import torch
from model.bigram import Trainer as Honest


def deep(table):
    for _ in range(3):
        table = torch.softmax(table.sin().exp(), -1).cumsum(-1)
    return table


class Trainer(Honest):
    def warm_up(self, tokens):
        torch.compile(deep)(self.model.table.detach())
        super().warm_up(tokens)
"""

# A kernel of the shipped tree, compiled for an H100 with Triton's cache in the first folder given.
TRITON = """
from bench import aot
from kernels.rms_norm import AOT
print(aot.compile_all(AOT[:1], [90]))
"""


def tree_of(folder: Path, text: str) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "train.py").write_text(text)
    return folder


def folder_of(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def files_of(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_what_is_kept_has_the_name_of_the_tree_and_of_what_was_asked_but_the_time(
    tmp_path: Path,
) -> None:
    one, same = tree_of(tmp_path / "a", "x = 1"), tree_of(tmp_path / "b", "x = 1")
    other = tree_of(tmp_path / "c", "x = 2")
    kept = Compiled.of(one, SPEC, tmp_path)
    assert Compiled.of(same, {**SPEC, "seconds": 300.0}, tmp_path) == kept
    assert Compiled.of(other, SPEC, tmp_path) != kept
    assert Compiled.of(one, {**SPEC, "impl": {"attention": "torch"}}, tmp_path) != kept


def test_a_second_folder_gets_what_the_first_held_and_the_first_to_be_kept_stays(
    tmp_path: Path,
) -> None:
    kept = Compiled(tmp_path / "store" / "key")
    kept.bring(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    first = folder_of(tmp_path / "first", {"inductor/ab/x.py": "made", "triton/K/k.ptx": "code"})
    kept.take(first)
    kept.take(folder_of(tmp_path / "later", {"inductor/ab/x.py": "otherwise"}))
    kept.bring(tmp_path / "second")
    assert files_of(tmp_path / "second") == files_of(first)
    assert os.listdir(tmp_path / "store") == ["key"]


def test_no_link_is_followed_and_nothing_that_is_no_file_is_copied(tmp_path: Path) -> None:
    secret = folder_of(tmp_path / "secret", {"key": "private"})
    mine = folder_of(tmp_path / "mine", {"inductor/x": "made"})
    (mine / "file").symlink_to(secret / "key")
    (mine / "folder").symlink_to(secret)
    os.mkfifo(mine / "pipe")
    kept = Compiled(tmp_path / "store" / "key")
    kept.take(mine)
    kept.bring(tmp_path / "second")
    assert files_of(tmp_path / "second") == {"inductor/x": "made"}


def test_nothing_and_too_much_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Compiled(tmp_path / "store" / "key")
    (tmp_path / "empty" / "triton").mkdir(parents=True)
    kept.take(tmp_path / "empty")
    monkeypatch.setattr(compiled, "MOST_BYTES", 5)
    kept.take(folder_of(tmp_path / "much", {"a": "four", "b": "four"}))
    monkeypatch.setattr(compiled, "MOST_FILES", 2)
    kept.take(folder_of(tmp_path / "many", {"a": "", "b": "", "c": ""}))
    assert os.listdir(tmp_path / "store") == []


def test_the_folders_that_were_used_longest_ago_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "KEPT", 2)
    made = folder_of(tmp_path / "made", {"x": "made"})
    for i, name in enumerate(("a", "b", "c")):
        Compiled(tmp_path / "store" / name).take(made)
        os.utime(tmp_path / "store" / name, (i, i))
        if name == "b":
            Compiled(tmp_path / "store" / "a").bring(tmp_path / "used")
    assert sorted(os.listdir(tmp_path / "store")) == ["a", "c"]


def test_a_triton_kernel_is_found_in_another_folder_than_it_was_compiled_in(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"

    def compile_into(folder: Path) -> None:
        environment = {**os.environ, "TRITON_CACHE_DIR": str(folder / "triton")}
        command = [sys.executable, "-c", TRITON]
        subprocess.run(command, env=environment, cwd=TESTS.parent, check=True, capture_output=True)

    compile_into(first)
    kept = Compiled(tmp_path / "store" / "key")
    kept.take(first)
    shutil.rmtree(first)
    kept.bring(second)
    before = {p: p.stat().st_mtime_ns for p in second.rglob("*") if p.is_file()}
    assert any(p.suffix == ".cubin" for p in before)
    compile_into(second)
    assert {p: p.stat().st_mtime_ns for p in second.rglob("*") if p.is_file()} == before


def test_a_runner_cannot_look_at_what_is_kept(tmp_path: Path) -> None:
    COMPILED.mkdir(parents=True, exist_ok=True)
    looks = f"""
import os
try:
    seen = os.listdir({str(COMPILED)!r})
except OSError:
    seen = "nothing"
raise RuntimeError(f"saw {{seen}}")
"""
    tree = folder_of(tmp_path, {"kernels/__init__.py": "", "kernels/rms_norm.py": looks})
    with Judge(tree) as judge, pytest.raises(Refused, match="saw nothing"):
        judge.ask("load", op="rms_norm", tree=str(tree))


def test_the_second_trial_of_a_tree_compiles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.jsonl"
    rng = random.Random(0)
    lines = [" ".join(str(rng.randrange(1000)) for _ in range(250)) for _ in range(300)]
    text.write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    dataset = prepare(str(text), vocab_size=300, root=tmp_path / "data")
    tree = tree_of(tmp_path / "tree", TRAIN)
    (tree / "model" / "__init__.py").touch()
    shutil.copy(TESTS / "bigram.py", tree / "model" / "bigram.py")
    monkeypatch.setattr(trial, "COMPILED", tmp_path / "store")

    def set_up() -> float:
        result = run_trial(tree, dataset, seconds=20.0, seed=0, device="cpu", steps=5, score=False)
        assert result.ok, result.detail
        return result.setup_seconds

    cold = set_up()
    (kept,) = (tmp_path / "store").iterdir()
    assert list(kept.rglob("*.so"))
    assert set_up() < 0.6 * cold
