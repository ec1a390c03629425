"""The correctness gate passes what ships, repeats itself under a seed, and reports which check a candidate failed."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from warm import Warm

from bench import correctness_origin, correctness_values
from bench.contracts import Case, Input, captured, contract, written
from bench.finding import Finding
from bench.implementations import names_in
from bench.judge import Refused
from bench.runner import calls
from model.gpt import OPS

ROOT = Path(__file__).resolve().parent.parent
SEED = 7  # the gate draws a secret one; a test that fails should fail again
PLAIN = """import torch


def rms_norm(x, weight=None, eps=1e-6):
    xf = x.float()
    y = (xf * torch.rsqrt(xf.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    {body}
    return y if weight is None else y * weight
"""


def of_plain(warm: Warm, body: str) -> Finding:
    """What the gate finds of another rms_norm."""
    with warm.replaced("kernels/rms_norm.py", PLAIN.format(body=body).encode()):
        return warm.check("rms_norm", SEED)


@pytest.mark.slow
@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("op", written(ROOT))
def test_shipped_kernel_passes_and_the_evidence_says_how_much_of_the_tolerance_was_used(
    op: str, warm: Warm
) -> None:
    finding = warm.check(op, SEED)
    assert finding.passed, finding.reason
    rows = {row["impl"]: row["tensors"] for row in finding.evidence["implementations"]}
    ours = names_in(ROOT / "kernels" / f"{op}.py") & {"cpp"}  # a first kernel may be plain torch
    assert {"default", *ours} <= set(rows)
    assert all(0 <= each["used"] <= 1 for tensors in rows.values() for each in tensors)
    if op == "rms_norm":
        assert {each["tensor"] for each in rows["default"]} == {"y", "dx", "dweight"}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("y = y * 1.01", "wrong"),
        ("y = torch.nan_to_num(y)", "nan"),
        ("y = y.detach()", "structure"),
        ("eps = 1e-6; xf = x.float(); y = (xf * torch.rsqrt(xf.square().mean(-1, keepdim=True) + eps)).to(x.dtype)", "wrong"),
        ("y = torch.nn.functional.rms_norm(x, (x.shape[-1],), None, eps)", "library"),
        ("y = torch.nn.Parameter(y)", "structure"),
        ("torch.rand(1)", "global state"),
        # not while Dynamo looks: that of torch 2.11 refuses to trace it
        ("torch.compiler.is_compiling() or setattr(torch.Tensor, 'cumsum', lambda self, *args: self)", "global state"),
        ("x.mul_(2) if not x.requires_grad else None", "mutation"),
        # in the model's own memory, which the runner's copies stand for: by too little for a value to show it
        ("x.data.mul_(1 + 2 ** -20) if 'Clone' in repr(x.grad_fn) else None", "structure"),
    ],
    ids=["value", "swallowed-nan", "cut-graph", "argument", "library", "graph", "global-state", "method", "mutation", "mutated-copy"],
)  # fmt: skip
def test_a_refusal_names_its_check(body: str, kind: str, warm: Warm) -> None:
    finding = of_plain(warm, body)
    assert not finding.passed
    assert finding.evidence["kind"] == kind, finding.reason
    assert finding.evidence["cases"] > 0 or kind != "wrong"


@pytest.mark.parametrize("op", sorted(OPS))
def test_every_op_of_the_model_has_captured_arguments_of_its_own_signature(op: str) -> None:
    found = captured.cases(op)
    assert found
    for case, values in found:
        inputs = {n: t.double() if t.is_floating_point() else t for n, t in values.items()}
        results = contract(op).reference(**inputs, **case.scalars)
        results = results if isinstance(results, tuple) else (results,)
        assert all(bool(result.isfinite().all()) for result in results)
        # recorded, and not constant
        first = next(iter(values.values())).double()
        assert float(first.std()) > 0


@pytest.mark.parametrize(
    ("launches", "honest"),
    [({"_rms_norm_fwd_kernel", "triton_poi_fused_0"}, True), ({"triton_poi_fused_0"}, False), (set(), False)],
    ids=("its_own", "torch_compile's", "none"),
)  # fmt: skip
def test_on_a_gpu_a_call_launches_a_triton_kernel_of_the_file(
    launches: set[str], honest: bool
) -> None:
    """Without a GPU: what a runner there would tell of a call."""
    asked: list[str] = []

    def ask(do: str, **request: object) -> dict[str, object]:
        asked.append(do)
        return {"operators": ["aten::empty"], "launches": sorted(launches)}

    judge = SimpleNamespace(device="cuda", tree=ROOT, ask=ask)
    lay = SimpleNamespace(call={})
    exam = SimpleNamespace(
        judge=judge, rng=random.Random(0), lay=lambda case: lay, impl=None, named="impl=default"
    )
    subject = SimpleNamespace(
        exam=exam, contract=contract("rms_norm"), default="triton", trial=[None]
    )
    with contextlib.nullcontext() if honest else pytest.raises(Refused, match="does not run"):
        correctness_origin.own_work(subject)
    assert set(asked) == {"trace"}


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_a_causal_op_may_have_any_arguments(looks_ahead: bool) -> None:
    """Running means of x over time, or the mean of all of it."""
    generator = torch.Generator().manual_seed(0)

    def lay(case: Case, wrt: tuple[str, ...]) -> SimpleNamespace:
        inputs = {name: each.values(generator) for name, each in case.inputs.items()}
        return SimpleNamespace(inputs=inputs)

    def ask(laid: SimpleNamespace) -> dict[str, torch.Tensor]:
        x = laid.inputs["x"]
        whole = x.mean(1, keepdim=True).expand_as(x)
        return {"y": whole if looks_ahead else x.cumsum(1)}

    exam = SimpleNamespace(
        impl=None,
        rng=random.Random(0),
        generator=generator,
        lay=lay,
        ask=ask,
        put=lambda laid, name, values: laid.inputs.update({name: values}),
        where=Case.label,
    )
    case = Case({"x": Input((2, 9, 4))})
    op = SimpleNamespace(time_axis={"x": 1, "y": 1}, results={"y": "x"})
    subject = SimpleNamespace(exam=exam, contract=op, drawn=[case], trial=[case])
    leak = pytest.raises(Refused, match="depends on inputs from")
    with leak if looks_ahead else contextlib.nullcontext():
        correctness_values.future(subject)


def test_what_torch_registers_when_it_is_first_used_is_no_change_of_the_candidates(
    warm: Warm,
) -> None:
    assert of_plain(warm, "torch.vmap(torch.neg)(torch.ones(2, 2))").passed


def test_a_result_that_is_its_input_shares_memory_also_as_a_parameter() -> None:
    x = torch.ones(4)
    for result in (x.view(2, 2), torch.nn.Parameter(x, requires_grad=False)):
        assert calls._overlap(result, x)
    assert not calls._overlap(x.clone(), x)
