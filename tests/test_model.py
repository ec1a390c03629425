"""The model as the judge meets it: what a trial relies on, at a size that trains in seconds."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from model import train
from model.gpt import GPT, OPS, GPTConfig, configure
from model.optim import RATES, MuonAdamW

VOCABULARY, T = 97, 32
SPEC = {
    "vocab_size": VOCABULARY,
    "bos": 96,
    "sequence_length": T,
    "device": "cpu",
    "seconds": 3.0,
    "impl": None,
}


def tiny(dtype: torch.dtype = torch.float32, **changes) -> GPTConfig:
    config = configure("cpu", VOCABULARY, T)
    size = {"depth": 3, "dim": 64, "head_dim": 32, "window_pattern": "SSSL", "short_window": 8}
    return dataclasses.replace(config, **size, dtype=dtype, **changes)


def model(**options) -> GPT:
    gpt = GPT(tiny(**options))
    gpt.initialize(seed=0)
    return gpt


def trained(**options) -> GPT:
    """A model whose zero-initialised projections have left zero, so that every path carries signal."""
    gpt = model(**options)
    with torch.no_grad():
        for weight in gpt.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return gpt


def rows(count: int, length: int = T) -> torch.Tensor:
    return torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> train.Trainer:
    """A Trainer of the tiny size; everything else as in a trial."""
    monkeypatch.setattr(
        train, "configure", lambda device, V, T, impl, size: tiny(impl=dict(impl or {}))
    )
    monkeypatch.setattr(
        train, "batch_for", lambda device, config: train.Batch(rows=8, micro_rows=8)
    )
    return train.Trainer(SPEC)


def corpus(length: int = 4000) -> torch.Tensor:
    """A text with a rule to learn: each token is a fixed function of the one before, but for one in eight."""
    generator = torch.Generator().manual_seed(3)
    tokens, noise = [1], torch.rand(length, generator=generator)
    for i in range(length - 1):
        tokens.append(
            (5 * tokens[-1] + 7) % VOCABULARY if noise[i] > 0.125 else int(noise[i] * 700)
        )
    return torch.tensor(tokens, dtype=torch.int32).to(torch.uint16)


@pytest.mark.parametrize("length", [1, 9, T])
def test_logits_are_capped_float32_of_the_rows_shape(length: int) -> None:
    z = trained().logits(rows(3, length))
    assert z.shape == (3, length, VOCABULARY)
    assert z.dtype == torch.float32
    assert z.abs().max() <= 15.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_before_a_changed_token_do_not_move(dtype: torch.dtype) -> None:
    gpt, before = trained(dtype=dtype), rows(4)
    after = before.clone()
    after[:, 19:] = (after[:, 19:] + 1) % VOCABULARY
    with torch.no_grad():
        a, b = gpt.logits(before), gpt.logits(after)
    assert torch.equal(a[:, :19], b[:, :19])
    assert not torch.equal(a[:, 19], b[:, 19])


def test_logits_of_a_row_do_not_depend_on_its_neighbours() -> None:
    gpt, x = trained(), rows(4)
    with torch.no_grad():
        torch.testing.assert_close(gpt.logits(x)[1], gpt.logits(x.flip(0))[2], rtol=0, atol=1e-6)
        assert torch.equal(gpt.logits(x), gpt.logits(x))


def test_forward_is_the_cross_entropy_of_the_logits() -> None:
    gpt, x = trained(), rows(4, T + 1)
    loss = gpt(x[:, :-1], x[:, 1:])
    expected = torch.nn.functional.cross_entropy(
        gpt.logits(x[:, :-1]).transpose(1, 2), x[:, 1:], reduction="none"
    )
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_initial_loss_is_that_of_a_uniform_guess() -> None:
    x = rows(4, T + 1)
    loss = model()(x[:, :-1], x[:, 1:]).mean().item()
    assert loss == pytest.approx(math.log(VOCABULARY), abs=0.02)


def test_windows_follow_the_pattern_and_end_long() -> None:
    windows = tiny().windows
    assert windows == [8, 8, None]
    assert dataclasses.replace(tiny(), depth=6).windows == [8, 8, 8, None, 8, None]


def test_every_weight_gets_a_gradient_and_moves() -> None:
    gpt = trained()
    optimizer = train.MuonAdamW(gpt)
    before = {name: weight.detach().clone() for name, weight in gpt.named_parameters()}
    x = rows(4, T + 1)
    gpt(x[:, :-1], x[:, 1:]).mean().backward()
    for name, weight in gpt.named_parameters():
        assert weight.grad is not None, name
        assert (
            weight.grad.abs().amax(dim=tuple(range(1, weight.ndim))).min() > 0 or "embed" in name
        ), name
    optimizer.step(rate=1.0, decay=1.0)
    for name, weight in gpt.named_parameters():
        assert not torch.equal(weight, before[name]), name


def test_impl_names_reach_every_op(monkeypatch: pytest.MonkeyPatch) -> None:
    used = set()

    def spy(op, function):
        def call(*args, impl=None, **kwargs):
            used.add((op, impl))
            return function(*args, impl=impl, **kwargs)

        return call

    for op, function in list(OPS.items()):
        monkeypatch.setitem(OPS, op, spy(op, function))
    gpt = trained(impl=dict.fromkeys(OPS, "torch"))
    x = rows(2, T + 1)
    gpt(x[:, :-1], x[:, 1:]).mean().backward()
    train.MuonAdamW(gpt).step(rate=1.0, decay=1.0)
    assert used == {(op, "torch") for op in OPS}


def test_torch_implementations_compute_the_same_model() -> None:
    x = rows(4, T + 1)
    mine, plain = (
        trained(impl=impl)(x[:, :-1], x[:, 1:]) for impl in ({}, dict.fromkeys(OPS, "torch"))
    )
    torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)


def test_describe_names_what_runs(trainer: train.Trainer) -> None:
    told = trainer.describe()
    assert told["num_params"] == sum(p.numel() for p in trainer.model.parameters())
    assert told["depth"] == 3
    assert told["flops_per_token"] > 6 * sum(
        p.numel() for p in (trainer.model.qkvo, trainer.model.up, trainer.model.down)
    )
    assert set(told["implementations"]) == set(OPS)


def test_an_op_that_the_model_does_not_call_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.gpt.ops", lambda: [*OPS, "another"])
    config = configure("cpu", VOCABULARY, T, {"another": "torch"})
    GPT(config)


def test_unknown_op_or_device_is_named() -> None:
    with pytest.raises(ValueError, match="rms_nrom"):
        configure("cpu", VOCABULARY, T, {"rms_nrom": "torch"})
    with pytest.raises(ValueError, match="tpu"):
        configure("tpu", VOCABULARY, T)
    with pytest.raises(ValueError, match="'large': expected one of cpu, cuda, autoresearch"):
        configure("cuda", VOCABULARY, T, size="large")


def test_autoresearchs_size_is_that_of_its_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Depth 8, width 512, half a million tokens a step, short windows of half the length: what its published figures belong to."""
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 << 30)
    )
    config = configure("cuda", 8192, 2048, size="autoresearch")
    assert (config.depth, config.dim, config.heads) == (8, 512, 4)
    assert config.windows == [1024, 1024, 1024, None, 1024, 1024, 1024, None]
    found = train.batch_for(torch.device("cuda"), config)
    assert found.rows * 2048 == 2**19
    assert found.micro_rows == 128
    with torch.device("meta"):
        assert MuonAdamW(GPT(config)).rates == RATES["autoresearch"]


def test_loss_falls_on_a_learnable_text(trainer: train.Trainer) -> None:
    result = trainer.train(corpus(), seed=0, seconds=60.0, report=lambda _: None, steps=40)
    assert result["steps"] == 40
    assert result["tokens"] == 40 * 8 * T
    assert result["losses"][0][1] == pytest.approx(math.log(VOCABULARY), abs=0.05)
    assert result["losses"][-1][1] < 0.6 * math.log(VOCABULARY)
    assert len(result["grad_norms"]) == len(result["losses"]) <= train.POINTS


def test_steps_and_seed_fix_the_weights_and_warm_up_leaves_nothing(trainer: train.Trainer) -> None:
    x = rows(2)

    def weights(seed: int) -> torch.Tensor:
        trainer.train(corpus(), seed=seed, seconds=60.0, report=lambda _: None, steps=4)
        return trainer.logits(x)

    trainer.warm_up(torch.randint(VOCABULARY, (2000,), dtype=torch.int32))
    first = weights(seed=5)
    assert torch.equal(first, weights(seed=5))
    assert not torch.equal(first, weights(seed=6))
    trainer.warm_up(torch.randint(VOCABULARY, (2000,), dtype=torch.int32))
    assert torch.equal(first, weights(seed=5))
    assert torch.equal(first, _fresh_logits(trainer, x))


def _fresh_logits(trainer: train.Trainer, x: torch.Tensor) -> torch.Tensor:
    other = train.Trainer(SPEC)  # never warmed up
    other.train(corpus(), seed=5, seconds=60.0, report=lambda _: None, steps=4)
    return other.logits(x)


def test_training_uses_the_time_and_keeps_it(
    trainer: train.Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which each step takes 0.1 s: a step is begun while twice its time is left, and 0.05 s."""
    now = 100.0
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: now))
    gradients = trainer._gradients

    def step_of_a_tenth(rows: torch.Tensor) -> torch.Tensor:
        nonlocal now
        now += 0.1
        return gradients(rows)

    monkeypatch.setattr(trainer, "_gradients", step_of_a_tenth)
    reports = []
    result = trainer.train(corpus(), seed=0, seconds=3.0, report=reports.append)
    assert result["steps"] == 28
    assert now == pytest.approx(102.8)
    assert 4 <= len(reports) <= 6
    assert {"step", "loss", "tokens", "elapsed"} <= set(reports[-1])


def test_micro_batches_add_up_to_the_batch(trainer: train.Trainer) -> None:
    trainer.model.initialize(0)
    x = rows(8, T + 1)
    whole = trainer._gradients(x)
    gradient = trainer.model.head.grad.clone()
    trainer.model.zero_grad()
    trainer.batch = train.Batch(rows=8, micro_rows=2)
    torch.testing.assert_close(trainer._gradients(x), whole)
    torch.testing.assert_close(trainer.model.head.grad, gradient, rtol=1e-4, atol=1e-6)


def test_batches_cover_an_epoch_without_overlap() -> None:
    tokens = torch.arange(1000, dtype=torch.int32)
    drawn = train.batches(tokens, rows=5, T=32, seed=0)
    seen = torch.cat([next(drawn) for _ in range(6)])
    assert seen.shape == (30, 33)
    # each row is a run of the text
    assert torch.equal(seen[:, 1:], seen[:, :1] + torch.arange(1, 33))
    assert len(set(seen[:, 0].tolist())) == 30
    assert len(set((seen[:, 0] % 32).tolist())) == 1


def test_batches_refuse_a_text_shorter_than_two_rows() -> None:
    with pytest.raises(ValueError, match="at least 65"):
        next(train.batches(torch.zeros(64, dtype=torch.int32), rows=1, T=32, seed=0))


def test_schedule_rises_holds_and_descends() -> None:
    rates = [train._rate(i / 100) for i in range(101)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[0] < 0.2
    assert rates[-1] == pytest.approx(train.FINAL_RATE)
    peak = rates.index(max(rates))
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_model_compiles_whole_and_agrees_with_eager() -> None:
    """aot_eager traces forward and backward like the default backend, without its minute of code generation."""
    gpt, x = trained(), rows(2, T + 1)
    compiled = torch.compile(gpt, fullgraph=True, dynamic=False, backend="aot_eager")
    loss = compiled(x[:, :-1], x[:, 1:]).mean()
    loss.backward()
    gradient = gpt.qkvo.grad.clone()
    gpt.zero_grad()
    expected = gpt(x[:, :-1], x[:, 1:]).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, gpt.qkvo.grad, rtol=1e-3, atol=1e-5)


def test_plain_attention_on_a_gpu_takes_rows_of_a_batch_in_as_many_pieces_as_its_scores_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An H100's 80 GB: 128 of 128 rows with the kernels, fewer where (T, T) scores are kept; always whole pieces."""
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 << 30)
    )
    plain = {"attention": "torch", "linear_cross_entropy": "torch"}
    gpu = torch.device("cuda")
    for sequence_length in (2048, 1536):
        fast = train.batch_for(gpu, configure("cuda", 8192, sequence_length))
        slow = train.batch_for(gpu, configure("cuda", 8192, sequence_length, plain))
        assert fast.rows == slow.rows
        assert fast.micro_rows == fast.rows
        assert 8 <= slow.micro_rows < 64
        assert slow.rows % slow.micro_rows == 0


def test_a_large_vocabulary_on_a_gpu_takes_smaller_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """131,072 words: the gradient of the logits alone would take 64 GiB of an H100's 80 in one piece."""
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 << 30)
    )
    found = train.batch_for(torch.device("cuda"), configure("cuda", 131072, 2048))
    assert 2 * 131072 * 2048 * found.micro_rows < 0.5 * (80 << 30)
