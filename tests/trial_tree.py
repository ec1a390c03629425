"""A trial on a small tree: a bigram that anybody can train in seconds, and made-up sentences."""

from __future__ import annotations

import json
import random
import shutil
import textwrap
from pathlib import Path

import pytest
from warm import Trials

from bench import trial
from bench.data import Dataset, prepare
from bench.trial import run_trial
from bench.trial_result import TrialResult

TESTS = Path(__file__).resolve().parent
STEPS = 20
IMPORTS = """
import time, tempfile, pathlib
import torch
from torch import nn
from model.bigram import Bigram, Trainer as Honest
"""


def sentences(folder: Path, root: Path) -> Dataset:
    """Made-up sentences with characters of several bytes; each document keeps to a few words of its own."""
    rng = random.Random(0)
    words = ["naïve", "kernel", "größer", "the", "of", "日本", "time", "and", "λ", "memory"]
    with (folder / "text.jsonl").open("w") as file:
        for _ in range(900):
            own = rng.sample(words, 3)
            text = " ".join(rng.choice(own) + str(rng.randrange(100)) for _ in range(250))
            file.write(json.dumps({"text": text}) + "\n")
    return prepare(str(folder), vocab_size=300, root=root)


def put(tree: Path, train: str) -> Path:
    """A tree whose model/train.py has this text, beside the bigram that it may derive from."""
    (tree / "model").mkdir(parents=True)
    (tree / "model" / "__init__.py").touch()
    shutil.copy(TESTS / "bigram.py", tree / "model" / "bigram.py")
    (tree / "model" / "train.py").write_text(train)
    return tree


def honest(body: str = "pass") -> str:
    """A Trainer that differs from the honest bigram in `body`."""
    return f"{IMPORTS}\nclass Trainer(Honest):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"


TRIALS = Trials()


def run(
    tree: Path, dataset: Dataset, steps: int | None = STEPS, *, fresh: bool = False, **options
) -> TrialResult:
    """A trial, by forks of runners that wait; `fresh`: by runners of its own, where it may not end, or is about what they would share."""
    asked = {"seconds": 20.0, "seed": 0, "device": "cpu", "steps": steps, **options}
    with pytest.MonkeyPatch.context() as patch:
        if not fresh:
            patch.setattr(trial, "Judge", TRIALS.judge)
        return run_trial(tree, dataset, **asked)
