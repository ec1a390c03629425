"""The command line: fast to answer, exact in its exit status, JSON alone on standard output, figures in lines that others read."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

import pytest
from lab_tree import Rules, Transcript, agent

from agent import campaign
from agent.__main__ import _COMMANDS, main
from agent.integrity import Tampered
from agent.lab import Lab, Unusable, device
from agent.options import parser
from agent.records import LOST, Settings
from bench import hardware
from bench.data import DataError

ROOT = Path(__file__).resolve().parent.parent


def test_help_answers_without_anything_heavy() -> None:
    heavy = "torch optuna anthropic rich numpy scipy triton".split()
    program = f"import sys, agent.__main__ as m; m.parser().format_help(); print(len(sys.modules), *(x for x in {heavy} if x in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    number, *found = done.stdout.split()
    assert found == []
    # Imports take the time of a start: Python's own and some of agent's. numpy alone would bring more than a hundred.
    assert int(number) < 300


def test_help_names_every_command() -> None:
    text = parser().format_help()
    for command in (
        *(name for name in _COMMANDS if name != "loop"),
        "--target",
        "--resume",
        "--start",
    ):
        assert re.search(rf"^  +{command}\b", text, re.M), command
    assert agent("--help").stdout.startswith("usage: python -m agent")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--target kernels"),
        (("--target", "everything"), "choose from"),
        (("--target", "kernels", "--seed", "-100"), "expected 0 to 1,000,000, got -100"),
        (("--target", "kernels", "--experiments", "0"), "expected more than 0"),
        (("gate", "--op", "rms_norm"), "--op OP with --candidate FILE"),
        (("gate", "--op", "rms_norm", "--candidate", "absent.py"), "no such file"),
        (("gate", "--op", "no_such_op", "--candidate", "setup.py"), "expected one of"),
        (
            ("gate", "--op", "rms_norm", "--candidate", "pyproject.toml"),
            "expected a .py, .cpp or .cu",
        ),
        (("gate", "--base", "no-such-ref"), "names no commit"),
        (("trial", "--profile", "--seconds", "5"), "leave --seconds out"),
        (("--target", "kernels", "--proposer", "oracle"), "expected one of auto, "),
        (("export", "--tsv", "--run", "no-such-run"), "no run no-such-run"),
        (("status", "no-such-run"), "no run no-such-run"),
        (("--dry-run", "prune"), "prune does not take --dry-run"),
        (("--hours", "2", "--usd", "3", "report"), "report does not take --hours, --usd"),
        (
            ("--resume", "r1", "--gpu-hours", "1", "prune"),
            "prune does not take --resume, --gpu-hours",
        ),
        (("--start", "/nowhere", "status"), "status does not take --start: leave that out"),
        (("--seconds", "60", "--model", "m", "report"), "report does not take --seconds, --model"),
        (("--proposer", "sweep", "aa", "--experiments", "1"), "aa does not take --proposer"),
        (("--target", "kernels", "--hours", "inf"), "expected more than 0, and finite, got inf"),
    ],
)
def test_what_cannot_be_done_is_said_with_status_2_and_no_output(
    arguments: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    try:
        status = main(arguments)
    except SystemExit as stopped:  # by argparse
        status = stopped.code
    said = capsys.readouterr()
    assert status == 2, said.err
    assert words in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_a_lab_without_git_or_inside_another_repository_says_so(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    with pytest.raises(Unusable, match="no commit to start from"):
        Lab(tmp_path / "bare").repository()
    (lab.root / "sub").mkdir()
    with pytest.raises(Unusable, match="inside another repository"):
        Lab(lab.root / "sub").repository()


def test_a_file_where_the_lab_s_folder_should_be_is_named(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.folder.write_text("")
    assert main(["status"], lab) == 2
    assert capsys.readouterr().err.startswith(f"error: {lab.folder} is a file: move it away")


def test_status_and_exports_tell_what_happened(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status"], lab) == 0
    assert "no run yet" in capsys.readouterr().out
    campaign.run(lab, Settings(seconds=5.0, data="corpus-1", experiments=3), Transcript(), Rules())
    assert main(["status"], lab) == 0
    text = capsys.readouterr().out
    assert "3 experiments" in text
    assert "csrc/scale.cpp: k" in text
    assert f" {hardware.name('cpu')}\n  csrc/scale.cpp: " in text
    assert main(["export", "--tsv"], lab) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["export", "--json"], lab) == 0
    text = capsys.readouterr().out
    assert text.endswith("}\n")
    assert len(json.loads(text)["runs"][0]["experiments"]) == 3
    assert main(["export", "--recording"], lab) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    ("raised", "status", "said", "traced"),
    [
        (KeyboardInterrupt(), 130, "stopped", False),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: [Errno 28] No space left on device; free space for ", False),
        (sqlite3.OperationalError("database is locked"), 2, "error: database is locked; ", False),
        (Unusable("give it a file"), 2, "error: give it a file", False),
        (Tampered("bench/rule.py changed"), 2, "error: bench/rule.py changed", False),
        (RuntimeError("a fault of ours"), 2, "error: a fault of ours", True),
        (ModuleNotFoundError("no torch", name="torch"), 2, "error: no torch; `make install` puts", False),
        (ModuleNotFoundError("no agent.x", name="agent.x"), 2, "error: no agent.x\n", True),
    ],
    ids=["ctrl-c", "full-disk", "locked-ledger", "unusable", "tampered", "fault", "other-python", "lost-module"],
)  # fmt: skip
def test_whatever_ends_a_command_has_a_status_that_is_not_refused(
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    status: int,
    said: str,
    traced: bool,
) -> None:
    def raises(*_: object) -> NoReturn:
        raise raised

    monkeypatch.setitem(_COMMANDS, "status", raises)
    assert main(["status"], lab) == status
    err = capsys.readouterr().err
    assert said in err
    assert ("Traceback" in err) == traced


def test_a_terminal_of_a_python_without_rich_is_told_where_it_is(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacks(_: object) -> NoReturn:
        raise ModuleNotFoundError("No module named 'rich'", name="rich")

    monkeypatch.setattr("agent.__main__.open_screen", lacks)
    assert main(["status"], lab) == 2
    assert "source .venv/bin/activate" in capsys.readouterr().err


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGHUP])
def test_a_polite_kill_ends_with_the_summary_and_leaves_no_tree(
    lab: Lab, kill: signal.Signals
) -> None:
    script = f"""
import sys; sys.path.insert(0, {str(ROOT / "tests")!r})
from pathlib import Path
from lab_tree import Rules, Transcript
from agent import campaign
from agent.lab import Lab
from agent.records import Settings
class Told(Transcript):
    def stage(self, text, seconds=None): print(text, flush=True)
class Slow(Rules):
    def compare(self, *trees):
        print("comparing", flush=True); import time; time.sleep(60)
print(campaign.run(Lab(Path({str(lab.root)!r})), Settings(data="corpus-1"), Told(), Slow()))
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        # where the tests run under nohup, a hangup would be ignored
        preexec_fn=lambda: signal.signal(kill, signal.SIG_DFL),
    ) as night:
        assert night.stdout is not None
        for line in night.stdout:
            if line == "comparing\n":
                break
        night.send_signal(kill)
        rest = night.stdout.read()
    assert night.returncode == 0
    assert "ended: stopped" in rest
    assert lab.ledger().history()[-1].outcome.status == LOST
    assert not list((lab.folder / "runs").glob("*/trees"))


def test_text_is_prepared_once_and_is_the_default_from_then_on(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "texts.jsonl"
    words, rng = "sea sand wind salt boat oar net rope gull reef".split(), random.Random(0)
    lines = [json.dumps({"text": f"{i} {' '.join(rng.choices(words, k=80))}."}) for i in range(60)]
    text.write_text("\n".join(lines))
    screen = Transcript()
    made = lab.prepare(str(text), 300, screen)
    assert made.vocab_size == 300
    assert lab.dataset(None, screen).directory == made.directory
    monkeypatch.chdir(made.directory.parent)
    for source in (str(made.directory), made.directory.name):
        assert lab.dataset(source, screen).directory == made.directory
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(lines[::-1] + [json.dumps({"text": "one more of them"})]))
    assert lab.prepare(str(other), 300, screen).directory != made.directory
    assert lab.dataset(None, screen).directory != made.directory


def test_prepared_data_that_are_gone_are_missed_and_no_text_to_prepare(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lab, "prepare", lambda *_: pytest.fail("something was prepared"))
    with pytest.raises(DataError, match="gone-0123/manifest.json is missing; run `python -m agent"):
        lab.dataset(str(lab.data / "gone-0123"), Transcript())


def test_a_gpu_is_asked_for_in_vain_where_torch_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device("auto") == device("cpu") == "cpu"
    with pytest.raises(Unusable, match="--device cuda: torch sees no GPU here"):
        device("cuda")


def test_a_reader_that_has_had_enough_is_no_error(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `python -m agent export --tsv | head`."""
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["status"], lab) == 0
        monkeypatch.undo()


def test_words_that_a_terminal_cannot_spell_end_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    terminal = io.TextIOWrapper(written, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setitem(_COMMANDS, "status", lambda *_: ("1 \u2192 4", 0))
    assert main(["status"], lab) == 0
    terminal.flush()
    assert written.getvalue() == b"1 \\u2192 4\n"


def test_an_agenda_that_is_no_utf_8_is_named(lab: Lab) -> None:
    (lab.root / "program.md").write_bytes(b"sch\xf6n")
    with pytest.raises(Unusable, match="program.md is no UTF-8 text"):
        lab.agenda()


def test_every_option_of_a_night_reaches_its_settings(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Settings] = []

    def run(lab: Lab, settings: Settings, screen: object) -> str:
        asked.append(settings)
        return ""

    monkeypatch.setattr(campaign, "run", run)
    monkeypatch.setattr("agent.doctor.insist", lambda mode, screen: None)
    words = (
        "--target all --op scale --proposer command --model a --model b --price a=1/2 --price b=0/0 "
        "--base-url http://localhost:1/v1 --recording night.jsonl --experiments 3 --hours 8 --gpu-hours 2 "
        "--usd 20 --tokens 1000 --seconds 60 --data mine --start mine --device cuda --seed 7 --isolation strict"
    )
    assert main([*words.split(), "--command", "claude -p {prompt}"], lab) == 0
    wanted = Settings(
        "all", "scale", "command", ("a", "b"), "http://localhost:1/v1", ("a=1/2", "b=0/0"), "claude -p {prompt}", os.path.abspath("night.jsonl"),
        3, 8.0, 2.0, 20.0, 1000, 60.0, "mine", os.path.abspath("mine"), "cuda", 7, "strict",
    )  # fmt: skip
    assert asked == [wanted]
    # a setting that comes later is asked for here as well
    usual = Settings()
    left = {f.name for f in fields(Settings) if getattr(wanted, f.name) == getattr(usual, f.name)}
    assert left == {"judge"}


def test_an_estimate_of_placebos_begins_no_run(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--dry-run", "--device", "cpu", "aa", "--experiments", "3"], lab) == 0
    assert "all, proposer placebo" in capsys.readouterr().out
    assert lab.ledger().runs() == []


def test_a_folder_to_start_from_is_known_wherever_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = parser().parse_args(["--target", "kernels", "--start", "mine", "--recording", "night"])
    assert asked.start == os.path.abspath("mine")
    assert asked.recording == os.path.abspath("night")


def test_show_is_of_the_latest_run_unless_another_is_named(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(proposer="sweep", seconds=5.0, data="corpus-1", experiments=1)
    for _ in range(2):
        campaign.run(lab, settings, Transcript(), Rules())
    first, second = (run.id for run in sorted(lab.ledger().runs(), key=lambda run: run.started))
    for words, run in (((), second), (("--run", first), first)):
        assert main(["show", "1", *words], lab) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"run {run}, experiment 1 ")
        assert lab.ledger().experiments(run)[0].patch in shown
    assert main(["show", "99"], lab) == 2
    assert f"run {second} has no experiment 99" in capsys.readouterr().err
