"""The trial: its arithmetic on a model whose score is known, what set-up costs, and what honest models may do."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trial_tree import honest, put, run

from bench import shard, trial, trial_claims
from bench.data import Dataset
from bench.judge import Refused
from bench.runner import recording, training
from bench.sandbox import processes
from kernels.rms_norm import rms_norm


def test_a_model_that_learns_nothing_scores_exactly_log2_of_the_vocabulary(
    tmp_path: Path, dataset: Dataset
) -> None:
    result = run(put(tmp_path, honest("rate = 0.0")), dataset, steps=2)
    tokens = np.asarray(dataset.tokens("val"))
    expected = (
        int((tokens != dataset.bos).sum()) * math.log2(dataset.vocab_size) / dataset.val_bytes
    )
    assert result.ok, result.detail
    assert result.val_bpb == pytest.approx(expected, rel=1e-6)
    assert result.train_loss == pytest.approx(math.log(dataset.vocab_size), rel=1e-5)


def test_numbers_are_a_permutation_that_keeps_bos_and_belongs_to_the_seed() -> None:
    first, other = shard.numbers(300, 299, 0), shard.numbers(300, 299, 1)
    assert sorted(first) == list(range(300))
    assert first[299] == other[299] == 299
    assert (first == shard.numbers(300, 299, 0)).all()
    assert (first != np.arange(300)).sum() > 250
    assert (first != other).sum() > 250


def test_a_sealed_shard_holds_the_renumbered_tokens_and_cannot_be_written() -> None:
    tokens = np.arange(1000, dtype=np.uint16) % 300
    number = shard.numbers(300, 299, 5)
    fd = shard.sealed(tokens, number)
    try:
        assert (np.frombuffer(os.pread(fd, 2000, 0), np.uint16) == number[tokens]).all()
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"xx", 0)
    finally:
        os.close(fd)


def test_processor_time_of_children_counts_while_they_run_and_when_they_have_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.4: pass"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout
        parent.stdout.readline()
        assert processes.cpu_seconds(processes.tree(parent.pid)) > 0.35
        parent.communicate()


class _Compiled:
    """A Trainer whose step is compiled in the warm-up, and which may not compile again."""

    def __init__(self, spec: object) -> None:
        self.model = torch.nn.Linear(2, 2)
        self.step = torch.compile(lambda x: rms_norm(x, impl="torch"), backend="eager")

    def warm_up(self, tokens: torch.Tensor) -> None:
        self.step(torch.ones(2, 8))

    def describe(self) -> dict[str, object]:
        return {}

    def train(self, *_: object) -> dict[str, object]:
        rms_norm(torch.ones(2, 8), impl="torch")
        with torch._dynamo.config.patch(error_on_recompile=True):
            self.step(torch.ones(2, 8))
        return {}


def test_that_calls_are_counted_makes_torch_compile_compile_nothing_anew_after_the_bell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "model.train", SimpleNamespace(Trainer=_Compiled))
    monkeypatch.setattr(training.shards, "mapped", lambda *_: torch.zeros(1))
    lent = SimpleNamespace(device=torch.device("cpu"), read=lambda _: torch.zeros(1))
    room = training.Training(lent, lambda _: None, recording.Recorder(lent))
    room.do_setup({"spec": {}, "ops": {}, "warm_up": {}})
    answer = room.do_train(
        {"dtype": "", "seed": 0, "seconds": 1.0, "steps": None, "moments": {}, "nonce": ""}, fd=0
    )
    assert answer["calls"] == {"rms_norm/torch": 1}
    assert not hasattr(sys.modules["kernels.rms_norm"].IMPLEMENTATIONS["torch"], "__wrapped__")


def test_no_text_is_readable_before_the_bell(tmp_path: Path, dataset: Dataset) -> None:
    hunt = f"""
    def warm_up(self, tokens):
        try:
            pathlib.Path({str(dataset.directory / "train.bin")!r}).read_bytes()
        except OSError:
            return
        raise AssertionError("found the data")
    """
    assert run(put(tmp_path, honest(hunt)), dataset, steps=2, score=False).ok


def test_set_up_beyond_its_allowance_is_done_anew_and_taken_from_the_training(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trial.SETUP_FREE_S, "cpu", 0.5)
    body = """
    def warm_up(self, tokens):
        time.sleep(1.5)
    def train(self, tokens, seed, seconds, *a, **k):
        return {**super().train(tokens, seed, seconds, *a, **k), "peak_memory_mb": seconds}
    """
    tree = put(tmp_path, honest(body))
    told = run(tree, dataset, steps=2, seconds=100.0, score=False)
    assert told.ok, told.detail
    # Each of the two set-ups takes 1.5 s at least; of the second all but half a second is taken away, of the first nothing. What the model
    # guesses takes a part of a second.
    assert 100.5 - told.setup_seconds < told.peak_memory_mb < 99.1


def test_processor_time_is_held_against_the_time_in_which_it_was_counted(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(trial, "TAKEN_S", 60.0)
    monkeypatch.setattr(
        trial_claims, "require_processor_time", lambda used, elapsed: seen.append(elapsed)
    )
    body = """
    def train(self, *a, **k):
        found = super().train(*a, **k)
        plain = self.model.state_dict
        def state_dict(*a, **k):
            time.sleep(1.0)
            self.model.state_dict = plain
            return plain(*a, **k)
        self.model.state_dict = state_dict
        return found
    """
    result = run(put(tmp_path, honest(body)), dataset, steps=5, score=False)
    assert result.ok, result.detail
    assert seen[0] > result.training_seconds + 0.9


def test_what_the_model_does_when_it_is_asked_what_it_guesses_counts_as_set_up(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trial.SETUP_FREE_S, "cpu", 0.5)
    body = f"""
    def logits(self, rows):
        if len(rows) == {trial.GUESSED_ROWS} and not hasattr(self, "practised"):
            self.practised = time.sleep(1.5)
        return super().logits(rows)
    def train(self, tokens, seed, seconds, *a, **k):
        return {{**super().train(tokens, seed, seconds, *a, **k), "peak_memory_mb": seconds}}
    """
    told = run(put(tmp_path, honest(body)), dataset, steps=2, seconds=100.0, score=False)
    assert told.ok, told.detail
    assert told.peak_memory_mb < 99.1


@pytest.mark.parametrize(
    ("state_bytes", "taken", "left"),
    [(100 << 20, 5.0, 100.0), (1 << 30, 5.0, 101.0 - (1 << 30) / 250e6), (1, 27.0, 93.0)],
    ids=["neither", "large-state", "long-set-up"],
)
def test_time_to_set_up_and_to_hand_over_beyond_what_is_free_is_taken_from_the_training(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, state_bytes: int, taken: float, left: float
) -> None:
    monkeypatch.setattr(trial._Trial, "loss", lambda *_: math.log(dataset.vocab_size))
    begun = trial._Trial(dataset, 100.0, 0, "cpu", lambda _: None)
    begun.state_bytes = state_bytes
    begun.begin(SimpleNamespace(), taken)
    assert begun.seconds == pytest.approx(left)


def test_a_set_up_after_which_no_time_is_left_to_train_is_late(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial._Trial, "loss", lambda *_: math.log(dataset.vocab_size))
    begun = trial._Trial(dataset, 1.0, 0, "cpu", lambda _: None)
    begun.state_bytes = 1
    with pytest.raises(Refused, match="of which nothing is left") as refused:
        begun.begin(SimpleNamespace(), trial.SETUP_FREE_S["cpu"] + 1.5)
    assert refused.value.kind == "late"


def test_memory_is_what_the_kernel_counts(tmp_path: Path, dataset: Dataset) -> None:
    body = """
    def train(self, *a, **k):
        held = torch.ones(100 << 20)
        return super().train(*a, **k)
    """
    result = run(put(tmp_path, honest(body)), dataset, steps=2, score=False, fresh=True)
    assert result.ok, result.detail
    assert result.peak_memory_mb == 0.0
    assert 400 < result.resident_memory_mb < 2000


ODDITIES = {
    "averages_its_weights": """
        def train(self, *a, **k):
            self.mean = None
            found = super().train(*a, **k)
            with torch.no_grad():
                self.model.table.copy_(self.mean)
            return found

        def learn(self, rows):
            loss = super().learn(rows)
            now = self.model.table.detach()
            self.mean = now.clone() if self.mean is None else self.mean.lerp(now, 0.2)
            return loss
    """,
    "reads_in_its_own_order": """
        def batch(self, tokens, generator):
            self.at = getattr(self, "at", -self.T) + self.T
            starts = [(self.at + i * 7919) % (len(tokens) - self.T) for i in range(self.rows)]
            return torch.stack([tokens[s : s + self.T + 1].long() for s in starts])
    """,
    "stops_early": """
        def train(self, tokens, seed, seconds, report, steps=None):
            return super().train(tokens, seed, seconds, report, 10)
    """,
    "has_an_odd_batch": """
        rows = 3

        def batch(self, tokens, generator):
            return super().batch(tokens, generator)[:, : 101 + int(torch.randint(50, (1,), generator=generator))]
    """,
    "computes_in_bfloat16": """
        class network(Bigram):
            def scores(self, rows):
                return self.table.bfloat16()[rows].float()
    """,
    "differs_by_rounding": """
        @torch.no_grad()
        def logits(self, rows):
            return self.model.scores(rows) + 1e-5 * torch.randn(*rows.shape, self.vocab_size)
    """,
    "drops_out_in_training": """
        class network(Bigram):
            def scores(self, rows):
                return nn.functional.dropout(super().scores(rows), 0.1, self.training)

        def logits(self, rows):
            self.model.eval()
            return super().logits(rows)

        def train(self, *a, **k):
            self.model.train()
            return super().train(*a, **k)
    """,
    "rules_out_a_token": """
        def logits(self, rows):
            return super().logits(rows).index_fill(2, torch.tensor([self.vocab_size - 1]), -1e4)
    """,
    "counts_instead_of_descending": """
        class network(Bigram):
            def __init__(self, V):
                super().__init__(V)
                self.table.requires_grad_(False)
                self.register_buffer("counts", torch.zeros(V, V, dtype=torch.int32))
                self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

        def learn(self, rows):
            loss = float(self.model(rows[:, :-1], rows[:, 1:]).mean())
            counts = self.model.counts
            counts.view(-1).add_(torch.bincount(rows[:, :-1].flatten() * self.vocab_size + rows[:, 1:].flatten(),
                                                minlength=counts.numel()))
            self.model.table.copy_((counts + 0.05).log())
            self.model.ready.fill_(True)
            return loss
    """,
    "reports_a_single_point": """
        def train(self, *a, **k):
            found = super().train(*a, **k)
            return {**found, "losses": found["losses"][-1:]}
    """,
}  # fmt: skip


@pytest.mark.parametrize("name", ODDITIES)
def test_an_honest_oddity_passes(name: str, tmp_path: Path, dataset: Dataset) -> None:
    result = run(put(tmp_path, honest(ODDITIES[name])), dataset)
    assert result.ok, f"{result.failure}: {result.detail}"
    assert result.val_bpb < math.log2(dataset.vocab_size)
