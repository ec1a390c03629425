"""Marking a model: what counts, how a look ahead is found, and that nobody gets more time; on models that are a few lines."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench import scoring
from bench.arena import ARENA_BYTES, Arena, Where
from bench.judge import Refused


@pytest.fixture(autouse=True)
def draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge draws in secret, and misses a look ahead now and then; a test that fails should fail again."""
    drawn = SimpleNamespace(randbits=random.Random(7).getrandbits)
    monkeypatch.setattr(scoring, "secrets", drawn)


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(64 << 20)
    yield arena
    arena.close()


def exam_of(stream: Any, T: int, V: int) -> scoring.Exam:
    """Rows of T tokens of a stream, each a byte."""
    inputs, targets = scoring.rows(np.asarray(stream), T, bos=0)
    return scoring.Exam(inputs, targets, torch.ones(V, dtype=torch.int64), len(stream) - 1)


def counting(rows: int) -> scoring.Exam:
    return exam_of(np.arange(1, rows * 32 + 2) % 64, 32, 64)


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


@pytest.mark.parametrize("share", [0.01, 0.02])
def test_a_peek_at_the_next_token_now_and_then_is_seen(share: float) -> None:
    """By a model that tells one token in a hundred perfectly, where its own guess is worst, and asks the future nowhere else."""
    generator = torch.Generator().manual_seed(7)
    V, T, seen = 200, 256, 0
    for _ in range(20):
        frequency = torch.rand(V, generator=generator) ** 3
        stream = torch.multinomial(frequency, 32 * T + 1, replacement=True, generator=generator)
        exam = exam_of(stream, T, V)
        guess = torch.log(frequency / frequency.sum())
        # where the unigram's own nats are highest it peeks, by what comes next
        nats = -guess[exam.targets]
        peeks = nats >= nats.flatten().quantile(1 - share)
        marks = nats.masked_fill(peeks, 0.0)
        gain = exam.gain(torch.arange(32), marks)
        cuts = [scoring._behind(row, generator) for row in gain]
        seen += any(bool(peeks[i, cut - 1]) for i, cut in enumerate(cuts))
    assert seen == 20


@pytest.mark.parametrize("peeking", [2, 5])
def test_a_look_ahead_in_a_few_rows_of_many_is_seen(peeking: int, arena: Arena) -> None:
    """By a model that sees the next token in two rows of two hundred, whose first token tells it which, and knows frequencies elsewhere."""
    generator = torch.Generator().manual_seed(7)
    V, T, R = 64, 32, 200
    frequency = torch.rand(V, generator=generator) ** 3
    stream = torch.multinomial(frequency, R * T + 1, replacement=True, generator=generator)
    exam = exam_of(stream, T, V)
    exam.inputs[:, 0] = torch.arange(R) % V
    exam.inputs[:peeking, 0] = V - 1
    exam.inputs[peeking:, 0].clamp_(max=V - 2)

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


def test_a_look_ahead_at_few_positions_is_seen_where_there_is_time_to_ask(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a model that sees the next token at one position of fifty, where it is hard, and makes it no easier than others are."""
    generator = torch.Generator().manual_seed(7)
    V, T, R = 64, 32, 512
    exam = exam_of(torch.randint(1, V, (R * T + 1,), generator=generator), T, V)

    def logits(do: str, *, rows: Where, out: Where, **_: object) -> dict[str, object]:
        wanted, into = arena.view(rows), arena.view(out)
        into.zero_()
        peeks = (wanted[:, :-1] * 31 + torch.arange(T - 1)) % 50 == 0
        ahead = torch.nn.functional.one_hot(wanted[:, 1:], V) * peeks[..., None]
        into[:, :-1] += 0.5 * ahead
        return {}

    judge = SimpleNamespace(arena=arena, ask=logits)
    # two seconds are enough for all rows, however long the first take on a busy machine
    monkeypatch.setattr(scoring, "LEAST_ROWS_S", 240.0)
    seen = 0
    for _ in range(4):
        try:
            _, marks = scoring.mark(judge, exam, limit_s=60.0, tell=lambda _: None)
            scoring.confirm(judge, exam, marks, probe_s=2.0)
        except Refused as refused:
            seen += refused.kind == "leak"
    assert seen == 4


@pytest.mark.parametrize("leans", [0.0, 0.15])
def test_a_small_lean_towards_every_next_token_is_seen_in_a_process_that_knows_no_row(
    leans: float, arena: Arena
) -> None:
    """By a model that gives a beginning that it has seen the future that it saw then, so that nothing moves where it is asked twice."""
    generator = torch.Generator().manual_seed(7)
    V, T, R = 64, 256, 160
    exam = exam_of(torch.randint(1, V, (R * T + 1,), generator=generator), T, V)

    def judge() -> SimpleNamespace:
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
        expected = pytest.raises(Refused, match="at the cut") if leans else contextlib.nullcontext()
        _, marks = scoring.mark(judge(), exam, limit_s=60.0, tell=lambda _: None)
        with expected:
            scoring.confirm(judge(), exam, marks, probe_s=0.0)


@pytest.mark.parametrize("leans", [0.0, 0.02])
def test_rounding_that_depends_on_the_future_is_no_look_ahead_but_a_lean_within_it_is(
    leans: float, arena: Arena
) -> None:
    """By a model whose tiles of eight rows are rounded otherwise where a later token asks for it, as by an attention that rescales lazily."""
    V, T = 64, 256
    drawn = torch.Generator().manual_seed(7)
    exam = exam_of(torch.randint(1, V, (64 * T + 1,), generator=drawn), T, V)
    noise = 0.01 * torch.randn(64, T, V, generator=drawn)

    def logits(do: str, *, rows: Where, out: Where, **_: object) -> dict[str, object]:
        wanted, into = arena.view(rows), arena.view(out)
        asks = wanted.view(-1, T // 8, 8).amax(-1).repeat_interleave(8, 1)
        into.copy_(noise[asks % 64, torch.arange(T)])
        into[:, :-1] += leans * torch.nn.functional.one_hot(wanted[:, 1:], V)
        return {}

    judge = SimpleNamespace(arena=arena, ask=logits)
    for _ in range(8):
        expected = pytest.raises(Refused, match="at the cut") if leans else contextlib.nullcontext()
        with expected:
            scoring.mark(judge, exam, limit_s=60.0, tell=lambda _: None)


def test_who_answers_slowly_is_asked_about_the_future_all_the_same(
    monkeypatch: pytest.MonkeyPatch, arena: Arena
) -> None:
    exam, asked, now = counting(200), [], [0.0]

    def logits(do: str, *, rows: Where, out: Where, **_: object) -> dict[str, object]:
        asked.append(rows["shape"][0])
        arena.view(out).zero_()
        now[0] += 0.05
        return {}

    marks = torch.full(exam.inputs.shape, math.log(64))
    judge = SimpleNamespace(arena=arena, ask=logits)
    monkeypatch.setattr(scoring, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(scoring, "LEAST_ROWS_S", 100.0)
    scoring.confirm(judge, exam, marks, probe_s=1.0)
    assert sum(asked) >= scoring.AGAIN_ROWS + scoring.LEAST_ROWS + 100


@pytest.mark.parametrize(
    ("vocab_size", "rows"), [(8192, 16), (32768, 15), (65536, 7), (1 << 18, 1)]
)
def test_as_many_rows_are_asked_at_once_as_the_arena_holds(vocab_size: int, rows: int) -> None:
    judge = SimpleNamespace(arena=SimpleNamespace(size=ARENA_BYTES))
    assert scoring.rows_at_once(judge, 2048, vocab_size) == rows


def test_no_question_of_an_exam_outlasts_its_time_limit(arena: Arena) -> None:
    limits = []

    def logits(do: str, *, out: Where, timeout: float, **_: object) -> dict[str, object]:
        limits.append(timeout)
        arena.view(out).zero_()
        return {}

    judge = SimpleNamespace(arena=arena, ask=logits)
    scoring.mark(judge, counting(40), limit_s=5.0, tell=lambda _: None)
    assert max(limits) <= 5.0
    assert limits == sorted(limits, reverse=True)
    assert limits[-1] < limits[0]


def test_a_document_s_start_is_no_good_prediction() -> None:
    targets, sizes = torch.tensor([[0, 1, 2, -1]]), torch.tensor([3, 2, 0])
    exam = scoring.Exam(torch.zeros_like(targets), targets, sizes, 5)
    gain = exam.gain(torch.tensor([0]), torch.zeros(1, 4))
    assert gain[0].isinf().tolist() == [False, False, True, True]


def test_an_exam_that_takes_too_long_says_how_long_it_may_take(arena: Arena) -> None:
    def late(do: str, *, timeout: float, **_: object) -> dict[str, object]:
        raise Refused("timeout", f"no answer to '{do}' within {timeout:.0f} s")

    judge = SimpleNamespace(arena=arena, ask=late)
    with pytest.raises(Refused, match="not all scored within 5 s") as refused:
        scoring.mark(judge, counting(40), limit_s=5.0, tell=lambda _: None)
    assert refused.value.kind == "timeout"
