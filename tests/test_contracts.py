"""What a contract states of its op, held against its own reference."""

from __future__ import annotations

import random

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.contracts import contract, ops


@pytest.mark.parametrize("op", ops())
def test_the_references_results_have_the_shapes_and_dtypes_that_the_contract_states(
    op: str,
) -> None:
    asked, rng = contract(op), random.Random(0)
    cases = [*(asked.draw(rng) for _ in range(50)), asked.telling(rng)[0], asked.large(rng)]
    with FakeTensorMode():  # shapes and dtypes alone
        for case in [*cases, *asked.corners(rng), *asked.trial["cpu"], *asked.trial["cuda"]]:
            inputs = {
                name: torch.empty(wanted.shape, dtype=getattr(torch, wanted.dtype))
                for name, wanted in case.inputs.items()
            }
            found = asked.reference(**inputs, **case.scalars)
            found = found if isinstance(found, tuple) else (found,)
            for result, stated in zip(found, asked.shapes(case).values(), strict=True):
                assert tuple(result.shape) == stated.shape, case.label()
                # an argument that a call overwrites keeps its own, whatever the reference computes in
                if not asked.in_place:
                    assert str(result.dtype) == f"torch.{stated.dtype}", case.label()


@pytest.mark.parametrize("op", ["muon_update", "nesterov", "newton_schulz"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_op_of_muon_is_called_for_each_of_the_models_three_banks(op: str, device: str) -> None:
    assert sum(case.calls for case in contract(op).trial[device]) == 3
