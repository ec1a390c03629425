"""The judge's own arithmetic on tensors of a GPU, by their shapes and devices alone: fake ones need none."""

from __future__ import annotations

import random

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from bench.arena import Arena
from bench.arms import one_row
from bench.contracts import Case, contract, ops
from bench.device_memory import DEVICE_BYTES
from bench.staging import Contents, Stage

NUMBERS = "_local_scalar_dense|not linked"


def on_a_gpu(case: Case) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros(wanted.shape, dtype=getattr(torch, wanted.dtype), device="cuda")
        for name, wanted in case.inputs.items()
    }


@pytest.mark.parametrize("op", ops())
def test_what_a_contract_computes_stays_on_the_device_of_its_inputs(op: str) -> None:
    asked = contract(op)
    with FakeTensorMode():
        for case in map(one_row, asked.trial["cuda"]):  # in chunks, 65,536 rows take 5 s
            inputs = on_a_gpu(case)
            results = asked.reference(**inputs, **case.scalars)
            results = results if isinstance(results, tuple) else (results,)
            assert {result.device.type for result in results} == {"cuda"}
            if asked.terms is None:
                continue
            upstream = [torch.zeros(r.shape, device="cuda") for r in results]
            # It comes to the numbers, which a fake tensor has not, and a build without CUDA no way to ask for.
            with pytest.raises((DataDependentOutputException, RuntimeError), match=NUMBERS):
                asked.terms(inputs, upstream, case.scalars)


@pytest.mark.parametrize("op", ops())
def test_two_input_sets_of_a_gpus_shapes_find_room_in_the_memory_that_is_lent(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.staging._pool", lambda wanted, generator: None)  # seconds of drawing
    asked = contract(op)
    for case in asked.trial["cuda"]:
        arena = Arena(DEVICE_BYTES)
        contents = Contents(asked, case, random.Random(0), device="cuda")
        assert contents.sets() >= 2
        Stage(contents, arena)  # a MemoryError where it has no room
        arena.close()
