"""The trial: its arithmetic on a model whose score is known, and every way of cheating it that a model file alone could try."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.data import Dataset, prepare
from bench.trial import _bits, _rows, run_trial

TRAINER = """
import time
import torch

class Trainer:
    def __init__(self, spec):
        self.V = spec["vocab_size"]
    def describe(self):
        return {{"num_params": 1000, "depth": 1, "flops_per_token": 6000.0, "implementations": {{"attention": "torch"}}}}
    def warm_up(self, tokens):
        {warm_up}
    def train(self, tokens, seed, seconds, report, steps=None):
        {train}
        return {{"steps": 2, "tokens": 64, "losses": [[32, {loss}], [64, {loss}]], "grad_norms": [1.0], "peak_memory_mb": 1.0}}
    def logits(self, rows):
        z = torch.zeros(*rows.shape, self.V)
        {logits}
        return z
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A small corpus of made-up sentences, with characters of several bytes."""
    rng = random.Random(0)
    words = ["naïve", "kernel", "größer", "the", "of", "日本", "time", "and", "λ", "memory"]
    folder = tmp_path_factory.mktemp("text")
    lines = [
        " ".join(rng.choice(words) + str(rng.randrange(100)) for _ in range(40))
        for _ in range(1500)
    ]
    (folder / "text.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    return prepare(str(folder), vocab_size=300, root=tmp_path_factory.mktemp("data"))


def trial(
    folder: Path,
    dataset: Dataset,
    *,
    warm_up: str = "pass",
    train: str = "pass",
    loss: str = "5.0",
    logits: str = "pass",
    seconds: float = 5.0,
):
    (folder / "model").mkdir()
    (folder / "model" / "__init__.py").touch()
    (folder / "model" / "train.py").write_text(
        TRAINER.format(warm_up=warm_up, train=train, loss=loss, logits=logits)
    )
    return run_trial(folder, dataset, seconds=seconds, seed=0, device="cpu")


def test_a_uniform_model_scores_exactly_log2_of_the_vocabulary(
    tmp_path: Path, dataset: Dataset
) -> None:
    result = trial(tmp_path, dataset)
    tokens = np.asarray(dataset.tokens("val"))
    expected = (
        int((tokens != dataset.bos).sum()) * math.log2(dataset.vocab_size) / dataset.val_bytes
    )
    assert result.ok, result.detail
    assert result.val_bpb == pytest.approx(expected, rel=1e-6)
    assert result.total_tokens_M == pytest.approx(64e-6)


def test_rows_hold_every_token_once_as_a_target() -> None:
    tokens = np.arange(100, dtype=np.uint16)
    inputs, targets = _rows(tokens, 16, bos=0)
    counted = targets[targets >= 0]
    assert counted.tolist() == list(range(1, 100))
    assert torch.equal(inputs.flatten()[:99] + 1, targets.flatten()[:99])


def test_bits_of_a_hand_computed_example() -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    sizes = torch.tensor([3, 2, 0])  # token 2 starts a document: it stands for no byte
    assert _bits(probabilities.log()[None], torch.tensor([[0, 1]]), sizes) == pytest.approx(
        1 - math.log2(0.8)
    )
    assert _bits(probabilities.log()[None], torch.tensor([[2, -1]]), sizes) == 0


@pytest.mark.parametrize(
    ("cheat", "failure"),
    [
        ({"logits": "z[:, :-1].scatter_(2, rows[:, 1:, None], 9.0)"}, "leak"),
        (
            {
                "logits": "self.seen = getattr(self, 'seen', 0) + 1; z += self.seen * torch.arange(self.V)"
            },
            "leak",
        ),
        ({"logits": "z += torch.arange(len(rows))[:, None, None]"}, "order"),
        ({"logits": "z[:, 5:] = float('nan')"}, "leak"),
        ({"logits": "z = z[:, :-1]"}, "structure"),
        ({"train": "time.sleep(20)"}, "late"),
        ({"loss": "float('nan')"}, "nan"),
        ({"loss": "1e6"}, "explosion"),
        ({"train": "return {}"}, "structure"),
        ({"warm_up": "raise MemoryError('out of memory')"}, "out_of_memory"),
    ],
    ids=[
        "sees-the-target",
        "keeps-a-counter",
        "knows-its-row",
        "nan",
        "fewer-positions",
        "late",
        "nan-loss",
        "explosion",
        "no-answer",
        "memory",
    ],
)
def test_a_trial_that_is_not_one_fails_with_its_name(
    cheat: dict[str, str], failure: str, tmp_path: Path, dataset: Dataset
) -> None:
    result = trial(tmp_path, dataset, seconds=2.0, **cheat)
    assert not result.ok
    assert result.failure == failure, result.detail


def test_no_text_is_readable_before_the_bell(tmp_path: Path, dataset: Dataset) -> None:
    hunt = f"import pathlib; assert not pathlib.Path({str(dataset.directory)!r}).exists(), 'found the data'"
    assert trial(tmp_path, dataset, warm_up=hunt).ok


def test_the_training_shard_cannot_be_written(tmp_path: Path, dataset: Dataset) -> None:
    before = dataset.train_file().read_bytes()
    result = trial(
        tmp_path,
        dataset,
        train="import os; [os.pwrite(int(f), b'xx', 0) for f in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + f) and 'train.bin' in os.readlink('/proc/self/fd/' + f)]",
    )
    assert not result.ok
    assert dataset.train_file().read_bytes() == before
