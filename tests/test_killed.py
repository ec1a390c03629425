"""kill -9 at twenty random moments of a night with a model behind a real socket: nothing is lost but what was in flight, nothing is run
twice, no money is forgotten, nothing is left over.

Each life of the night is forked from one process that has imported everything, so that twenty of them take seconds. A life tells of every
line that it shows; it is killed after a drawn number of them, and a drawn few milliseconds more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lab_tree import git, make
from model_servers import KEY, ChatServer, Say

from agent.lab import Lab
from agent.records import LOST, OPEN

KILLS = 20
EXPERIMENTS = 40
LIVES = """
import json, os, random, signal, sys, threading, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from lab_tree import Rules, Transcript
from agent import campaign
from agent.lab import Lab
from agent.records import Settings
import agent.proposers.openai, agent.research.researcher, bench.verdict, httpx2, numpy
httpx2.Client().close()  # the first one imports 60 modules

class Slow(Rules):
    def build(self, tree, changed):
        time.sleep(0.01)
        return super().build(tree, changed)
    def correctness(self, op, tree):
        time.sleep(0.01)
        return super().correctness(op, tree)
    def compare(self, op, incumbent, candidate):
        time.sleep(0.01)
        return super().compare(op, incumbent, candidate)
    def trial(self, tree, seed, progress, split="val"):
        time.sleep(0.01)
        return super().trial(tree, seed, progress, split)

class Telling(Transcript):
    # Kills its own process `pause` seconds after so many lines: another process might get no core in time.
    def __init__(self, pipe, lines, pause):
        super().__init__()
        self.pipe, self.left, self.pause = pipe, lines, pause
    def stage(self, text, seconds=None):
        os.write(self.pipe, b".")
        self.left -= 1
        if self.left == 0:
            threading.Timer(self.pause, os.kill, (os.getpid(), signal.SIGKILL)).start()
    say = stage

def live(root, url, experiments, telling):
    lab = Lab(root)
    if lab.ledger().runs():
        campaign.resume(lab, None, {}, telling, Slow())
    else:
        settings = Settings(
            target="kernels", proposer="openai", models=("m",), base_url=url, prices=("m=1/2",), usd=20.0,
            experiments=experiments, seconds=5.0, data="corpus-1",
        )
        campaign.run(lab, settings, telling, Slow())

root, url, kills, experiments = Path(sys.argv[1]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
rng = random.Random(20261123)
told = []
for number in range(kills + 1):
    lines = rng.randrange(1, 30) if number < kills else 10**9
    pause = rng.random() * 0.03
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        live(root, url, experiments, Telling(writes, lines, pause))
        os._exit(0)
    os.close(writes)
    seen = 0
    while some := os.read(reads, 4096):
        seen += len(some)
    status = os.waitpid(child, 0)[1]
    os.close(reads)
    told.append((seen, os.WIFSIGNALED(status), os.WEXITSTATUS(status)))
print(json.dumps(told))
"""


class Ideas:
    """A model that reads, edits one constant and submits; every session has an idea that no other had."""

    def __init__(self) -> None:
        self.sessions = 0

    def __call__(self, body: dict[str, Any]) -> Say:
        said = sum(message["role"] == "assistant" for message in body["messages"])
        path = "csrc/scale.cpp"
        if said == 0:
            return Say("reading", calls=[("read", {"path": path})])
        if said == 1:
            self.sessions += 1
            text = f"constexpr int kIdea = {self.sessions};\nconstexpr int kRows = {2 ** (self.sessions % 4)};\n"
            return Say(
                calls=[("write", {"path": path, "text": text + "constexpr int kUnroll = 1;\n"})]
            )
        told = {"hypothesis": f"idea {self.sessions}", "expected": "faster", "op": "scale"}
        return Say(calls=[("submit", told)])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_lose_only_what_was_in_flight_and_forget_no_money(tmp_path: Path) -> None:
    root = make(tmp_path / "checkout")
    with ChatServer(Ideas(), models=["m"]) as server:
        command = [sys.executable, "-c", LIVES, str(root), str(Path(__file__).parent), server.url]
        night = subprocess.run(
            [*command, str(KILLS), str(EXPERIMENTS)],
            capture_output=True,
            text=True,
            timeout=840,
            env=os.environ | {"OPENAI_API_KEY": KEY},
        )
        assert night.returncode == 0, night.stderr[-3000:]
        # Each life asks for a word first, to see that key and model work: 16 tokens that no run's ledger holds.
        asked = [body for body in server.bodies if body["max_tokens"] > 16]
    told = json.loads(night.stdout)
    killed = sum(by_signal for _, by_signal, _ in told)
    assert killed >= KILLS, told
    assert told[-1][1:] == [False, 0]
    assert len({lines for lines, by_signal, _ in told if by_signal}) >= 8  # in many phases

    lab = Lab(root)
    ledger = lab.ledger()
    (run,) = ledger.runs()
    experiments = ledger.history()
    ended = [past for past in experiments if past.outcome.status not in (LOST, *OPEN)]
    assert len(ended) == EXPERIMENTS
    assert [past.number for past in experiments] == list(range(1, len(experiments) + 1))
    assert not [past for past in experiments if past.outcome.status in OPEN]
    # One was tried and one was at the gates, at the most.
    assert len(experiments) - len(ended) <= 2 * killed
    ideas = Counter(past.hypothesis for past in ended)
    assert max(ideas.values()) == 1, "an idea was judged twice"
    kept = [past for past in ended if past.outcome.status == "keep"]
    assert kept
    assert run.incumbent == kept[-1].commit
    assert git(root, "rev-parse", f"lab/{run.id}") == run.incumbent

    totals = ledger.accounts.calls(run.id)
    assert len(asked) <= totals.count <= len(asked) + killed  # written down before it is sent
    told_tokens = 4  # characters a token, as the server counts
    billed = sum(len(json.dumps(body["messages"])) // told_tokens for body in asked)
    assert totals.tokens_in + totals.cache_read + totals.cache_write >= billed
    assert totals.usd <= 20.0

    assert not list((lab.folder / "runs").glob("*/trees"))
    assert not list((lab.folder / "runs").glob("*/draft"))
    assert git(root, "status", "--porcelain") == ""
    held = [file for file in lab.folder.rglob("*") if file.is_file()]
    assert lab.folder / "ledger.sqlite" in held
    assert [file for file in held if KEY.encode() in file.read_bytes()] == []
