"""Marking a trained model: it maps rows of tokens to logits, and the judge alone knows the targets.

Every byte of the split counts once: bits = sum of -log2 p over the tokens, p by the judge's own softmax over the whole vocabulary, bytes = raw
UTF-8 length, asserted. Rows come in random order. They are marked in a process of their own, the scorer, which has never seen text: it got the
code and the weights. So nothing but weights carries over from training, and nothing but the row may decide its logits:

* some batches are asked again with other tokens from a cut on: logits before the cut must not move by more than rounding, which has no direction
  (a kernel may rescale a tile for one of its rows, and so round the others otherwise). Cuts are drawn over the whole row; every
  other cut is just behind a token that was predicted far better than its frequency explains, since whoever looks ahead now and then does it
  where that pays. One such batch has the rows that were predicted best of all: whoever looks ahead in five rows of two hundred gains 2.5 %, and
  would be missed in a third of trials (0.81^5) if rows were chosen by chance alone
* some rows, half of them those predicted best, are asked again in the process that trained: among other neighbours, in batches of other sizes, in
  train() and in eval() mode, and every other batch with another future. What the scorer learned from rows that it was asked, or remembers of
  their beginnings, is not known there
* there too more rows with another future, and with cuts anywhere, as many as there is time for, and LEAST_ROWS at least: a cut shows a look
  ahead at its own place alone, so that of 140 cuts one at least shows what happens at 2 % of all positions, more than nine times in ten
  (1 - 0.98^140). Who leans a little on every next token loses a little at the last place before a cut: over all cuts that is held against
  its own scatter
* a row that crosses from one document into the next is read whole, by every model alike
"""

from __future__ import annotations

import functools
import math
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.data import Dataset
from bench.judge import Judge, Progress, Refused

# Longest row that is scored: the judge's choice, so that every model sits the same exam.
SEQUENCE = {"cpu": 512, "cuda": 2048}
BATCH_ROWS = 16
PROBED_BATCHES = 1  # asked again with another future, beside the rows that were predicted best
AGAIN_ROWS = 32  # asked again in the process that trained, half of them predicted best
# More rows with another future, in any case, and for each second of `probe_s`, however slowly a model answers.
LEAST_ROWS, LEAST_ROWS_S = 32, 8.0
# A cut behind a well-predicted token is behind one of so many that were predicted best in the row.
TELLING = 50
LARGEST_LOGIT = 1e4
# A logit that moves no further than this with its future does not depend on it. One that moves by at most ROUNDED may have been rounded otherwise.
MOVED = 1e-3
# Between processes a kernel may round differently (its own autotuner, another batch size): a bf16 logit of 15 is known to 0.06. So a token
# may move by MOVED_NATS, the mean by MEAN_NATS: rounding has no direction, a gain has.
MOVED_NATS, MEAN_NATS = 0.25, 2e-3
# How much worse the last place before a cut may be on average: nats, and standard errors. Where nothing but the future differs, less.
CUT_NATS, CUT_ERRORS = 0.02, 4.0
MOST_CUT_NATS = 0.03  # however much they scatter: who looks ahead may add noise
ROUNDED_NATS = 1e-3
ROUNDED = 0.1  # of any logit: an attention that rescales lazily moved one by 0.0075
ASK_S = 120.0
SEES = "the model sees the future"
PURE = "a row's logits may depend on that row and on Trainer.model.state_dict() alone, whatever the model's mode"


def byte_sizes(dataset: Dataset, number: NDArray[np.int64]) -> Tensor:
    """The bytes that each token of the vocabulary spells, by the numbers of one trial."""
    sizes = torch.empty(dataset.vocab_size, dtype=torch.int64)
    sizes[torch.from_numpy(number)] = torch.from_numpy(dataset.token_bytes()).long()
    return sizes


def counted(targets: Tensor, sizes: Tensor) -> Tensor:
    """Which targets stand for bytes: a document's start does not, and -1 is none."""
    return (targets >= 0) & (sizes[targets.clamp(min=0)] > 0)


@dataclass(frozen=True)
class Exam:
    """Rows (R, T) of a split in the numbers of one trial, their targets (-1: none), and the bytes that each token spells."""

    inputs: Tensor
    targets: Tensor
    sizes: Tensor
    total_bytes: int

    @classmethod
    def of(cls, dataset: Dataset, split: str, number: NDArray[np.int64], T: int) -> Exam:
        inputs, targets = rows(number[np.asarray(dataset.tokens(split))], T, dataset.bos)
        sizes = byte_sizes(dataset, number)
        spelled = int(sizes[targets[targets >= 0]].sum())
        expected = dataset.val_bytes if split == "val" else dataset.test_bytes
        if spelled != expected:
            raise AssertionError(
                f"the {split} tokens spell {spelled} bytes, the text has {expected}"
            )
        return cls(inputs, targets, sizes, spelled)

    @property
    def vocab_size(self) -> int:
        return len(self.sizes)

    @functools.cached_property
    def unigram_nats(self) -> Tensor:
        """(V,) nats of each token under the unigram distribution of the targets, with one added to every count."""
        counts = torch.bincount(self.targets[self.targets >= 0], minlength=self.vocab_size)
        return -torch.log((counts + 1.0) / counts.sum())

    def gain(self, batch: Tensor, marks: Tensor) -> Tensor:
        """(B, T): by how many nats the rows' targets were predicted better than by their frequency; `marks` are the nats of each."""
        targets = self.targets[batch]
        gain = self.unigram_nats[targets.clamp(min=0)] - marks
        return gain.masked_fill(~counted(targets, self.sizes), -math.inf)

    def best_predicted(self, marks: Tensor, count: int) -> Tensor:
        """The rows whose targets were predicted best on average."""
        gain = self.gain(torch.arange(len(marks)), marks)
        known = counted(self.targets, self.sizes)
        mean = gain.masked_fill(~known, 0.0).sum(1) / known.sum(1).clamp(min=1)
        return mean.topk(min(count, len(mean))).indices


def rows_at_once(judge: Judge, T: int, vocab_size: int) -> int:
    """BATCH_ROWS, or as many as the lent memory has room for; one at least."""
    room = judge.arena.size - (64 << 20)
    return max(1, min(BATCH_ROWS, room // (4 * T * vocab_size)))


def rows(tokens: NDArray[Any], T: int, bos: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (R, T): every token but the first is a target once; the last row is filled up, and -1 there does not count."""
    stream = torch.from_numpy(tokens.astype(np.int64))
    count = -(-(len(stream) - 1) // T)
    inputs = torch.full((count * T,), bos)
    targets = torch.full((count * T,), -1)
    inputs[: len(stream) - 1] = stream[:-1]
    targets[: len(stream) - 1] = stream[1:]
    return inputs.view(count, T), targets.view(count, T)


def ask(
    judge: Judge,
    wanted: Tensor,
    vocab_size: int,
    *,
    training: bool | None = None,
    timeout: float = ASK_S,
) -> Tensor:
    """A view of the logits (B, T, V) that a runner wrote for rows (B, T), valid until its next request. `training`: the mode of the model, or None to
    leave it."""
    judge.arena.reset()
    where = judge.arena.place("int64", tuple(wanted.shape))
    judge.arena.view(where).copy_(wanted)
    out = judge.arena.place("float32", (*wanted.shape, vocab_size))
    logits = judge.arena.view(out)
    # Poisoned here and there: a row that is not written shows as a NaN.
    logits[:, ::16].fill_(math.nan)
    judge.ask("logits", timeout=timeout, rows=where, out=out, training=training)
    low, high = map(float, torch.aminmax(logits))
    if math.isnan(low + high):
        raise Refused("nan", "a logit is not a number")
    if max(-low, high) > LARGEST_LOGIT:
        raise Refused(
            "range",
            f"logits from {low:.3g} to {high:.3g}: expected finite values within +-{LARGEST_LOGIT:g} "
            "(to rule a token out, -1e4 is enough)",
        )
    return logits


def nats(logits: Tensor, targets: Tensor, sizes: Tensor) -> Tensor:
    """(B, T): -log p of each target that stands for bytes (a document's start does not), 0 elsewhere."""
    # row by row: the intermediate of one fits the cache
    found = [
        torch.nn.functional.cross_entropy(row, wanted, ignore_index=-1, reduction="none")
        for row, wanted in zip(logits, targets, strict=True)
    ]
    return torch.stack(found).masked_fill(~counted(targets, sizes), 0.0)


def mark(scorer: Judge, exam: Exam, *, limit_s: float, tell: Progress) -> tuple[float, Tensor]:
    """Bits per byte of the exam, and the nats of each token (R, T).

    Raises Refused: nan, range, state, leak, or timeout after `limit_s`.
    """
    generator = torch.Generator().manual_seed(secrets.randbits(48))
    deadline = time.monotonic() + limit_s
    order = torch.randperm(len(exam.inputs), generator=generator)
    T = exam.inputs.shape[1]
    at_once = rows_at_once(scorer, T, exam.vocab_size)
    batches = torch.split(order, at_once)
    probed = set(torch.randperm(len(batches), generator=generator)[:PROBED_BATCHES].tolist())
    marks = torch.zeros(exam.inputs.shape)
    at_cuts: list[Tensor] = []

    def asked(wanted: Tensor) -> Tensor:
        left = deadline - time.monotonic()
        try:
            return ask(scorer, wanted, exam.vocab_size, timeout=min(ASK_S, max(0.001, left)))
        except Refused as refused:
            if refused.kind != "timeout" or left >= ASK_S:
                raise
            said = f"the rows were not all scored within {limit_s:.0f} s: Trainer.logits has to take less time for a row"
            raise Refused("timeout", said) from None

    for i, batch in enumerate(batches):
        logits = asked(exam.inputs[batch])
        marks[batch] = nats(logits, exam.targets[batch], exam.sizes)
        if i in probed:
            before = logits.clone()
            at_cuts.append(_other_future(asked, exam, batch, before, marks[batch], generator))
        tell({"phase": "scoring", "fraction": (i + 1) / len(batches)})
    for batch in torch.split(exam.best_predicted(marks, BATCH_ROWS), at_once):
        before = asked(exam.inputs[batch]).clone()
        at_cuts.append(_other_future(asked, exam, batch, before, marks[batch], generator))
    if by := _leaning(at_cuts, ROUNDED_NATS):
        raise Refused("leak", f"scores move {by} when later tokens change: {SEES}")
    return float(marks.double().sum()) / math.log(2) / exam.total_bytes, marks


def _other_future(
    asked: Callable[[Tensor], Tensor],
    exam: Exam,
    batch: Tensor,
    before: Tensor,
    marks: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The same rows in the same places, with other tokens from a cut on: no logit before it may move, but by rounding.

    before: their logits (B, T, V). marks: the nats of their targets (B, T). Returns (B,): by how many nats the last token before each cut is
    predicted worse.
    """
    altered, late = _altered(exam, batch, exam.gain(batch, marks), generator)
    after = asked(altered)
    worse = nats(after, exam.targets[batch], exam.sizes)
    worse -= nats(before, exam.targets[batch], exam.sizes)
    moved = after.sub_(before).abs_().amax(-1).masked_fill(late, 0.0)
    if float(moved.max()) <= MOVED:
        return torch.zeros(len(batch))
    once_more = asked(exam.inputs[batch])
    by = float(once_more.sub_(before).abs_().max())
    if by > MOVED:
        raise Refused(
            "state", f"logits of the same rows move by {by:.2g} from call to call: {PURE}"
        )
    if float(moved.max()) <= ROUNDED:
        return worse.gather(1, (~late).sum(1, keepdim=True) - 1)[:, 0]
    row = int(moved.amax(1).argmax())
    said = f"logits before position {int((~late[row]).sum())} move by {float(moved.max()):.2g} when later tokens change"
    raise Refused("leak", f"{said}: {SEES}")


def confirm(
    trainer: Judge,
    exam: Exam,
    marks: Tensor,
    probe_s: float,
    *,
    answered: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Ask AGAIN_ROWS rows in the process that trained, in other batches than before, every other batch with another future; then LEAST_ROWS rows that
    this process was never asked, and as many more as `probe_s` seconds allow, all with another future.

    marks: (R, T), the nats of each target as `mark` found them. answered: is called with the number of tokens of the first answer, once it is there.
    Raises Refused: state, leak, nan, range, or timeout of a single request.
    """
    generator = torch.Generator().manual_seed(secrets.randbits(48))
    best = exam.best_predicted(marks, AGAIN_ROWS // 2)
    drawn = torch.randperm(len(exam.inputs), generator=generator)
    others = drawn[~torch.isin(drawn, best)][: AGAIN_ROWS - len(best)]
    chosen = torch.cat([best, others])
    chosen = chosen[torch.randperm(len(chosen), generator=generator)]
    most = min(8, rows_at_once(trainer, exam.inputs.shape[1], exam.vocab_size))
    same: list[Tensor] = []
    altered: list[Tensor] = []
    at_cuts: list[Tensor] = []

    def with_another_future(batch: Tensor, gain: Tensor | None, training: bool | None) -> None:
        wanted, late = _altered(exam, batch, gain, generator)
        logits = ask(trainer, wanted, exam.vocab_size, training=training)
        moved = nats(logits, exam.targets[batch], exam.sizes) - marks[batch]
        altered.append(moved[~late])
        at_cuts.append(moved.gather(1, (~late).sum(1, keepdim=True) - 1)[:, 0])

    began = time.monotonic()
    for i, batch in enumerate(_unequal(chosen, most, generator)):
        training = bool(i // 2 % 2)
        if i % 2:
            with_another_future(batch, exam.gain(batch, marks[batch]), training)
        else:
            logits = ask(trainer, exam.inputs[batch], exam.vocab_size, training=training)
            moved = nats(logits, exam.targets[batch], exam.sizes) - marks[batch]
            same.append(moved.flatten())
            if i == 0:
                answered(len(batch) * exam.inputs.shape[1])
    # Rows that this process was never asked: what it remembers tells it nothing of their futures.
    rows_s = max(LEAST_ROWS_S, len(chosen) / (time.monotonic() - began))
    more = drawn[~torch.isin(drawn, chosen)][: LEAST_ROWS + int(probe_s * rows_s)]
    for batch in torch.split(more, most):
        if len(batch):
            with_another_future(batch, None, None)
    if by := _moved(same):
        raise Refused(
            "state", f"scores of a row move {by} with its batch, its turn or its process: {PURE}"
        )
    if by := _moved(altered) or _leaning(at_cuts, CUT_NATS):
        raise Refused("leak", f"scores move {by} when later tokens change: {SEES}")


def _leaning(parts: list[Tensor], allowed: float) -> str:
    """By how much the last places before cuts are worse, if that is no chance; else ""."""
    moved = torch.cat(parts) if parts else torch.zeros(1)
    mean, error = float(moved.mean()), float(moved.std(correction=0)) / math.sqrt(len(moved))
    if mean <= max(allowed, min(CUT_ERRORS * error, MOST_CUT_NATS)):
        return ""
    return f"by {mean:+.2g} nats at the cut"


def _moved(parts: list[Tensor]) -> str:
    """By how much scores moved, if that is more than rounding; else ""."""
    moved = torch.cat(parts) if parts else torch.zeros(1)
    mean, largest = float(moved.mean()), float(moved.abs().max())
    if abs(mean) <= MEAN_NATS and largest <= MOVED_NATS:
        return ""
    return f"by {mean:+.2g} nats in the mean and {largest:.2g} at most"


def _altered(
    exam: Exam, batch: Tensor, gain: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The rows with other tokens from a cut on, one a row; and where that is, (B, T) bool. `gain`: Exam.gain, or None for cuts anywhere.

    Half of the other tokens come as often as they do in the text, half are any of the vocabulary: who looks ahead may look at common ones alone.
    """
    wanted = exam.inputs[batch]
    T = wanted.shape[1]
    if gain is None:
        cuts = torch.randint(1, T, (len(batch),), generator=generator)
    else:
        cuts = torch.tensor(
            [_behind(row, generator) if i % 2 else _cut(T, generator) for i, row in enumerate(gain)]
        )
    late = torch.arange(T) >= cuts[:, None]
    any_token = torch.randint(0, exam.vocab_size, wanted.shape, generator=generator)
    places = torch.randint(0, exam.inputs.numel(), wanted.shape, generator=generator)
    usual = torch.rand(wanted.shape, generator=generator) < 0.5
    others = torch.where(usual, exam.inputs.flatten()[places], any_token)
    return torch.where(late, others, wanted), late


def _behind(gain: Tensor, generator: torch.Generator) -> int:
    """Just behind one of the tokens of a row that were predicted best: the logits that predicted it lie before the cut, the token does not."""
    T = len(gain)
    best = gain[: T - 1].topk(max(1, T // TELLING)).indices
    return 1 + int(best[torch.randint(0, len(best), (1,), generator=generator)])


def _cut(T: int, generator: torch.Generator) -> int:
    """Anywhere in a row or, as often, at the border of a tile or beside it: a mask that is off by one there shows nowhere else."""
    anywhere, tile, beside = map(int, torch.randint(0, 1 << 30, (3,), generator=generator))
    if anywhere % 2 or T < 32:
        return 1 + tile % (T - 1)
    size = 8 << tile % (T.bit_length() - 4)
    return min(
        T - 1, size * (1 + anywhere // 2 % max(1, T // size - 1)) + (0, 0, -1, 1)[beside % 4]
    )


def _unequal(chosen: Tensor, most: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The rows in batches of one to `most`."""
    while len(chosen):
        size = int(torch.randint(1, most + 1, (1,), generator=generator))
        yield chosen[:size]
        chosen = chosen[size:]
