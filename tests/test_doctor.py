"""`doctor` and `--isolation`: what a machine gives, told as it is; on this machine, and in a container that may make no namespaces."""

from __future__ import annotations

import json
import platform
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from lab_tree import Rules, Transcript

from agent import campaign, doctor
from agent.__main__ import main
from agent.lab import Lab, Unusable
from agent.records import Settings
from bench import first_kernels, judge
from bench.sandbox import cgroup, isolation
from bench.sandbox.isolation import Layer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def without_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = [
        Layer("landlock", False, "an old kernel") if layer.name == "landlock" else layer
        for layer in isolation.layers()
    ]
    monkeypatch.setattr(isolation, "layers", lambda: tuple(lost))


@pytest.fixture
def with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tuple(Layer(layer.name, True, layer.how) for layer in isolation.layers())
    monkeypatch.setattr(isolation, "layers", lambda: whole)


@pytest.mark.usefixtures("without_landlock")
def test_strict_refuses_and_names_what_is_missing_and_why() -> None:
    heard = Transcript()
    with pytest.raises(Unusable, match="does not give landlock\n  landlock: an old kernel"):
        doctor.insist("strict", heard)
    assert heard.lines == []


@pytest.mark.usefixtures("without_landlock")
def test_best_effort_warns_in_one_line() -> None:
    heard = Transcript()
    doctor.insist("best-effort", heard)
    (line,) = heard.lines
    assert line.startswith("warning: ")
    assert "landlock" in line


@pytest.mark.usefixtures("with_everything")
@pytest.mark.parametrize("mode", ["strict", "best-effort"])
def test_nothing_is_said_where_every_layer_holds(mode: str) -> None:
    heard = Transcript()
    doctor.insist(mode, heard)
    assert heard.lines == []


@pytest.mark.usefixtures("without_landlock")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--isolation", "strict", "--target", "kernels"],
        ["gate", "--isolation", "strict"],
        ["--isolation", "strict", "gate"],
        ["trial", "--isolation", "strict"],
    ],
)
def test_a_strict_command_ends_with_status_2_before_it_does_anything(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments, Lab(tmp_path)) == 2
    assert "--isolation strict: this machine does not give landlock" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_landlock")
@pytest.mark.parametrize("arguments", [["--resume"], ["prune"], ["report", "--rerun"]])
def test_a_strict_run_goes_on_strictly(
    arguments: list[str], lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign.run(lab, Settings(experiments=1, isolation="strict"), Transcript(), Rules())
    assert main(arguments, lab) == 2
    assert "--isolation strict: this machine does not give landlock" in capsys.readouterr().err


@pytest.mark.usefixtures("without_landlock")
def test_the_table_and_the_status_tell_of_a_missing_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor"], Lab(tmp_path)) == 1
    shown = capsys.readouterr().out
    assert "  landlock      NO   an old kernel\n" in shown
    assert shown.splitlines()[-1] == "lacking: landlock"
    assert main(["doctor", "--json"], Lab(tmp_path)) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["healthy"]
    assert {row["name"] for row in told["rows"] if row["needed"] and not row["ok"]} == {"landlock"}


@pytest.mark.usefixtures("with_everything")
def test_what_is_not_needed_makes_no_one_ill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--json"], Lab(tmp_path)) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert not rows["data"]["ok"]
    assert not rows["ledger"]["ok"]
    assert list(tmp_path.iterdir()) == []
    expected = {"Python", "torch", "triton", "C++ compiler", "git", "CPU", "GPU", "disk"}
    assert expected <= set(rows)


@pytest.mark.usefixtures("with_everything")
def test_data_that_are_gone_are_not_told_to_be_there(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.data.mkdir(parents=True)
    (lab.data / "default").write_text("corpus-1\n")
    (row,) = (row for row in doctor.examine(lab) if row.name == "data")
    assert not row.ok
    assert row.text == f"{lab.data / 'corpus-1'} is gone: `python -m agent prepare`"


def test_a_missing_compiler_is_told_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    row = next(row for row in doctor.examine(Lab(tmp_path)) if row.name == "C++ compiler")
    assert (row.ok, row.needed) == (False, True)
    assert "no-such-compiler" in row.text
    assert "install g++ or clang++" in row.text


def test_a_compiler_that_no_runner_sees_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho g++ 13.2\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    row = next(row for row in doctor.examine(Lab(tmp_path)) if row.name == "C++ compiler")
    assert (row.ok, row.needed) == (False, True)
    assert f"no runner sees {compiler}" in row.text


def test_another_architecture_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    row = next(row for row in doctor.examine(Lab(tmp_path)) if row.name == "platform")
    assert (row.ok, row.needed) == (False, True)
    assert row.text == "Linux on aarch64 (Linux on x86_64 is needed)"


def test_what_a_container_may_use_of_the_machine_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "allowance", lambda: (0.5, 1 << 30))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    rows = {row.name: row for row in doctor.examine(Lab(tmp_path))}
    assert (rows["CPU quota"].ok, rows["CPU quota"].needed) == (False, False)
    assert "0.5 cores: set OMP_NUM_THREADS=1" in rows["CPU quota"].text
    assert rows["memory"].text.startswith("1.0 of ")


def test_a_checkout_on_another_machine_s_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor._file_system(Path("/proc")) == "proc"
    monkeypatch.setattr(doctor, "_file_system", lambda folder: "nfs4")
    row = next(row for row in doctor.examine(Lab(tmp_path)) if row.name == "file system")
    assert (row.ok, row.needed) == (False, False)
    assert "local disk" in row.text


def test_a_container_without_privileges_is_seen_and_a_candidate_still_held(tmp_path: Path) -> None:
    """Emulated by a bubblewrap that shows everything and lets nobody make another namespace."""
    wrapper = isolation.bubblewrap()
    if wrapper is None or isolation.missing():
        pytest.skip(
            "it takes a bubblewrap that works, and all other layers, to emulate a container"
        )
    container = [wrapper, "--unshare-user", "--disable-userns", "--cap-drop", "ALL", "--dev-bind", "/", "/"]  # fmt: skip
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    (tmp_path / "kernels" / "rms_norm.py").write_text(
        "import socket\nsocket.socket()\n\ndef rms_norm(x, weight=None, eps=1e-6):\n    return x\n"
    )
    script = f"""
import json, pathlib
from bench.judge import Judge, Refused
from bench.sandbox import isolation
folder = pathlib.Path({str(tmp_path)!r})
with Judge(folder) as judge:
    try:
        judge.ask("load", op="rms_norm", tree=str(folder))
        became = "loaded"
    except Refused as refused:
        became = refused.kind
told = dict(became=became, isolation=judge.isolation, missing=[(l.name, l.how) for l in isolation.missing()])
print(json.dumps(told))
"""
    done = subprocess.run(
        [*container, "--", sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    ((name, how),) = told["missing"]
    assert name == "namespaces"
    assert "unshare: " in how
    assert "To allow them" in how or "In a container" in how
    assert told["isolation"].startswith("capabilities, landlock, seccomp")
    assert told["isolation"].endswith("no namespaces")
    assert told["became"] == "PermissionError"


@pytest.mark.usefixtures("built")
def test_what_a_runner_runs_is_tried_and_what_it_cannot_is_said() -> None:
    assert first_kernels.why_not("cpp", "cpu") == ""
    assert "expected one of torch, cpp, triton" in first_kernels.why_not("none", "cpu")


def test_a_gpu_on_which_no_kernel_runs_is_not_all_that_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_gpu", lambda part: doctor.Row(part, "GPU", True, "one", False))
    monkeypatch.setattr(judge, "lending", lambda device: "device memory")
    said = {"triton": "", "torch.compile": "RuntimeError: cuInit"}
    monkeypatch.setattr(first_kernels, "why_not", lambda kind, device: said[kind])
    rows = doctor.examine(Lab(tmp_path))
    lacking = [(row.name, row.text) for row in rows if row.needed and not row.ok]
    assert ("torch.compile runs", "RuntimeError: cuInit") in lacking
    assert not any(name == "triton runs" for name, _ in lacking)


def test_a_ledger_that_cannot_be_opened_is_a_row_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".lab").mkdir()
    (tmp_path / ".lab" / "ledger.sqlite").touch()

    def closed(lab: Lab) -> NoReturn:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(Lab, "ledger", closed)
    row = next(row for row in doctor.examine(Lab(tmp_path)) if row.name == "ledger")
    assert (row.ok, row.needed) == (False, True)
    assert "unable to open" in row.text
