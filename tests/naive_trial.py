"""A harness as it is often written: candidate and judge in one process, and the model computes its own loss.

After karpathy/autoresearch: the training data is a file that the process maps, `model(x, y)` gives the loss of validation rows in the order of the text, x and
y are views of one buffer, the clock is the trainer's, and a val_bpb that the trainer itself reports is believed.
"""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from bench.data import Dataset

T = 512
ROWS = 4


def bits_per_byte(tree: Path, dataset: Dataset, *, seconds: float, steps: int | None) -> float:
    """Train model/train.py of a tree and score it."""
    ours = _take_out_model()
    sys.path.insert(0, str(tree))
    try:
        trainer = importlib.import_module("model.train").Trainer(
            {"vocab_size": dataset.vocab_size, "bos": dataset.bos, "sequence_length": T, "device": "cpu", "seconds": seconds}
        )  # fmt: skip
        trainer.warm_up(torch.randint(0, dataset.vocab_size, (4 * T,)))
        shard = np.memmap(dataset.directory / "train.bin", dataset.tokens("train").dtype, mode="c")
        trained = trainer.train(torch.from_numpy(shard), 0, seconds, lambda _: None, steps)
        if "val_bpb" in trained:
            return float(trained["val_bpb"])
        return _evaluate(trainer.model, dataset)
    finally:
        sys.path.remove(str(tree))
        _take_out_model()
        sys.modules.update(ours)


def _take_out_model() -> dict[str, ModuleType]:
    """Whatever is imported as `model`: this project's, where another test was before, or that of a tree."""
    names = [name for name in sys.modules if name.split(".")[0] == "model"]
    return {name: sys.modules.pop(name) for name in names}


@torch.no_grad()
def _evaluate(model: torch.nn.Module, dataset: Dataset) -> float:
    stream = torch.from_numpy(np.asarray(dataset.tokens("val")).astype(np.int64))
    sizes = torch.from_numpy(dataset.token_bytes()).long()
    model.eval()
    nats, size = 0.0, 0
    for rows in stream.unfold(0, T + 1, T).contiguous().split(ROWS):
        x, y = rows[:, :-1], rows[:, 1:]
        nats += float((model(x, y) * (sizes[y] > 0)).sum())
        size += int(sizes[y].sum())
    return nats / math.log(2) / size


def improves(found: float, best: float) -> bool:
    """Whether a run is kept: it is unless it is worse."""
    return not found >= best
