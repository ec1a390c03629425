"""What ends a trial without a score, under its own name: failures, work off the clock, careless kernels."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import pytest
from trial_tree import honest, put, run

from bench import trial, trial_result
from bench.data import Dataset
from bench.judge import Refused


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ("def logits(self, rows): return super().logits(rows)[:, :-1]", "structure"),
        ("def logits(self, rows): return super().logits(rows) + 0.1 * torch.arange(len(rows))[:, None, None] * (torch.arange(self.vocab_size) % 2)", "state"),
        ("def train(self, tokens, *a, **k): time.sleep(9)", "late"),
        ("def train(self, tokens, *a, **k): return {}", "structure"),
        ("def train(self, *a, **k): return {**super().train(*a, **k), 'losses': [[1, float('nan')]]}", "nan"),
        ("def train(self, *a, **k): return {**super().train(*a, **k), 'losses': [[1, 1e6]]}", "explosion"),
        ("def warm_up(self, tokens): raise MemoryError('out of memory')", "out_of_memory"),
        ("def describe(self): found = super().describe(); self.model = 'hidden'; return found", "structure"),
        ("def train(self, *a, **k): found = super().train(*a, **k); self.model.later = nn.Parameter(torch.ones(3)); return found", "structure"),
        ("def train(self, *a, **k): found = super().train(*a, **k); self.outside = 0.3; return found\n"
         "def logits(self, rows): return super().logits(rows) * (1 + getattr(self, 'outside', 0.0))", "state"),
        ("def train(self, tokens, *a, **k): tokens[0] = 1", "crash"),
    ],
    ids=["fewer-positions", "knows-its-row", "late", "no-answer", "nan-loss", "explosion", "memory", "no-model",
         "grows", "knowledge-outside-the-state", "writes-the-shard"],
)  # fmt: skip
def test_a_trial_that_is_not_one_fails_with_its_name(
    body: str, failure: str, tmp_path: Path, dataset: Dataset
) -> None:
    options = {"seconds": 1.0} if failure == "late" else {}
    options["fresh"] = failure in ("late", "crash")
    scored = failure == "state" or "later" in body
    result = run(put(tmp_path, honest(body)), dataset, steps=5, score=scored, **options)
    assert not result.ok
    assert result.failure == failure, result.detail


def test_work_in_a_child_process_after_the_bell_is_seen(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody works while the weights are waited for but the children, however late they begin on a busy machine.
    monkeypatch.setattr(trial, "TAKEN_S", 60.0)
    body = """
    def train(self, *a, **k):
        import multiprocessing
        found = super().train(*a, **k)
        for _ in range(2):
            multiprocessing.get_context("fork").Process(target=burn, daemon=True).start()
        plain = self.model.state_dict
        def state_dict(*a, **k):
            time.sleep(1.0)
            return plain(*a, **k)
        self.model.state_dict = state_dict
        return found
    """
    source = (
        honest(body)
        + "\ndef burn():\n    end = time.process_time() + 20\n    while time.process_time() < end: pass\n"
    )
    assert run(put(tmp_path, source), dataset, steps=5, fresh=True).failure == "off_clock"


@pytest.mark.parametrize(("hand_over", "said"), [
    ("end = time.process_time() + 0.5\n            while time.process_time() < end: pass", "processor time when it was asked for its weights"),
    ("time.sleep(3)", "had not handed over its weights"),
], ids=["works", "waits"])  # fmt: skip
def test_what_a_model_does_when_it_is_asked_for_its_weights_is_no_training(
    tmp_path: Path, dataset: Dataset, hand_over: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where other work has the cores, half a second of processor time takes any time.
    monkeypatch.setattr(trial, "TAKEN_S", 60.0 if "process_time" in hand_over else 0.5)
    body = f"""
    def train(self, *a, **k):
        found = super().train(*a, **k)
        plain = self.model.state_dict
        def state_dict(*a, **k):
            {hand_over}
            self.model.state_dict = plain
            return plain(*a, **k)
        self.model.state_dict = state_dict
        return found
    """
    waits = "sleep" in hand_over
    result = run(put(tmp_path, honest(body)), dataset, steps=5, fresh=waits)
    assert result.failure == "off_clock", result.detail
    assert said in result.detail


def test_what_is_handed_over_long_after_the_bell_is_late(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Handing them over may take any time: that they come late is what counts.
    monkeypatch.setattr(trial, "TAKEN_S", 60.0)
    body = """
    def train(self, tokens, seed, seconds, *a, **k):
        found = super().train(tokens, seed, seconds, *a, **k)
        plain = self.model.state_dict
        def state_dict(*a, **k):
            time.sleep(3.0)
            return plain(*a, **k)
        self.model.state_dict = state_dict
        return found
    """
    result = run(put(tmp_path, honest(body)), dataset, 5, seconds=2.0, fresh=True)
    assert result.failure == "late", result.detail
    assert "its weights were not there" in result.detail
    assert "did not end" not in result.detail


def test_a_row_that_is_dear_to_score_is_worked_on_off_the_clock(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "SCORED_SLACK_S", 0.5)
    monkeypatch.setattr(trial, "SCORED_TIMES", 0.1)
    body = """
    def logits(self, rows):
        end = time.process_time() + 0.5 * (len(rows) > 8)
        while time.process_time() < end:
            pass
        return super().logits(rows)
    """
    result = run(put(tmp_path, honest(body)), dataset)
    assert result.failure == "off_clock", result.detail
    assert "scoring took" in result.detail


def test_what_a_model_learns_before_its_first_answer_is_off_the_clock(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "LOOKED_SLACK_S", 0.3)
    body = """
    trained = False
    def train(self, *a, **k):
        found = super().train(*a, **k)
        self.trained = True
        return found
    def logits(self, rows):
        end = time.process_time() + self.trained
        while time.process_time() < end:
            self.trained = False
        return super().logits(rows)
    """
    result = run(put(tmp_path, honest(body)), dataset)
    assert result.failure == "off_clock", result.detail
    assert "first answers" in result.detail


@pytest.mark.parametrize(
    "excess",
    [
        "it used more memory than its cgroup allows",
        "it used more than 12288 MiB of memory",
        "the machine had less than 256 MiB of memory left",
    ],
)
def test_a_runner_that_was_ended_for_its_memory_is_out_of_memory(excess: str) -> None:
    said = f"the runner died during 'train': closed\nstopped: {excess}"
    assert trial_result.classify(Refused("crash", said)) == "out_of_memory"


def test_a_kernel_that_grows_sloppy_while_it_trains_is_caught(
    tmp_path: Path, dataset: Dataset
) -> None:
    kernel = """
    import torch
    calls = 0
    def rms_norm(x, weight=None, eps=1e-6):
        global calls
        calls += 1
        seen = x if calls <= 8 else x[..., :16]
        return (x * torch.rsqrt(seen.float().square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    """
    body = """
    def learn(self, rows):
        from kernels.rms_norm import rms_norm
        rms_norm(torch.ones(2, 64))
        return super().learn(rows)
    """
    tree = put(tmp_path, honest(body))
    (tree / "kernels").mkdir()
    (tree / "kernels" / "__init__.py").touch()
    (tree / "kernels" / "rms_norm.py").write_text(textwrap.dedent(kernel))
    assert run(tree, dataset, steps=4, fresh=True).ok
    grown = run(tree, dataset, steps=12, fresh=True)
    assert grown.failure == "wrong", grown.detail
    assert "after training" in grown.detail


def test_a_score_below_the_floor_is_quarantined(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "FLOOR_BPB", 100.0)
    result = run(put(tmp_path, honest()), dataset, steps=5)
    assert result.failure == "implausible"
    assert math.isnan(result.val_bpb)
