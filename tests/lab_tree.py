"""A small checkout for the tests of the loop: git, one kernel with a tunable constant, a model file, and a judge that plays by rules.

`Rules` is a judge for the loop: an op's time and a model's BPB follow from the constants in the tree, so what the loop ought to keep is
known beforehand. It is given to the loop in the place of `agent.judging.Bench`.
"""

from __future__ import annotations

import inspect
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.judging import Progress
from agent.records import DROP, Outcome, Past
from bench.drift import drifted
from bench.finding import Finding
from bench.interval import Spread
from bench.noise import noise_of, unselected
from bench.speed import Comparison
from bench.trial_result import TrialResult
from bench.verdict import Verdict, decide

CPP = """// scale
constexpr int kRows = 1;  // tune: 1 2 4 8
constexpr int kUnroll = 1;  // tune: 1 2
"""
PY = '''"""Scale."""
from kernels import jit


def scale(x, factor=2.0, *, impl=None):
    return x * factor


IMPLEMENTATIONS = {"torch": scale}
'''
MODEL = "LR = 0.04  # tune: 0.02 0.04 0.08\n"
TRAIN = """class Trainer:
    def describe(self): ...
    def warm_up(self): ...
    def train(self): ...
    def logits(self): ...
"""
FILES = {
    "kernels/__init__.py": "",
    "kernels/jit.py": "",
    "kernels/scale.py": PY,
    "csrc/scale.cpp": CPP,
    "model/optim.py": MODEL,
    "model/train.py": TRAIN,
    "bench/rule.py": "LIMIT = 1\n",
    "README.md": "a lab\n",
    ".gitignore": ".lab/\n__pycache__/\n",
}


def git(root: Path, *arguments: str) -> str:
    """Git as a person has it, with an identity."""
    who = (
        *("-c", "user.name=a person", "-c", "user.email=person@example.org"),
        *(
            "-c",
            "commit.gpgsign=false",
            "-c",
            "core.hooksPath=/dev/null",
        ),  # as a person may have it
    )
    # in a hook, or under `git bisect run`, git's variables name the person's own repository
    elsewhere = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", *who, *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        env=elsewhere,
    )
    return done.stdout.strip()


def agent(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m agent` of this checkout, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "agent", *arguments],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
    )


def write(root: Path, files: Mapping[str, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def make(root: Path) -> Path:
    """A repository at `root` with one commit of FILES."""
    write(root, FILES)
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    return root


def constant(tree: Path, path: str, name: str) -> float:
    found = re.search(rf"{name} = ([\d.]+)", (tree / path).read_text())
    assert found
    return float(found[1])


def past(number: int = 1, status: str = DROP, **changed: Any) -> Past:
    """An experiment as the ledger remembers it."""
    row = Past(
        id=number, run="r", number=number, proposer="anthropic", model="m", hypothesis=f"idea {number}", expected="", paths=(), notes={},
        parent="p", commit=f"c{number}", outcome=Outcome(status, ""), refused_by=None, started=0.0, cost_usd=0.0,
    )  # fmt: skip
    return replace(row, **changed)


def compared(ratio: float, low: float, high: float) -> Comparison:
    """What a comparison of one shape finds."""
    bounds = {"ratio": ratio, "low": low, "high": high}
    times = {"incumbent_ms": 1.0, "candidate_ms": ratio}
    shape = {"case": "x[2]", "calls": 1, "blocks": 50, **bounds, **times}
    return Comparison(ratio, low, high, [shape], 0.1)


@dataclass
class Rules:
    """kRows = 4 is the fastest, kUnroll = 2 does not compile, LR = 0.02 is best; `calls` records what was asked."""

    noise_bpb: float = 0.001
    fail_trial: str = ""
    calls: list[str] = field(default_factory=list)

    def ops(self) -> list[str]:
        return ["scale"]

    def signature(self, op: str) -> inspect.Signature:
        return inspect.signature(lambda x, factor=2.0: None)

    def build(self, tree: Path, changed: Sequence[str]) -> Finding:
        self.calls.append("build")
        broken = constant(tree, "csrc/scale.cpp", "kUnroll") == 2
        return Finding(not broken, "scale.cpp:3: error: cannot unroll" if broken else "built")

    def correctness(self, op: str, tree: Path) -> Finding:
        self.calls.append("correctness")
        return Finding(True, "9 cases agree", {"cases": 9, "implementations": [{"impl": "cpp"}]})

    def compare(self, op: str, incumbent: Path, candidate: Path) -> Comparison:
        self.calls.append("compare")
        seconds = {1: 1.0, 2: 0.8, 4: 0.5, 8: 0.9}
        before, after = (
            seconds[int(constant(t, "csrc/scale.cpp", "kRows"))] for t in (incumbent, candidate)
        )
        ratio = after / before
        return compared(ratio, ratio * 0.98, ratio * 1.02)

    def parity(self, incumbent: Path, candidate: Path) -> Finding:
        self.calls.append("parity")
        return Finding(True, "same curve")

    def trains(self, tree: Path) -> Finding:
        self.calls.append("trains")
        return Finding(True, "2 steps of the model trained")

    def profile(self, op: str | None, tree: Path, beside: Path | None = None) -> Mapping[str, Any]:
        self.calls.append(f"profile {op}")
        ms = 1 / constant(tree, "csrc/scale.cpp", "kRows")
        row = {"name": "scale", "ms": ms, "limit_ms": 0.25, "percent_of_limit": 25 / ms}
        if op is None:
            row |= {"op": "scale", "calls": 1, "share": 0.5, "backward_ms": ms / 4}
            rest = row | {"name": "aten::mm", "op": None, "share": 0.375, "ms": 0.75 * ms}
            return {
                "of": "a training step", "device": "cpu", "step_ms": 2 * ms, "plain_ms": 1.9 * ms, "data_ms": ms / 100,
                "python_ms": ms / 10, "threads": 1, "implementations": {"scale": "cpp"}, "rows": [row, rest],
            }  # fmt: skip
        row |= {"name": "torch", "tree": "draft", "default": True, "case": "x[4] float32"}
        return {"of": op, "device": "cpu", "rows": [row | {"quartiles_ms": [ms, ms]}]}

    def inspect(self, op: str, tree: Path) -> Mapping[str, Any]:
        self.calls.append(f"inspect {op}")
        return {"op": op, "kernels": [], "loops": []}

    def trial(
        self, tree: Path, seed: int, progress: Progress | None, split: str = "val"
    ) -> TrialResult:
        self.calls.append(f"trial {seed}")
        if progress is not None:
            progress({"phase": "training", "step": 1, "loss": 3.0, "tokens": 100, "elapsed": 0.1})
        rows, rate = (
            constant(tree, "csrc/scale.cpp", "kRows"),
            constant(tree, "model/optim.py", "LR"),
        )
        if self.fail_trial and rows != 1:
            found = TrialResult(False, self.fail_trial, "it broke", seed=seed)
        else:
            bpb, speed = 2.0 + rate + self.noise_bpb * (seed % 2), 1000.0 * rows
            found = TrialResult(True, val_bpb=bpb, tokens_per_second=speed, num_steps=7, seed=seed, peak_memory_mb=512.0)  # fmt: skip
        return self.trained(found, tree, seed, split)

    def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
        """What a trial has found; other rules change it here, or press Ctrl-C."""
        return found

    def revive(self, row: dict[str, Any]) -> TrialResult:
        return TrialResult(**row)

    def noise(self, trees: Mapping[str, Mapping[int, float]], start: str) -> Spread:
        return noise_of(unselected(trees, start))

    def drifted(self, before: TrialResult, now: TrialResult, noise: Spread) -> str:
        return drifted(before, now, noise)

    def decide(
        self,
        target: str,
        comparison: Mapping[str, Any] | None,
        incumbent: Sequence[TrialResult],
        candidate: Sequence[TrialResult],
        noise: Spread,
        *,
        words: int = 0,
    ) -> Verdict:
        measured = None if comparison is None else Comparison(**comparison)
        return decide(target, measured, incumbent, candidate, noise, words=words)


def impatient(rules: Rules, at: int) -> Rules:
    """Someone presses Ctrl-C in the n-th trial that these rules are asked for."""
    trial, trials = rules.trial, itertools.count(1)

    def asked(*arguments: Any, **named: Any) -> TrialResult:
        if next(trials) == at:
            raise KeyboardInterrupt
        return trial(*arguments, **named)

    rules.trial = asked  # type: ignore[method-assign]
    return rules


@dataclass
class Transcript:
    """A screen that remembers."""

    lines: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    events: list[Mapping[str, Any]] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.lines.append(text)

    def stage(self, text: str, seconds: float | None = None) -> None:
        self.stages.append(text)

    def progress(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass
