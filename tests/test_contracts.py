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
    cases = [*(asked.draw(rng) for _ in range(20)), asked.telling(rng)[0], asked.large(rng)]
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


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("op", ops())
def test_what_is_timed_is_what_a_model_calls_that_trains_in_this_dtype(op: str, dtype: str) -> None:
    asked, rng = contract(op), random.Random(0)
    timed = asked.timed("cpu", dtype, rng)
    assert sum(case.calls for case in timed) == sum(case.calls for case in asked.trial["cpu"])
    other = {"bfloat16": "float32", "float32": "bfloat16"}[dtype]
    trained = {
        "rms_norm": "x", "add_rms_norm": "x", "attention": "q", "qk_norm_rope": "q", "relu2_mlp": "w_up", "linear_cross_entropy": "h",
        "newton_schulz": "G", "muon_update": "update",
    }  # fmt: skip
    for case in timed:
        if op in trained:
            assert case.inputs[trained[op]].dtype == dtype
        assert dtype == "bfloat16" or other not in {i.dtype for i in case.inputs.values()}
    if op == "qk_norm_rope":
        assert {case.inputs["q"].apart for case in timed} == {3}
    if op == "linear_cross_entropy":
        assert {case.inputs["W"].dtype for case in timed} == {"float32"}
