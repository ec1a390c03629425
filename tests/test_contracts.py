"""What a contract states of its op, held against its own reference."""

from __future__ import annotations

import random

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.contracts import contract, ops
from model.gpt import configure


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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_case_of_the_trial_counts_as_often_as_a_step_of_the_model_makes_the_call(
    device: str,
) -> None:
    model = configure(device, 8192, 512)
    wanted = dict.fromkeys(("muon_update", "nesterov", "newton_schulz"), 3)  # banks
    each_layer = "add_rms_norm", "attention", "qk_norm_rope", "relu2_mlp"
    wanted |= dict.fromkeys(each_layer, model.depth)
    wanted |= {"rms_norm": model.depth + 2, "linear_cross_entropy": 1}
    wanted["adamw"] = len(model.value_layers) + 2  # the tables of the vocabulary's size
    for op, calls in wanted.items():
        assert sum(case.calls for case in contract(op).trial[device]) == calls, op
