"""The trial: its arithmetic on a model whose score is known, every way of cheating it that a model file alone could try, and what honest models may do."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import naive_trial
import numpy as np
import pytest
import torch
from warm import Trials

from bench import scoring, shard, trial, trial_claims
from bench.arena import ARENA_BYTES, Arena, Where
from bench.data import Dataset, prepare
from bench.judge import Refused
from bench.runner import training
from bench.sandbox import processes
from bench.trial import TrialResult, run_trial
from bench.trial_claims import Described, Trained
from kernels.rms_norm import rms_norm

TESTS = Path(__file__).resolve().parent
CHEATS = sorted((TESTS / "cheats").glob("trial_*.py"))
STEPS = 20
SAME = 0.03  # BPB: two honest trials of a bigram, differently numbered and seeded, are closer

IMPORTS = """
import time, tempfile, pathlib
import torch
from torch import nn
from model.bigram import Bigram, Trainer as Honest
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Made-up sentences with characters of several bytes; each document keeps to a few words of its own."""
    rng = random.Random(0)
    words = ["naïve", "kernel", "größer", "the", "of", "日本", "time", "and", "λ", "memory"]
    folder = tmp_path_factory.mktemp("text")
    with (folder / "text.jsonl").open("w") as file:
        for _ in range(900):
            own = rng.sample(words, 3)
            text = " ".join(rng.choice(own) + str(rng.randrange(100)) for _ in range(250))
            file.write(json.dumps({"text": text}) + "\n")
    return prepare(str(folder), vocab_size=300, root=tmp_path_factory.mktemp("data"))


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


@pytest.fixture(scope="module", autouse=True)
def trials_end() -> Iterator[None]:
    yield
    TRIALS.close()


def run(
    tree: Path, dataset: Dataset, steps: int | None = STEPS, *, fresh: bool = False, **options
) -> TrialResult:
    """A trial, by forks of runners that wait; `fresh`: by runners of its own, where it may not end, or is about what they would share."""
    asked = {"seconds": 20.0, "seed": 0, "device": "cpu", "steps": steps, **options}
    with pytest.MonkeyPatch.context() as patch:
        if not fresh:
            patch.setattr(trial, "Judge", TRIALS.judge)
        return run_trial(tree, dataset, **asked)


@pytest.fixture(scope="module")
def baseline(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> TrialResult:
    result = run(put(tmp_path_factory.mktemp("honest"), honest()), dataset)
    assert result.ok, result.detail
    return result


@pytest.fixture(scope="module")
def naive_baseline(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> float:
    tree = put(tmp_path_factory.mktemp("honest"), honest())
    return naive_trial.bits_per_byte(tree, dataset, seconds=20.0, steps=STEPS)


# ---- arithmetic ----


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


def test_rows_hold_every_token_once_as_a_target() -> None:
    tokens = np.arange(100, dtype=np.uint16)
    inputs, targets = scoring.rows(tokens, 16, bos=0)
    counted = targets[targets >= 0]
    assert counted.tolist() == list(range(1, 100))
    assert torch.equal(inputs.flatten()[:99] + 1, targets.flatten()[:99])


def test_nats_of_a_hand_computed_example() -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    sizes = torch.tensor([3, 2, 0])  # token 2 starts a document: it stands for no byte
    found = scoring.nats(probabilities.log()[None], torch.tensor([[0, 1]]), sizes)
    assert found.tolist()[0] == pytest.approx([math.log(2), -math.log(0.8)])
    assert not scoring.nats(probabilities.log()[None], torch.tensor([[2, -1]]), sizes).any()


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


# ---- what is claimed ----


def trained(*losses: float, tokens: int = 1000) -> Trained:
    at = np.linspace(1, tokens, len(losses))
    return Trained(10, tokens, 0.0, [list(p) for p in zip(at, losses, strict=True)], [])


@pytest.mark.parametrize(
    ("curve", "measured", "failure"),
    [
        (trained(5.0, 4.0, 3.0, 3.0, 3.0, 3.0), 5.0, "forged"),
        (trained(5.0, 20.0, 20.0, 20.0, 20.0, 20.0), 5.0, "explosion"),
        (trained(2.0, 2.0, 2.0), 2.0, "warm_start"),
    ],
    ids=["forged", "explosion", "knows-at-once"],
)
def test_a_curve_that_cannot_be_true_is_refused(
    curve: Trained, measured: float, failure: str
) -> None:
    with pytest.raises(Refused) as refused:
        trial_claims.require_curve(curve, measured, 300)
    assert refused.value.kind == failure


def test_a_curve_may_lie_above_what_the_judge_measures() -> None:
    trial_claims.require_curve(trained(5.7, 4.0, 3.5, 3.4, 3.3, 3.3, 3.3), 2.4, 300)


@pytest.mark.parametrize(
    ("impl", "calls", "launches", "device", "used"),
    [
        ("cpp", {"attention": 10}, {}, "cpu", True),
        ("cpp", {"attention/cpp": 40}, {}, "cpu", True),
        ("cpp", {"attention": 9, "attention/torch": 99}, {}, "cpu", False),
        ("torch", {}, {}, "cpu", True),
        ("triton", {}, {"_attention_kernel": 1}, "cuda", True),
        ("triton", {}, {"triton_poi_fused_add_0": 99}, "cuda", False),
    ],
)
def test_a_kernel_counts_as_used_when_it_ran_in_every_step(
    impl: str, calls: dict, launches: dict, device: str, used: bool, tmp_path: Path
) -> None:
    (tmp_path / "kernels").mkdir()
    kernels = "@triton.jit\ndef _attention_kernel():\n    def triton(): ...\n\ndef triton_poi_fused_add_0(): ...\n"
    (tmp_path / "kernels" / "attention.py").write_text(kernels)
    described = Described(1, 1, 1.0, {"attention": impl})
    expected = contextlib.nullcontext() if used else pytest.raises(Refused, match="called it")
    with expected:
        trial_claims.require_kernels(described, 10, calls, launches, tmp_path, device)


def test_more_processor_time_than_cores_times_seconds_is_refused() -> None:
    cores = len(os.sched_getaffinity(0))
    trial_claims.require_processor_time(cores * 10.0, 10.0)
    for used in (cores * 12.0, -1.0):
        with pytest.raises(Refused) as refused:
            trial_claims.require_processor_time(used, 10.0)
        assert refused.value.kind == "off_clock"


# ---- counting calls ----


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
    room = training.Training(lent, lambda _: None)
    room.do_setup({"spec": {}, "warm_up": {}})
    answer = room.do_train(
        {"dtype": "", "seed": 0, "seconds": 1.0, "steps": None, "nonce": ""}, fd=0
    )
    assert answer["calls"] == {"rms_norm/torch": 1}
    assert not hasattr(sys.modules["kernels.rms_norm"].IMPLEMENTATIONS["torch"], "__wrapped__")


# ---- cheats ----


@pytest.mark.proof
@pytest.mark.parametrize("cheat", CHEATS, ids=lambda p: p.stem.removeprefix("trial_"))
def test_a_naive_harness_is_pleased_with_a_cheat(
    cheat: Path, tmp_path: Path, dataset: Dataset, naive_baseline: float, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tree = put(tmp_path / "tree", cheat.read_text())
    # the clock is the trainer's own where that is the cheat
    steps = None if "(late)" in cheat.read_text() else STEPS
    best = naive_baseline
    if steps is None:
        plain = put(tmp_path / "plain", honest())
        best = naive_trial.bits_per_byte(plain, dataset, seconds=0.3, steps=None)
    for _ in range(2 if "second time" in cheat.read_text() else 1):
        found = naive_trial.bits_per_byte(tree, dataset, seconds=0.3, steps=steps)
    assert naive_trial.improves(found, best - 1e-3), f"{found:.4f} against {best:.4f}"


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda p: p.stem.removeprefix("trial_"))
def test_a_trial_stops_a_cheat(
    cheat: Path, tmp_path: Path, dataset: Dataset, baseline: TrialResult
) -> None:
    text = cheat.read_text()
    named = re.search(r"Gate: trial \(([\w ]+)\)", text)
    assert named, f"{cheat.name} does not say how a trial stops it"
    tree = put(tmp_path / "tree", text)
    late = named[1] == "late"
    options = {"steps": None, "seconds": 1.0} if late else {"steps": STEPS}
    options["fresh"] = late or "second time" in text
    if "second time" in text:
        run(tree, dataset, score=False, **options)
    ends_before_scoring = named[1] in ("late", "warm_start", "forged", "unused")
    result = run(tree, dataset, score=not ends_before_scoring, **options)
    if named[1] == "no gain":
        assert result.ok, result.detail
        assert result.val_bpb > baseline.val_bpb - SAME
    else:
        assert not result.ok, f"{result.val_bpb:.3f} BPB against {baseline.val_bpb:.3f}"
        assert result.failure in named[1].split(" or "), result.detail


# ---- failures ----


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


def test_no_text_is_readable_before_the_bell(tmp_path: Path, dataset: Dataset) -> None:
    hunt = f"def warm_up(self, tokens): assert not pathlib.Path({str(dataset.directory)!r}).exists(), 'found the data'"
    assert run(put(tmp_path, honest(hunt)), dataset, steps=2, score=False).ok


def test_set_up_beyond_its_allowance_is_done_anew_and_taken_from_the_training(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trial.SETUP_FREE_S, "cpu", 1.0)
    body = """
    def warm_up(self, tokens):
        time.sleep(2.5)
    def train(self, tokens, seed, seconds, *a, **k):
        return {**super().train(tokens, seed, seconds, *a, **k), "peak_memory_mb": seconds}
    """
    tree = put(tmp_path, honest(body))
    told = run(tree, dataset, steps=2, seconds=100.0, score=False)
    assert told.ok, told.detail
    # Each of the two set-ups takes 2.5 s at least; of the second all but one second is taken away, of the first nothing.
    assert 103.5 - told.setup_seconds < told.peak_memory_mb < 98.6
    assert run(tree, dataset, steps=2, seconds=1.0, score=False).failure == "late"


def test_a_large_state_buys_no_time_after_the_bell(tmp_path: Path, dataset: Dataset) -> None:
    body = """
    def __init__(self, spec):
        super().__init__(spec)
        self.model.register_buffer("ballast", torch.zeros(512 << 20, dtype=torch.uint8))
    def train(self, tokens, seed, seconds, *a, **k):
        time.sleep(2)
        return {**super().train(tokens, seed, seconds, *a, **k), "peak_memory_mb": seconds}
    """
    tree = put(tmp_path, honest(body))
    told = run(tree, dataset, steps=2, seconds=100.0, score=False, fresh=True)
    assert told.ok, told.detail
    assert told.peak_memory_mb < 99.5


def test_work_in_a_child_process_after_the_bell_is_seen(tmp_path: Path, dataset: Dataset) -> None:
    body = """
    def train(self, *a, **k):
        import multiprocessing
        found = super().train(*a, **k)
        for _ in range(2):
            multiprocessing.get_context("fork").Process(target=burn, daemon=True).start()
        return found
    """
    source = (
        honest(body)
        + "\ndef burn():\n    end = time.monotonic() + 20\n    while time.monotonic() < end: pass\n"
    )
    assert run(put(tmp_path, source), dataset, steps=5, fresh=True).failure == "off_clock"


@pytest.mark.parametrize(("hand_over", "said"), [
    ("end = time.process_time() + 0.5\n            while time.process_time() < end: pass", "processor time when it was asked for its weights"),
    ("time.sleep(4)", "had not handed over its weights"),
], ids=["works", "waits"])  # fmt: skip
def test_what_a_model_does_when_it_is_asked_for_its_weights_is_no_training(
    tmp_path: Path, dataset: Dataset, hand_over: str, said: str
) -> None:
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
    result = run(put(tmp_path, honest(body)), dataset, steps=5, fresh=True)
    assert result.failure == "off_clock", result.detail
    assert said in result.detail


def test_what_is_handed_over_long_after_the_bell_is_late(tmp_path: Path, dataset: Dataset) -> None:
    body = """
    def train(self, tokens, seed, seconds, *a, **k):
        found = super().train(tokens, seed, seconds, *a, **k)
        plain = self.model.state_dict
        def state_dict(*a, **k):
            time.sleep(1.5)
            return plain(*a, **k)
        self.model.state_dict = state_dict
        return found
    """
    result = run(put(tmp_path, honest(body)), dataset, None, seconds=2.0, fresh=True)
    assert result.failure == "late", result.detail
    assert "its weights were not there" in result.detail


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
    result = run(put(tmp_path, honest(body)), dataset, fresh=True)
    assert result.failure == "off_clock", result.detail
    assert "scoring took" in result.detail


@pytest.mark.parametrize("share", [0.01, 0.02])
def test_a_peek_at_the_next_token_now_and_then_is_seen(share: float) -> None:
    """By a model that tells one token in a hundred perfectly, where its own guess is worst, and asks the future nowhere else."""
    generator = torch.Generator().manual_seed(7)
    V, T, seen = 200, 256, 0
    for _ in range(20):
        frequency = torch.rand(V, generator=generator) ** 3
        stream = torch.multinomial(frequency, 32 * T + 1, replacement=True, generator=generator)
        inputs, targets = scoring.rows(stream.numpy(), T, bos=0)
        exam = scoring.Exam(inputs, targets, torch.ones(V, dtype=torch.int64), len(stream))
        guess = torch.log(frequency / frequency.sum())
        # where the unigram's own nats are highest it peeks, by what comes next
        nats = -guess[targets]
        peeks = nats >= nats.flatten().quantile(1 - share)
        marks = nats.masked_fill(peeks, 0.0)
        told = exam.told(torch.arange(32), marks)
        cuts = [scoring._behind(row, generator) for row in told]
        seen += any(bool(peeks[i, cut - 1]) for i, cut in enumerate(cuts))
    assert seen == 20


@pytest.mark.parametrize("peeking", [2, 5])
def test_a_look_ahead_in_a_few_rows_of_many_is_seen(peeking: int) -> None:
    """By a model that sees the next token in two rows of two hundred, whose first token tells it which, and knows frequencies elsewhere."""
    generator = torch.Generator().manual_seed(7)
    V, T, R = 64, 32, 200
    frequency = torch.rand(V, generator=generator) ** 3
    stream = torch.multinomial(frequency, R * T + 1, replacement=True, generator=generator)
    inputs, targets = scoring.rows(stream.numpy(), T, bos=0)
    inputs[:, 0] = torch.arange(R) % V
    inputs[:peeking, 0] = V - 1
    inputs[peeking:, 0].clamp_(max=V - 2)
    exam = scoring.Exam(inputs, targets, torch.ones(V, dtype=torch.int64), len(stream) - 1)
    arena = Arena(64 << 20)

    def logits(do: str, *, rows: Where, out: Where, **_: object) -> dict[str, object]:
        wanted, into = arena.view(rows), arena.view(out)
        into.copy_(torch.log(frequency).expand_as(into))
        for row in (wanted[:, 0] == V - 1).nonzero().flatten():
            ahead = torch.cat([wanted[row, 1:], wanted[row, :1]])
            into[row].scatter_(1, ahead[:, None], 20.0)
        return {}

    judge = SimpleNamespace(arena=arena, ask=logits)
    for _ in range(10):
        with pytest.raises(Refused) as refused:
            scoring.mark(judge, exam, limit_s=60.0, tell=lambda _: None)
        assert refused.value.kind == "leak"
    arena.close()


def test_a_look_ahead_at_few_positions_is_seen_where_there_is_time_to_ask() -> None:
    """By a model that sees the next token at one position of fifty, where it is hard, and makes it no easier than others are."""
    generator = torch.Generator().manual_seed(7)
    V, T, R = 64, 32, 512
    stream = torch.randint(1, V, (R * T + 1,), generator=generator)
    inputs, targets = scoring.rows(stream.numpy(), T, bos=0)
    exam = scoring.Exam(inputs, targets, torch.ones(V, dtype=torch.int64), len(stream) - 1)
    arena = Arena(64 << 20)

    def logits(do: str, *, rows: Where, out: Where, **_: object) -> dict[str, object]:
        wanted, into = arena.view(rows), arena.view(out)
        into.zero_()
        peeks = (wanted[:, :-1] * 31 + torch.arange(T - 1)) % 50 == 0
        ahead = torch.nn.functional.one_hot(wanted[:, 1:], V) * peeks[..., None]
        into[:, :-1] += 0.5 * ahead
        return {}

    judge = SimpleNamespace(arena=arena, ask=logits)
    seen = 0
    for _ in range(4):
        try:
            _, marks = scoring.mark(judge, exam, limit_s=60.0, tell=lambda _: None)
            scoring.confirm(judge, exam, marks, probe_s=2.0)
        except Refused as refused:
            seen += refused.kind == "leak"
    assert seen == 4
    arena.close()


@pytest.mark.parametrize("leans", [0.0, 0.15])
def test_a_small_lean_towards_every_next_token_is_seen_in_a_process_that_knows_no_row(
    leans: float,
) -> None:
    """By a model that gives a beginning that it has seen the future that it saw then, so that nothing moves where it is asked twice."""
    generator = torch.Generator().manual_seed(7)
    V, T, R = 64, 256, 160
    stream = torch.randint(1, V, (R * T + 1,), generator=generator)
    inputs, targets = scoring.rows(stream.numpy(), T, bos=0)
    exam = scoring.Exam(inputs, targets, torch.ones(V, dtype=torch.int64), len(stream) - 1)

    def judge(arena: Arena) -> SimpleNamespace:
        seen: dict[tuple[int, ...], torch.Tensor] = {}

        def logits(do: str, *, rows: Where, out: Where, **_: object) -> dict[str, object]:
            wanted, into = arena.view(rows), arena.view(out)
            first = [seen.setdefault(tuple(row[:4].tolist()), row.clone()) for row in wanted]
            ahead = torch.nn.functional.one_hot(torch.stack(first)[:, 5:], V)
            into.copy_(1e-4 * torch.randn(into.shape))  # rounding
            into[:, 4:-1] += leans * ahead
            return {}

        return SimpleNamespace(arena=arena, ask=logits)

    for _ in range(4):
        arena = Arena(64 << 20)
        expected = pytest.raises(Refused, match="at the cut") if leans else contextlib.nullcontext()
        _, marks = scoring.mark(judge(arena), exam, limit_s=60.0, tell=lambda _: None)
        with expected:
            scoring.confirm(judge(arena), exam, marks, probe_s=0.0)
        arena.close()


def test_who_answers_slowly_is_asked_about_the_future_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs, targets = scoring.rows(np.arange(1, 200 * 32 + 2) % 64, 32, bos=0)
    exam = scoring.Exam(inputs, targets, torch.ones(64, dtype=torch.int64), 200 * 32)
    arena, asked = Arena(64 << 20), []

    def logits(do: str, *, rows: Where, out: Where, **_: object) -> dict[str, object]:
        asked.append(rows["shape"][0])
        arena.view(out).zero_()
        time.sleep(0.05)
        return {}

    marks = torch.full(inputs.shape, math.log(64))
    judge = SimpleNamespace(arena=arena, ask=logits)
    monkeypatch.setattr(scoring, "LEAST_ROWS_S", 100.0)
    scoring.confirm(judge, exam, marks, probe_s=1.0)
    assert sum(asked) >= scoring.AGAIN_ROWS + scoring.LEAST_ROWS + 100
    arena.close()


@pytest.mark.parametrize(
    ("vocab_size", "rows"), [(8192, 16), (32768, 15), (65536, 7), (1 << 18, 1)]
)
def test_as_many_rows_are_asked_at_once_as_the_arena_holds(vocab_size: int, rows: int) -> None:
    judge = SimpleNamespace(arena=SimpleNamespace(size=ARENA_BYTES))
    assert scoring.rows_at_once(judge, 2048, vocab_size) == rows


def test_no_question_of_an_exam_outlasts_its_time_limit() -> None:
    inputs, targets = scoring.rows(np.arange(1, 40 * 32 + 2) % 64, 32, bos=0)
    exam = scoring.Exam(inputs, targets, torch.ones(64, dtype=torch.int64), 40 * 32)
    arena, limits = Arena(64 << 20), []

    def logits(do: str, *, out: Where, timeout: float, **_: object) -> dict[str, object]:
        limits.append(timeout)
        arena.view(out).zero_()
        return {}

    judge = SimpleNamespace(arena=arena, ask=logits)
    scoring.mark(judge, exam, limit_s=5.0, tell=lambda _: None)
    assert max(limits) <= 5.0
    assert limits == sorted(limits, reverse=True)
    assert limits[-1] < limits[0]
    arena.close()


def test_a_document_s_start_is_no_good_prediction() -> None:
    targets, sizes = torch.tensor([[0, 1, 2, -1]]), torch.tensor([3, 2, 0])
    exam = scoring.Exam(torch.zeros_like(targets), targets, sizes, 5)
    told = exam.told(torch.tensor([0]), torch.zeros(1, 4))
    assert told[0].isinf().tolist() == [False, False, True, True]


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
    assert trial._classify(Refused("crash", said)) == "out_of_memory"


def test_a_long_curve_is_thinned_evenly_and_keeps_its_ends() -> None:
    losses = [[n, 9 - n / 1000] for n in range(1, 4001)]
    answer = {
        "steps": 4000,
        "tokens": 4000,
        "peak_memory_mb": 0,
        "losses": losses,
        "grad_norms": [],
    }
    found = Trained.read(answer)
    assert len(found.losses) <= trial_claims.MOST_POINTS
    assert found.losses[0] == losses[0]
    assert found.losses[-trial_claims.LAST_POINTS :] == losses[-trial_claims.LAST_POINTS :]
    steps = {b[0] - a[0] for a, b in itertools.pairwise(found.losses[: -trial_claims.LAST_POINTS])}
    assert len(steps) == 1
    assert found.final() == pytest.approx(5.002)


@pytest.mark.parametrize(
    "wrong", [{"tokens": 0.41}, {"steps": 0}, {"tokens": math.inf}, {"losses": 3}]
)
def test_a_training_that_says_nothing_possible_is_refused_in_words(
    wrong: dict[str, object],
) -> None:
    """Not a success of no tokens, of which every later contest would take the logarithm."""
    answer = {"steps": 4, "tokens": 4000, "peak_memory_mb": 0, "losses": [], "grad_norms": []}
    with pytest.raises(Refused, match=r"model/train.py: expected \{steps, tokens") as refused:
        trial_claims.read(Trained, answer | wrong)
    assert refused.value.kind == "structure"


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


# ---- honest models ----

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
def test_an_honest_oddity_passes(
    name: str, tmp_path: Path, dataset: Dataset, baseline: TrialResult
) -> None:
    result = run(put(tmp_path, honest(ODDITIES[name])), dataset)
    assert result.ok, f"{result.failure}: {result.detail}"
    assert result.val_bpb < math.log2(dataset.vocab_size)
