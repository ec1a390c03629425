"""What one run's set-up compiled the next run of the same tree finds, and nobody else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from lab_tree import write
from quick_compile import SETTINGS
from trial_tree import put

from bench import aot, compiled, trial
from bench.compiled import Compiled
from bench.data import Dataset
from bench.judge import COMPILED, Judge, Refused
from bench.runner.keeping import Keeping
from bench.trial import run_trial
from bench.trial_result import TrialResult
from kernels.rms_norm import AOT

TESTS = Path(__file__).resolve().parent
SPEC = {"device": "cpu", "vocab_size": 300, "seconds": 20.0, "impl": None}

TRAIN = f"""
import os, pathlib
import torch
from model.bigram import Trainer as Honest
{SETTINGS}
here = pathlib.Path(os.environ["TRITON_CACHE_DIR"]).with_name("inductor")


def deep(table):
    return torch.softmax(table.sin().exp(), -1).cumsum(-1)


class Trainer(Honest):
    def warm_up(self, tokens):
        before = set(here.rglob("*.so"))
        torch.compile(deep)(self.model.table.detach())
        self.made = len(set(here.rglob("*.so")) - before)
        super().warm_up(tokens)

    def train(self, *args):
        return {{**super().train(*args), "peak_memory_mb": float(self.made)}}
"""

LEARNS = """
import os, pathlib
from model.bigram import Trainer as Honest

here = pathlib.Path(os.environ["TRITON_CACHE_DIR"])


class Trainer(Honest):
    def __init__(self, spec):
        assert not (here / "table").exists()
        super().__init__(spec)

    def warm_up(self, tokens):
        here.mkdir(exist_ok=True)
        (here / "made").write_text("made")
        super().warm_up(tokens)

    def train(self, *args):
        (here / "table").write_text("learned")
        return super().train(*args)
"""

# A kernel of the shipped tree, compiled for an H100 with Triton's cache in the first folder given.
TRITON = """
from bench import aot
from kernels.rms_norm import AOT
print(aot.compile_all(AOT[:1], [90]))
"""


def folder_of(folder: Path, files: dict[str, str]) -> Path:
    write(folder, files)
    return folder


def test_what_is_kept_has_the_name_of_the_tree_and_of_what_was_asked_but_the_time(
    tmp_path: Path,
) -> None:
    one, same, other = (
        folder_of(tmp_path / name, {"model/train.py": text})
        for name, text in (("a", "x = 1"), ("b", "x = 1"), ("c", "x = 2"))
    )
    kept = Compiled.of(one, SPEC, tmp_path)
    assert Compiled.of(same, {**SPEC, "seconds": 300.0}, tmp_path) == kept
    assert Compiled.of(other, SPEC, tmp_path) != kept
    assert Compiled.of(one, {**SPEC, "impl": {"attention": "torch"}}, tmp_path) != kept


def held(judge: Judge, store: Path) -> Compiled:
    """What a runner, whose kernels/make.py writes it at its import, is asked to have kept."""
    judge.ask("load", op="make", tree=str(judge.tree))
    kept = Compiled(store / "key")
    kept.take(judge)
    return kept


def making(folder: Path, text: str) -> Path:
    """A tree whose op writes into the folder of what is compiled, `here`."""
    begin = "import os, pathlib\nhere = pathlib.Path(os.environ['TRITON_CACHE_DIR']).parent\n"
    end = "\ndef make(): ...\n"
    return folder_of(
        folder, {"kernels/__init__.py": "", "kernels/make.py": begin + textwrap.dedent(text) + end}
    )


def test_a_runner_finds_what_an_earlier_one_made_and_what_was_kept_first_stays(
    tmp_path: Path,
) -> None:
    made = """
        (here / "inductor" / "ab").mkdir(parents=True)
        (here / "inductor" / "ab" / "x.py").write_text("made")
        (here / "inductor" / "link").symlink_to("/etc/passwd")
        os.mkfifo(here / "inductor" / "pipe")
    """
    found = """
        def seen():
            return {str(p.relative_to(here)): p.read_text() for p in (here / "inductor").rglob("*") if p.is_file()}
        raise RuntimeError(seen())
    """
    with Judge(making(tmp_path / "a", made)) as judge:
        kept = held(judge, tmp_path / "store")
    kept.take(None)  # type: ignore[arg-type]  # nobody is asked for what is there
    with Judge(making(tmp_path / "c", found)) as judge:
        kept.bring(judge)
        with pytest.raises(Refused, match=re.escape("{'inductor/ab/x.py': 'made'}")):
            judge.ask("load", op="make", tree=str(judge.tree))
    assert os.listdir(tmp_path / "store") == ["key"]


def test_nothing_and_too_much_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    much = """
        (here / "inductor").mkdir()
        (here / "inductor" / "x").write_bytes(bytes(10_000))
    """
    with Judge(making(tmp_path / "nothing", "")) as judge:
        assert not held(judge, tmp_path / "store").file.exists()
    with Judge(making(tmp_path / "much", much)) as judge:
        monkeypatch.setattr(compiled, "MOST_BYTES", 1 << 10)
        kept = held(judge, tmp_path / "store")
        assert not kept.file.exists()
        monkeypatch.setattr(compiled, "MOST_BYTES", 1 << 20)
        kept.take(judge)
        assert kept.file.exists()


def test_a_runner_that_writes_on_after_it_has_packed_changes_nothing(tmp_path: Path) -> None:
    """By a descriptor that it has kept."""
    writes = """
        import tarfile, threading, time
        honest = tarfile.open
        def opened(*args, fileobj, **kwargs):
            fd = os.dup(fileobj.fileno())
            def write():
                while not pathlib.Path(__file__).with_name("go").exists():
                    time.sleep(0.01)
                os.pwrite(fd, b"learned", 0)
            threading.Thread(target=write).start()
            return honest(*args, fileobj=fileobj, **kwargs)
        tarfile.open = opened
        (here / "inductor").mkdir()
        (here / "inductor" / "x").write_text("made")
    """
    with Judge(making(tmp_path / "tree", writes)) as judge:
        kept = held(judge, tmp_path / "store")
        before = kept.file.read_bytes()
        (judge.tree / "kernels" / "go").touch()
        time.sleep(0.3)
    assert kept.file.read_bytes() == before
    assert b"learned" not in before


def test_what_cannot_be_unpacked_is_refused_once_and_kept_no_longer(tmp_path: Path) -> None:
    kept = Compiled(tmp_path / "key")
    kept.file.write_bytes(b"no archive")
    with Judge(making(tmp_path / "tree", "")) as judge, pytest.raises(Refused):
        kept.bring(judge)
    kept.bring(None)  # type: ignore[arg-type]  # nobody is asked where nothing is


def test_the_files_that_were_used_longest_ago_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "KEPT", 2)
    store = tmp_path / "store"
    made = """
        (here / "inductor").mkdir()
        (here / "inductor" / "x").write_text("made")
    """
    with Judge(making(tmp_path / "tree", made)) as judge:
        kept = held(judge, store)
        for age, name in ((300, "a"), (200, "b")):
            shutil.copy(kept.file, store / name)
            then = time.time() - age
            os.utime(store / name, (then, then))
        Compiled(store / "a").bring(SimpleNamespace(ask=lambda *_, **__: None))
        kept.file.unlink()
        kept.take(judge)
    assert sorted(os.listdir(store)) == ["a", "key"]


def test_a_triton_kernel_is_found_where_it_was_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of another name, as on a machine where runners have no root of their own."""
    first, second = tmp_path / "first", tmp_path / "second"
    second.mkdir()

    def compile_into(folder: Path) -> None:
        monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "triton"))
        aot.compile_all(AOT[:1], [90])

    def files() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in (second / "triton").rglob("*") if p.is_file()}

    # In a process of its own; what it leaves is found in this one.
    environment = {**os.environ, "TRITON_CACHE_DIR": str(first / "triton")}
    command = [sys.executable, "-c", TRITON]
    subprocess.run(command, env=environment, cwd=TESTS.parent, check=True, capture_output=True)
    archive = os.open(tmp_path / "archive", os.O_RDWR | os.O_CREAT)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(first / "triton"))
    Keeping().do_pack({"most": 1 << 30}, os.dup(archive))
    shutil.rmtree(first)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(second / "triton"))
    os.lseek(archive, 0, os.SEEK_SET)
    Keeping().do_unpack({}, archive)
    before = files()
    assert any(p.suffix == ".cubin" for p in before)
    compile_into(second)
    assert files() == before


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


def set_up(tree: Path, dataset: Dataset) -> TrialResult:
    """A short trial."""
    result = run_trial(tree, dataset, seconds=20.0, seed=0, device="cpu", steps=5, score=False)
    assert result.ok, result.detail
    return result


@pytest.mark.slow
def test_the_second_trial_of_a_tree_finds_what_the_first_compiled(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "COMPILED", tmp_path / "store")
    # Else a first set-up that takes long is done anew, and the trial is that of the second.
    monkeypatch.setitem(trial.SETUP_FREE_S, "cpu", 1000.0)
    tree = put(tmp_path / "tree", TRAIN)
    # How many objects the set-up made stands in the place of a figure that the model reports.
    made = set_up(tree, dataset).peak_memory_mb
    (kept,) = (tmp_path / "store").iterdir()
    assert b".so" in kept.read_bytes()
    assert set_up(tree, dataset).peak_memory_mb == 0 < made


def test_what_a_trial_learns_does_not_come_back_with_what_its_set_up_made(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "COMPILED", tmp_path / "store")
    tree = put(tmp_path / "tree", LEARNS)
    set_up(tree, dataset)
    set_up(tree, dataset)
    (kept,) = (tmp_path / "store").iterdir()
    assert b"made" in kept.read_bytes()
    assert b"learned" not in kept.read_bytes()


def test_a_runner_packs_into_memory_so_that_a_full_disk_is_none_of_its_faults(
    tmp_path: Path,
) -> None:
    def pack(do: str, *, fd: int, **_: object) -> None:
        assert os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")
        os.write(fd, b"made")

    kept = Compiled(tmp_path / "store" / "key")
    kept.take(SimpleNamespace(ask=pack))
    assert kept.file.read_bytes() == b"made"


@pytest.mark.parametrize("chosen", ["CXX", "TRITON_PTXAS_PATH"])
def test_another_compiler_or_assembler_finds_nothing_that_is_kept(
    chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = folder_of(tmp_path / "tree", {"model/train.py": "x = 1"})
    monkeypatch.delenv(chosen, raising=False)
    kept = Compiled.of(tree, SPEC, tmp_path)
    monkeypatch.setenv(chosen, "/elsewhere")
    assert Compiled.of(tree, SPEC, tmp_path) != kept


def test_a_folder_that_a_compiler_deletes_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "triton" / "gone").mkdir(parents=True)
    (tmp_path / "triton" / "x").write_text("made")
    plain = os.scandir

    def scandir(path: object):  # type: ignore[no-untyped-def]
        if str(path).endswith("gone"):
            raise FileNotFoundError(path)
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    Keeping().do_pack({"most": 1 << 20}, os.open(tmp_path / "archive", os.O_RDWR | os.O_CREAT))
    with tarfile.open(tmp_path / "archive") as archive:
        assert "triton/x" in archive.getnames()
