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
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import naive_trial
import numpy as np
import pytest
import torch
from warm import Trials

from bench import shard, trial, trial_claims
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
    expected = contextlib.nullcontext() if used else pytest.raises(Refused, match="is the least")
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
    cheat: Path, tmp_path: Path, dataset: Dataset, baseline: TrialResult, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    # the bigram and its cheats learn in a second what a trial of five minutes has 10 s for
    monkeypatch.setattr(trial, "LOOKED_SLACK_S", 0.3)
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
    # Each of the two set-ups takes 2.5 s at least; of the second all but one second is taken away, of the first nothing. What the model
    # guesses takes a part of a second.
    assert 102.0 - told.setup_seconds < told.peak_memory_mb < 98.6
    assert run(tree, dataset, steps=2, seconds=1.0, score=False).failure == "late"


def test_what_the_model_does_when_it_is_asked_what_it_guesses_counts_as_set_up(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trial.SETUP_FREE_S, "cpu", 1.0)
    body = f"""
    def logits(self, rows):
        if len(rows) == {trial.GUESSED_ROWS} and not hasattr(self, "practised"):
            self.practised = time.sleep(2.5)
        return super().logits(rows)
    def train(self, tokens, seed, seconds, *a, **k):
        return {{**super().train(tokens, seed, seconds, *a, **k), "peak_memory_mb": seconds}}
    """
    told = run(put(tmp_path, honest(body)), dataset, steps=2, seconds=100.0, score=False)
    assert told.ok, told.detail
    assert told.peak_memory_mb < 98.6


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
    tmp_path: Path, dataset: Dataset, hand_over: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "process_time" in hand_over:
        # Where other work has the cores, half a second of processor time takes any time.
        monkeypatch.setattr(trial, "TAKEN_S", 60.0)
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
    result = run(put(tmp_path, honest(body)), dataset, fresh=True)
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
    result = run(put(tmp_path, honest(body)), dataset, fresh=True)
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
    "wrong",
    [
        {"tokens": 0.41},
        {"steps": 0},
        {"tokens": math.inf},
        {"losses": 3},
        {"tokens": 10**400},
        {"steps": 10**400},
    ],
)
def test_a_training_that_says_nothing_possible_is_refused_in_words(
    wrong: dict[str, object],
) -> None:
    """Not a success of no tokens, of which every later contest would take the logarithm."""
    answer = {"steps": 4, "tokens": 4000, "peak_memory_mb": 0, "losses": [], "grad_norms": []}
    with pytest.raises(Refused, match=r"model/train.py: expected \{steps, tokens") as refused:
        trial_claims.read(Trained, answer | wrong)
    assert refused.value.kind == "structure"


def test_a_model_of_more_weights_than_anybody_can_count_is_refused_in_words() -> None:
    answer = {"num_params": 10**400, "depth": 1, "flops_per_token": 1.0, "implementations": {}}
    with pytest.raises(Refused, match="a count of more than 1e.15") as refused:
        trial_claims.read(Described, answer)
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
