"""A person's own program runs without a terminal until it ends, and nothing of it stays: no process, no secret, no log without a bound."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from coding_agent import FASTER, Bench, proposed, put
from lab_tree import CPP

from agent.coder import headless
from agent.proposers import NoProposal, Stopped

SECRET = "sk-0123456789abcdef"


def test_arguments_meet_no_shell(bench: Bench) -> None:
    script = put(*FASTER) + "assert sys.argv[1:] == ['; touch x', '$HOME', '*']\n"
    proposed(bench.agent(script, "; touch x", "$HOME", "*"), bench.context())


# A child in the agent's group and one in a session of its own; both say who they are.
FAMILY = """
code = "import time; time.sleep(60)"
for alone in (False, True):
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=alone)
    with open(sys.argv[1], "a") as file: file.write(f"{child.pid}\\n")
"""


def alive(pids: Path) -> list[int]:
    """Those of the processes that still run; a zombie does not."""
    found = []
    for line in pids.read_text().split():
        stat = Path(f"/proc/{line}/stat")
        if stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z":
            found.append(int(line))
    return found


def gone(pids: Path) -> bool:
    deadline = time.monotonic() + 5
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pids)


def both(pids: Path) -> bool:
    """Whether both children have said who they are."""
    return pids.exists() and len(pids.read_text().split()) == 2


def test_after_the_time_limit_all_that_it_started_is_ended(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which an hour passes once both children are there."""
    pids = tmp_path / "pids"
    hours = SimpleNamespace(
        monotonic=lambda: time.monotonic() + 3600 * both(pids), sleep=time.sleep
    )
    monkeypatch.setattr(headless, "time", hours)
    agent = bench.agent(put(*FASTER) + FAMILY + "time.sleep(60)", str(pids), seconds=60)
    with pytest.raises(NoProposal, match="it took longer than"):
        agent.propose(bench.context())
    assert gone(pids)


def test_what_it_leaves_running_is_ended_with_it_in_whatever_session(
    bench: Bench, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    proposed(bench.agent(put(*FASTER) + FAMILY, str(pids)), bench.context())
    assert len(pids.read_text().split()) == 2
    assert gone(pids)


def test_stop_ends_it_at_once(bench: Bench, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    agent = bench.agent(put(*FASTER) + FAMILY + "time.sleep(60)", str(pids))

    def press() -> None:
        deadline = time.monotonic() + 20
        while not both(pids) and time.monotonic() < deadline:
            time.sleep(0.02)
        bench.stop.set()

    threading.Thread(target=press, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        agent.propose(bench.context())
    # of the 60 that it sleeps
    assert time.monotonic() - began < 45
    assert gone(pids)


LOOP = """
import sys, threading
from pathlib import Path
from agent.coder import headless
folder = Path(sys.argv[1])
(folder / "prompt").write_text("")
headless.run(
    [sys.executable, "-c", "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"],
    folder=folder, prompt=folder / "prompt", log=folder / "log", seconds=60, stop=threading.Event(),
)
"""


def test_the_agent_dies_with_a_loop_that_is_killed(tmp_path: Path) -> None:
    loop = subprocess.Popen([sys.executable, "-c", LOOP, str(tmp_path)])
    pid, deadline = tmp_path / "pid", time.monotonic() + 20
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert alive(pid)
    os.kill(loop.pid, signal.SIGKILL)
    loop.wait()
    assert gone(pid)


def test_secrets_are_in_no_log_no_ledger_and_no_file(bench: Bench) -> None:
    environment = dict(os.environ) | {"SOME_API_KEY": SECRET, "my_token": "t0ken-" + SECRET}
    script = (
        put("HYPOTHESIS.md", f"use {SECRET}") + f"key = {SECRET!r}\n"
        "assert os.environ['SOME_API_KEY'] == key\n"
        "print('whole', key, 't0ken-' + key)\n"
        "for piece in (key[:7], key[7:]):\n sys.stdout.write(piece); sys.stdout.flush(); time.sleep(0.3)\n"
    )  # fmt: skip
    proposal = proposed(
        bench.agent(put(*FASTER) + script, environment=environment), bench.context()
    )
    assert "whole [SOME_API_KEY] [my_token]" in bench.logs()
    assert bench.logs().count("[SOME_API_KEY]") == 2
    assert "0123456789" not in bench.logs()
    assert proposal.hypothesis == "use [SOME_API_KEY]"
    leak = put("csrc/scale.cpp", f"{CPP}// {SECRET}\n")
    with pytest.raises(NoProposal, match="wrote the value of SOME_API_KEY into a file") as raised:
        bench.agent(leak + "print(os.environ['SOME_API_KEY'])", environment=environment).propose(bench.context())  # fmt: skip
    assert "0123456789" not in str(raised.value)


def test_a_log_has_a_bound_and_keeps_the_end(bench: Bench) -> None:
    script = put(*FASTER) + "for i in range(200_000): print('line', i)\nprint('\\nFour rows')"
    proposal = proposed(bench.agent(script), bench.context())
    assert proposal.hypothesis == "Four rows"
    assert len(bench.logs()) < 1.5 * (1 << 20)
    assert bench.logs().startswith("line 0\n")
    assert bench.logs().endswith("line 199999\n\nFour rows\n")


def test_what_an_agent_builds_waits_for_the_trial_that_is_timed(bench: Bench) -> None:
    script = put(*FASTER) + "import os; open('HYPOTHESIS.md', 'w').write(str(os.nice(0)))\n"
    assert proposed(bench.agent(script), bench.context()).hypothesis == str(headless.BEHIND)


def test_what_a_killed_loop_s_agent_had_started_is_ended_when_a_run_begins(tmp_path: Path) -> None:
    own = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    child = "import subprocess, time; c = subprocess.Popen(['sleep', '60']); open('pid', 'w').write(str(c.pid)); time.sleep(60)"
    loop = subprocess.Popen([sys.executable, "-c", LOOP.replace(own, child), str(tmp_path)])
    pid, deadline = tmp_path / "pid", time.monotonic() + 20
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(loop.pid, signal.SIGKILL)
    loop.wait()
    assert alive(pid)
    assert headless.end_leftovers(tmp_path.parent) >= 1
    assert gone(pid)


def test_an_agent_s_output_is_read_to_its_end_though_the_disk_is_full() -> None:
    reads, writes = os.pipe()
    os.write(writes, b"x" * 1000)
    os.close(writes)
    with open(reads, "rb", buffering=0) as pipe:
        headless.Log(Path("/dev/full"), headless.Secrets({})).follow(pipe)
