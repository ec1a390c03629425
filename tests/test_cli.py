"""The command line: fast to answer, exact in its exit status, JSON alone on standard output, figures in lines that others read."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
import select
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn, cast

import pytest
from lab_tree import CPP, PY, Rules, Transcript, git, write

from agent import campaign, gate_command, step_table, trial_command
from agent.__main__ import _COMMANDS, main
from agent.integrity import Tampered
from agent.judging import Bench, Unfit
from agent.lab import Lab, Unusable, device
from agent.options import parser
from agent.records import LOST, Settings
from agent.screen import Live, Plain, describe, duration
from bench import hardware
from bench.data import Dataset
from bench.trial import TrialResult

ROOT = Path(__file__).resolve().parent.parent


def agent(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent", *arguments], cwd=ROOT, capture_output=True, text=True
    )


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


def test_a_trial_ends_with_the_lines_that_autoresearch_prints(lab: Lab) -> None:
    screen = Transcript()
    result = trial_command.run(lab, Rules(), 5.0, 1, screen)
    lines = dict(line.split(":", 1) for line in trial_command.block(result).splitlines()[1:])
    assert list(lines) == [
        "val_bpb", "training_seconds", "total_seconds", "peak_memory_mb", "mfu_percent",
        "total_tokens_M", "num_steps", "num_params_M", "depth", "tokens_per_second",
    ]  # fmt: skip
    assert lines["val_bpb"].strip() == "2.041000"
    assert screen.events[0]["loss"] == 3.0


def test_a_profile_of_a_step_names_ops_first_and_adds_up_to_the_step(lab: Lab) -> None:
    found = trial_command.profile(lab, Rules(), Transcript())
    lines = step_table.table(found).splitlines()
    assert "2.0 ms under the profiler, 1.9 without (cpu, 1 thread)" in lines[0]
    assert "waited for 0.01 ms, 0.50% of the step" in lines[2]
    rows = [line.split() for line in lines[-4:]]
    assert [row[0] for row in rows] == ["scale", "torch,", "mm", "all"]
    assert rows[0][1:5] == ["50.0%", "1.00", "0.75", "0.25"]
    shares = [re.findall(r"[\d.]+%", line)[-1:] for line in lines[-4:]]
    assert shares == [["50.0%"], [], ["37.5%"], ["12.5%"]]
    blind = step_table.table({**found, "data_ms": None, "python_ms": None})
    assert "draws no batch with next()" in blind
    assert "Python:" not in blind


def test_a_model_that_does_not_train_has_no_profile_and_the_error_says_why(lab: Lab) -> None:
    class Broken(Rules):
        def profile(self, op: str | None, tree: Path, beside: Path | None = None) -> NoReturn:
            raise Unfit("ValueError: no clock")

    with pytest.raises(Unusable, match="does not train.*no clock"):
        trial_command.profile(lab, Broken(), Transcript())


@pytest.mark.parametrize("impl", [None, "torch"])
def test_trial_and_profile_run_every_op_by_the_implementation_that_is_asked_for(
    impl: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    data = SimpleNamespace(vocab_size=8192, bos=0)
    for function in ("bench.trial.run_trial", "bench.step_profile.of_step"):
        monkeypatch.setattr(function, lambda *_, impl, **__: asked.append(impl))
    judge = Bench("cpu", cast(Dataset, data), impl=impl)
    judge.trial(ROOT, 0, None)
    judge.profile(None, ROOT)
    assert asked == [None if impl is None else dict.fromkeys(judge.ops(), impl)] * 2


def test_a_failed_trial_says_how_and_claims_no_figure() -> None:
    trace = "Traceback (most recent call last):\n  File x, line 3\nnan: loss was not finite\n"
    failed = TrialResult(False, "nan", trace, losses=[[64.0, float("nan")]])
    lines = trial_command.block(failed).splitlines()
    assert "failure:           nan: loss was not finite" in lines
    assert lines[lines.index("log:") + 1 :][:2] == ["  Traceback (most recent call last):", "    File x, line 3"]  # fmt: skip
    assert not any(line.startswith(("val_bpb", "depth", "peak_memory")) for line in lines)
    said = json.loads(trial_command.as_json(failed), parse_constant=pytest.fail)
    assert (said["failure"], said["val_bpb"], said["losses"]) == ("nan", None, [[64.0, None]])


def test_a_trial_sees_the_working_tree_and_only_its_sources(lab: Lab, tmp_path: Path) -> None:
    write(
        lab.root,
        {
            "csrc/scale.cpp": "mine",
            "csrc/build/x.so": "no",
            "kernels/notes.txt": "no",
            "model/new.py": "new",
        },
    )
    tree = lab.copy_tree(tmp_path / "tree")
    assert (tree / "csrc/scale.cpp").read_text() == "mine"
    assert (tree / "model/new.py").exists()
    assert not (tree / "csrc/build").exists()
    assert not (tree / "kernels/notes.txt").exists()
    assert not (tree / "bench").exists()


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


def test_a_log_gets_plain_lines_with_the_time() -> None:
    stream = io.StringIO()
    screen = Plain(stream)
    screen.stage("trial", 300)
    screen.progress({"phase": "training", "step": 10, "loss": 3.25, "tokens": 5000, "elapsed": 2.0})
    screen.say("kept")
    stage, said = stream.getvalue().splitlines()
    assert stage[8:] == " trial ... (about 5:00)"
    assert said[8:] == " kept"
    assert "\x1b" not in stream.getvalue()


def test_a_long_stage_of_a_log_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.screen.PLAIN_EVERY_S", 0.0)
    stream = io.StringIO()
    screen = Plain(stream)
    screen.stage("trial", 300)
    screen.progress(
        {"phase": "training", "step": 1200, "loss": 3.25, "tokens": 50_000, "elapsed": 10.0}
    )
    assert "trial: training  step 1,200  loss 3.250  5,000 tokens/s  4:50 left" in stream.getvalue()
    screen.progress({"phase": "scoring", "fraction": 0.5})
    assert stream.getvalue().splitlines()[-1].endswith("s left")
    screen.progress({"phase": "scoring", "fraction": 1.0})
    assert stream.getvalue().splitlines()[-1].endswith("trial: scoring")


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


def test_a_gpu_is_asked_for_in_vain_where_torch_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device("auto") == device("cpu") == "cpu"
    with pytest.raises(Unusable, match="--device cuda: torch sees no GPU here"):
        device("cuda")


def test_a_terminal_gets_one_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal:
        screen = Live(terminal)
        screen.stage("  microbench", 20)
        screen.progress({"loss": 3.0, "elapsed": 2.0})
        screen.say("experiment 1: [rows] 1 -> 4")
        screen.close()
        read = b""
        words = (b"experiment 1: [rows] 1 -> 4", b"microbench", b"18 s left  loss 3.000")
        # a read gives what has arrived by then
        while not all(w in read for w in words) and select.select([master], [], [], 10)[0]:
            read += os.read(master, 1 << 16)
    os.close(master)
    shown = read.decode()
    assert "experiment 1: [rows] 1 -> 4" in shown
    assert "microbench" in shown
    assert "18 s left  loss 3.000" in shown


@pytest.mark.parametrize(("screen", "code"), [(Plain, errno.EPIPE), (Live, errno.EIO)])
def test_a_night_outlives_whoever_listened(screen: type[Plain] | type[Live], code: int) -> None:
    """A pipe that nobody reads any more; a terminal that was closed."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(code, os.strerror(code))

    shown = screen(Gone())
    shown.stage("microbench", 20)
    shown.say("kept")
    shown.close()


def test_words_of_a_candidate_move_no_terminal() -> None:
    out = io.StringIO()
    Plain(out).say("slower\x1b[2J\x1b]0;title\x07\ud800 by half")
    assert out.getvalue().endswith("slower?[2J?]0;title?? by half\n")


@pytest.mark.parametrize("odd", ["1e9", [1], {}, True, float("nan"), 10**400, -(10**400)])
@pytest.mark.parametrize("screen", [Plain, Live])
def test_figures_of_a_candidate_that_are_none_end_no_trial(
    screen: type[Plain] | type[Live], odd: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.screen.PLAIN_EVERY_S", 0.0)
    shown = screen(io.StringIO())
    shown.stage("trial", 300)
    for name in ("fraction", "elapsed", "phase", "step", "loss", "tokens"):
        shown.progress({"elapsed": 2.0, "tokens": 10, name: odd})
    shown.close()
    assert describe({"step": odd, "loss": odd, "tokens": odd, "elapsed": odd}) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.26, "0.3 s"), (59.4, "59 s"), (187, "3:07"), (7509, "2:05:09")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
    assert describe({}) == ""


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


def test_a_slice_is_no_emoji() -> None:
    out = io.StringIO()
    shown = Live(out)
    shown.say("x[:m:2]")
    shown.close()
    assert "x[:m:2]" in out.getvalue()


def test_an_agenda_that_is_no_utf_8_is_named(lab: Lab) -> None:
    (lab.root / "program.md").write_bytes(b"sch\xf6n")
    with pytest.raises(Unusable, match="program.md is no UTF-8 text"):
        lab.agenda()


def test_what_works_ahead_takes_no_stage_from_the_trial_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.screen.PLAIN_EVERY_S", 0.0)
    stream = io.StringIO()
    screen = Plain(stream)

    def ahead(stage: str) -> None:
        thread = threading.Thread(target=screen.stage, args=(stage,))
        thread.start()
        thread.join()

    ahead("  static")
    screen.stage("candidate, seed 0: trial", 300)
    ahead("  build")
    screen.progress({"phase": "training", "step": 3, "elapsed": 10.0})
    screen.stage("")
    ahead("  correctness")
    assert "candidate, seed 0: trial: training  step 3  4:50 left" in stream.getvalue()
    assert [word in stream.getvalue() for word in ("static", "build", "correctness")] == [True, False, True]  # fmt: skip


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


def test_a_stage_of_unknown_length_has_no_bar_of_the_one_before() -> None:
    shown = Live(io.StringIO())
    shown.stage("trial", 300)
    shown.progress({"fraction": 0.5})
    shown.stage("building the kernels")
    (task,) = shown._bar.tasks
    shown.close()
    assert (task.total, task.completed) == (None, 0)


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
