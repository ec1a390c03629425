"""A NaN may spread as far as it does in the reference, and as far as torch itself spreads it on the machine; no further."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import examination, overread, planting
from bench.arena import Arena
from bench.contracts import Case, Contract, Input, contract
from bench.examination import Examination
from bench.judge import Refused

Norm = Callable[..., Tensor]
CASES = [
    Case({"x": Input((9, 5), "bfloat16", layout=layout)}) for layout in ("contiguous", "padded")
]


def plain(x: Tensor, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def leaking(x: Tensor, eps: float = 1e-6) -> Tensor:
    """In bfloat16 a row reads the first three of the next, times zero."""
    y = plain(x, eps)
    if x.dtype == torch.bfloat16:
        y[:-1] += 0.0 * x[1:, :3].sum(-1, keepdim=True)
    return y


def swallowing(x: Tensor, eps: float = 1e-6) -> Tensor:
    return plain(x, eps).nan_to_num()


class InProcess:
    """A judge whose runner is a function."""

    device = "cpu"

    def __init__(self, op: Norm) -> None:
        self.op, self.arena = op, Arena(1 << 20)

    def ask(self, do: str, *, call: dict[str, Any], **request: object) -> None:
        x = self.arena.view(call["inputs"]["x"])
        self.arena.view(call["outputs"][0]).copy_(self.op(x))


@contextlib.contextmanager
def examined(op: Norm, reference: Norm) -> Iterator[Examination]:
    meant: Contract = replace(contract("rms_norm"), reference=reference)
    judge = InProcess(op)
    try:
        yield Examination(meant, judge, seed=3)
    finally:
        judge.arena.close()


def check(op: Norm, reference: Norm) -> None:
    with examined(op, reference) as exam:
        for _ in range(8):
            for case in CASES:
                planting.check(exam, exam.lay(case, ()))


@pytest.mark.parametrize("reference", [plain, leaking])
def test_what_shows_a_nan_where_it_is_seen_and_nowhere_else_passes(reference: Norm) -> None:
    check(plain, reference)


def test_a_nan_that_leaks_into_another_row_is_refused() -> None:
    with pytest.raises(Refused, match="spreads to elements of y that do not depend on it"):
        check(leaking, plain)


@pytest.mark.parametrize("reference", [plain, leaking])
def test_a_swallowed_nan_is_refused(reference: Norm) -> None:
    with pytest.raises(Refused, match="is swallowed"):
        check(swallowing, reference)


def test_a_nan_may_leak_where_the_plain_implementation_leaks_on_this_machine() -> None:
    check(leaking, leaking)


def test_what_was_laid_is_as_before_when_a_leak_was_looked_into() -> None:
    with examined(leaking, leaking) as exam:
        laid = exam.lay(CASES[1], ())
        before = laid.inputs["x"].clone()
        planting.check(exam, laid)
        assert torch.equal(exam.judge.arena.view(laid.call["inputs"]["x"]), before)
        assert torch.equal(laid.inputs["x"], before)


@pytest.mark.parametrize("overreads", [False, True])
def test_what_lies_between_rows_is_a_nan_or_huge_where_torch_reads_it(
    overreads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "torch_overreads", lambda: overreads)
    case = Case({"x": Input((9, 5), "bfloat16", layout="padded")})
    with examined(plain, plain) as exam:
        laid = exam.lay(case, ())
        where = laid.call["inputs"]["x"]
        behind = {**where, "strides": [1], "shape": [where["strides"][0] - 5]}
        gap = exam.judge.arena.view({**behind, "offset": where["offset"] + 5 * 2})
        assert bool(gap.isnan().all()) != overreads
        assert not overreads or bool((gap > 1e36).all())


def test_a_byte_that_is_huge_is_finite_in_every_floating_dtype() -> None:
    for dtype, least in ((torch.bfloat16, 1e36), (torch.float32, 1e36), (torch.float16, 6e4)):
        value = torch.full((8,), examination.HUGE, dtype=torch.uint8).view(dtype)
        assert bool(value.isfinite().all())
        assert float(value[0].float()) > least
        assert bool(torch.full((8,), examination.NAN, dtype=torch.uint8).view(dtype).isnan().all())


def test_only_a_cpu_with_tiles_reads_past_a_row() -> None:
    assert overread.torch_overreads() <= torch.cpu._is_amx_tile_supported()
