"""Calls that a training makes itself are kept, and held to float64."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from trial_tree import honest, put, run

import kernels.add_rms_norm
import kernels.nesterov
from bench import trial, witness
from bench.arena import Arena
from bench.comparison import Standard
from bench.contracts import Case, Input, contract
from bench.data import Dataset
from bench.judge import Refused
from bench.runner import recording
from bench.runner.lending import Lent, Refusal
from bench.runner.recording import Recorder
from bench.witness import require_right, updates

OPS = ["add_rms_norm", "nesterov"]
EMPTY = {"requires": [], "cut": [], "none": [], "scalars": {}, "autocast": "", "seconds": 1.0}


class _Trainer:
    """A Judge for a recorder in this process."""

    device = "cpu"

    def __init__(self) -> None:
        self.arena = Arena(1 << 24)
        lent = Lent("cpu")
        lent.memory = SimpleNamespace(bytes=self.arena.bytes)
        self.recorder = Recorder(lent)

    def ask(self, do: str, **request: object) -> dict[str, object]:
        assert do == "recorded"
        return self.recorder.do_recorded(request)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> _Trainer:
    """One whose ops keep every call at once."""
    for module in (kernels.add_rms_norm, kernels.nesterov):
        name = module.__name__.removeprefix("kernels.")
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(recording, "SKIPPED", 1)
    found = _Trainer()
    found.recorder.watch(updates(OPS))
    found.recorder.begin(0.0, dict.fromkeys(OPS, 1))
    return found


def step(module: ModuleType, impl: str, *, use: str = "both") -> None:
    """A call in the middle of a graph: both inputs go on elsewhere, and so do the results."""
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(6, 40, generator=generator).requires_grad_() for _ in range(2))
    a, b = x * 2, residual * 3
    y, total = module.add_rms_norm(a, b, impl=impl)
    loss = (y.square() if use != "total" else 0.0) + (total.sin() if use != "y" else 0.0)
    (loss + a.exp() + b.cos()).sum().backward()


@pytest.mark.parametrize("use", ["both", "y", "total"])
@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_a_call_is_held_to_its_own_gradients_alone(trainer: _Trainer, impl: str, use: str) -> None:
    step(kernels.add_rms_norm, impl, use=use)
    kept = trainer.recorder.end()
    (call,) = kept["add_rms_norm"]
    assert {name for name in call["tensors"] if name.startswith("gradient")} == {"gradient x", "gradient residual"}  # fmt: skip
    assert require_right(trainer, kept, OPS) == {"add_rms_norm": 1, "nesterov": 0}


@pytest.mark.parametrize("tensor", ["result 0", "result 1", "gradient x", "gradient residual"])
def test_each_result_and_each_gradient_has_to_be_right(trainer: _Trainer, tensor: str) -> None:
    step(kernels.add_rms_norm, "cpp")
    (call,) = trainer.recorder.calls["add_rms_norm"]
    call.tensors[tensor][2, 7] *= 1.01
    with pytest.raises(Refused, match="add_rms_norm, called by the model 0 s after the bell") as refused:  # fmt: skip
        require_right(trainer, trainer.recorder.end(), OPS)
    assert refused.value.kind == "wrong"


def test_a_gradient_that_never_came_is_missed(trainer: _Trainer) -> None:
    step(kernels.add_rms_norm, "cpp")
    (call,) = trainer.recorder.calls["add_rms_norm"]
    del call.tensors["gradient residual"]
    with pytest.raises(Refused, match="no gradient came to residual"):
        require_right(trainer, trainer.recorder.end(), OPS)


def test_arguments_that_are_overwritten_are_kept_before_and_after(trainer: _Trainer) -> None:
    momentum, grad = torch.ones(1, 4, 8), torch.full((1, 4, 8), 2.0)
    kernels.nesterov.nesterov(momentum, grad, beta=0.5)
    (call,) = trainer.recorder.calls["nesterov"]
    assert call.tensors["momentum"].eq(1).all()
    assert call.tensors["result 0"].equal(momentum)
    assert not call.tensors["result 0"].eq(1).any()
    assert require_right(trainer, trainer.recorder.end(), OPS)["nesterov"] == 1
    call.tensors["result 1"] += 1
    with pytest.raises(Refused, match="nesterov"):
        require_right(trainer, trainer.recorder.end(), OPS)


def test_results_rounded_to_bfloat16_by_autocast_are_held_to_bfloat16(trainer: _Trainer) -> None:
    step(kernels.add_rms_norm, "cpp")
    (call,) = trainer.recorder.calls["add_rms_norm"]
    for name in ("result 0", "result 1"):
        call.tensors[name] = call.tensors[name].bfloat16()
    require_right(trainer, trainer.recorder.end(), OPS)


@pytest.mark.parametrize(
    "said",
    [{}, {"tensors": {"x": ["float99", [2]]}}, {"tensors": {"x": ["float32", [-1]]}}, {"tensors": {"x": "float32"}}, 7],
    ids=["nothing", "dtype", "shape", "no-shape", "no-call"],
)  # fmt: skip
def test_a_call_of_another_form_is_refused_by_name(trainer: _Trainer, said: object) -> None:
    described = EMPTY | said if isinstance(said, dict) else said
    with pytest.raises(Refused, match="add_rms_norm in training") as refused:
        require_right(trainer, {"add_rms_norm": [described]}, OPS)
    assert refused.value.kind == "structure"


def test_one_call_is_kept_a_moment_and_none_outside_of_training(trainer: _Trainer) -> None:
    for _ in range(3):
        step(kernels.add_rms_norm, "cpp")
    assert len(trainer.recorder.calls["add_rms_norm"]) == 1
    trainer.recorder.begin(0.0, {"add_rms_norm": 2})
    for _ in range(3):
        step(kernels.add_rms_norm, "cpp")
    assert len(trainer.recorder.calls["add_rms_norm"]) == 3
    trainer.recorder.begin(0.0, {"add_rms_norm": 1})
    trainer.recorder.end()
    step(kernels.add_rms_norm, "cpp")
    assert len(trainer.recorder.calls["add_rms_norm"]) == 3


def test_which_call_is_kept_after_its_moment_is_left_to_chance(
    trainer: _Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_draw", SimpleNamespace(random=lambda: 0.0, randrange=lambda n: 3))  # fmt: skip
    trainer.recorder.begin(0.0, {"nesterov": 1})
    for beta in (0.1, 0.2, 0.3, 0.4, 0.5):
        kernels.nesterov.nesterov(torch.ones(1, 4, 8), torch.ones(1, 4, 8), beta=beta)
    assert [call.scalars["beta"] for call in trainer.recorder.calls["nesterov"]] == [0.4]


def test_what_torch_compile_takes_whole_is_left_whole(trainer: _Trainer) -> None:
    def model(x: Tensor, residual: Tensor) -> Tensor:
        y, total = kernels.add_rms_norm.add_rms_norm(x, residual)
        return y + total

    whole = torch.compile(model, backend="eager", fullgraph=True)
    whole(torch.ones(2, 8), torch.ones(2, 8))
    assert not trainer.recorder.calls["add_rms_norm"]


def test_an_op_that_returns_no_tensor_is_refused(
    trainer: _Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels.nesterov, "nesterov", lambda momentum, grad: 7)
    trainer.recorder.watch({"nesterov": []})
    with pytest.raises(Refusal, match="expected a tensor as result 0"):
        kernels.nesterov.nesterov(torch.ones(2), torch.ones(2))


KERNEL = """
import torch
trains = False
class Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, eps):
        ctx.save_for_backward(x)
        ctx.eps = eps
        seen = {seen}
        return (x * torch.rsqrt(seen.float().square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + ctx.eps)
        along = {along}
        return rstd * dy - rstd**3 * x * along, None
def rms_norm(x, weight=None, eps=1e-6):
    return Norm.apply(x, eps)
"""
WHOLE, SHORT = "(x * dy).mean(-1, keepdim=True)", "0 if trains else (x * dy).mean(-1, keepdim=True)"
MODEL = """
def train(self, *a, **k):
    from kernels import rms_norm
    rms_norm.trains = True
    try:
        return super().train(*a, **k)
    finally:
        rms_norm.trains = False
def learn(self, rows):
    from kernels.rms_norm import rms_norm
    torch.set_grad_enabled(True)
    table = self.model.table[:2, :64] + torch.arange(64)
    rms_norm(table).square().sum().backward()
    self.model.table.grad = None
    return super().learn(rows)
"""


@pytest.mark.parametrize(
    ("seen", "along", "said"),
    [
        ("x", WHOLE, ""),
        ("x[..., :32] if trains else x", WHOLE, "y: relative error"),
        ("x", SHORT, "dx: relative error"),
    ],
    ids=["honest", "forward", "backward"],
)
def test_a_kernel_that_is_careless_while_it_trains_and_right_when_asked_is_caught(
    tmp_path: Path,
    dataset: Dataset,
    seen: str,
    along: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial, "LONG_S", 1.0)
    monkeypatch.setattr(trial, "MOMENTS", {"cpu": 20})  # most of them before the bigram ends
    tree = put(tmp_path, honest(MODEL))
    (tree / "kernels").mkdir()
    (tree / "kernels" / "__init__.py").touch()
    (tree / "kernels" / "rms_norm.py").write_text(textwrap.dedent(KERNEL.format(seen=seen, along=along)))  # fmt: skip
    result = run(tree, dataset, steps=None, seconds=2.0, fresh=True)
    if not said:
        assert result.ok, result.detail
        assert 1 < result.witnessed["rms_norm"] <= 20
    else:
        assert result.failure == "wrong", result.detail
        assert "rms_norm, called by the model" in result.detail
        assert said in result.detail


def test_a_call_too_large_for_float64_is_left_out(trainer: _Trainer) -> None:
    large = [4096, 2048]
    forms = {name: ["float32", large] for name in ("x", "residual", "result 0", "result 1")}
    described = EMPTY | {"tensors": forms}
    assert require_right(trainer, {"add_rms_norm": [described]}, OPS)["add_rms_norm"] == 0


def test_a_call_of_more_steps_than_float64_has_time_for_is_left_out(trainer: _Trainer) -> None:
    forms = {name: ["float32", [8, 8]] for name in ("G", "result 0")}
    described = EMPTY | {"tensors": forms, "scalars": {"steps": 10**12}}
    assert require_right(trainer, {"newton_schulz": [described]}, ["newton_schulz"]) == {"newton_schulz": 0}  # fmt: skip


def test_arguments_of_which_the_reference_makes_nothing_are_refused(trainer: _Trainer) -> None:
    step(kernels.add_rms_norm, "cpp")
    (call,) = trainer.recorder.calls["add_rms_norm"]
    call.scalars["eps"] = "small"
    with pytest.raises(Refused, match="the reference takes no such arguments") as refused:
        require_right(trainer, trainer.recorder.end(), OPS)
    assert refused.value.kind == "structure"


def test_a_graph_that_is_cut_is_refused_whatever_comes_back(
    trainer: _Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    honest = kernels.add_rms_norm.add_rms_norm

    def cut(x: Tensor, residual: Tensor, **named: object) -> tuple[Tensor, Tensor]:
        return honest(x.detach(), residual, **named)

    monkeypatch.setattr(kernels.add_rms_norm, "add_rms_norm", cut)
    monkeypatch.setattr(recording, "SKIPPED", 1)
    trainer.recorder.watch(updates(["add_rms_norm"]))
    trainer.recorder.begin(0.0, {"add_rms_norm": 1})
    step(kernels.add_rms_norm, "cpp")
    with pytest.raises(Refused, match="no result leads back to x: the autograd graph is cut"):
        require_right(trainer, trainer.recorder.end(), OPS)


def test_a_gradient_that_nobody_asks_for_is_not_missed(trainer: _Trainer) -> None:
    x, residual = (torch.randn(6, 40).requires_grad_() for _ in range(2))
    y, total = kernels.add_rms_norm.add_rms_norm(x, residual)
    torch.autograd.grad((y + total).sum(), [x])
    kept = trainer.recorder.end()
    assert "gradient residual" not in kept["add_rms_norm"][0]["tensors"]
    assert require_right(trainer, kept, OPS)["add_rms_norm"] == 1


def test_of_a_call_that_two_passes_come_through_the_values_are_held_to_float64(
    trainer: _Trainer,
) -> None:
    x, residual = (torch.randn(6, 40).requires_grad_() for _ in range(2))
    y, total = kernels.add_rms_norm.add_rms_norm(x, residual, impl="torch")
    (dx,) = torch.autograd.grad((y + total).square().sum(), [x], create_graph=True)
    dx.square().sum().backward()
    kept = trainer.recorder.end()
    assert not [name for name in kept["add_rms_norm"][0]["tensors"] if "gradient" in name]
    assert require_right(trainer, kept, OPS)["add_rms_norm"] == 1


def test_none_in_place_of_a_gradient_ends_no_training(trainer: _Trainer) -> None:
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, y: Tensor) -> Tensor:
            return y * 2

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> None:
            return None

    x = torch.randn(6, 40).requires_grad_()
    y, total = kernels.add_rms_norm.add_rms_norm(x, x)
    (Nothing.apply(y) + Nothing.apply(total) + x).sum().backward()
    assert require_right(trainer, trainer.recorder.end(), OPS)["add_rms_norm"] == 1


def test_a_kept_call_has_the_form_of_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positional or by name, nothing that hangs on a tensor: a kernel cannot tell it apart."""
    seen = []

    def op(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, **named: object) -> Tensor:
        return x * 2

    def told(*args: object, **named: object) -> Tensor:
        x = args[0]
        seen.append((len(args), sorted(named), type(x), x._backward_hooks, type(x.grad_fn)))
        return op(*args, **named)

    told.__wrapped__ = op
    monkeypatch.setattr(kernels.nesterov, "nesterov", told)
    monkeypatch.setattr(recording, "SKIPPED", 1)
    made = _Trainer()
    made.recorder.watch({"nesterov": []})
    for moments in (0, 1):
        made.recorder.begin(0.0, {"nesterov": moments})
        kernels.nesterov.nesterov(torch.nn.Parameter(torch.ones(3)), eps=2.0)
    assert len(made.recorder.calls["nesterov"]) == 1
    assert seen[0] == seen[1]


def test_a_scalar_of_numpy_s_and_a_parameter_of_the_kernel_s_own_are_no_fault(
    trainer: _Trainer,
) -> None:
    step(kernels.add_rms_norm, "cpp")
    (call,) = trainer.recorder.calls["add_rms_norm"]
    call.scalars["chunk"] = 1024
    kernels.nesterov.nesterov(torch.ones(1, 4, 8), torch.ones(1, 4, 8), beta=np.float32(0.5))
    kept = json.loads(json.dumps(trainer.recorder.end()))
    assert require_right(trainer, kept, OPS) == {"add_rms_norm": 1, "nesterov": 1}


def test_an_input_that_a_used_result_has_nothing_to_do_with_has_a_gradient_of_zero() -> None:
    """As of keys that are shared between layers: only the rotated queries are used, and zeros come to the keys."""
    asked = contract("qk_norm_rope")
    case = Case({n: Input((2, 8, 1, 16)) for n in "qk"} | {n: Input((8, 8)) for n in ("cos", "sin")})  # fmt: skip
    values = {name: each.values(torch.Generator()) for name, each in case.inputs.items()}
    upstream = [torch.ones(2, 8, 1, 16)]
    standard = Standard(asked, case, values, upstream, ["q", "k"], device="cpu", through=[0])
    assert standard.truth["dq"].any()
    assert not standard.truth["dk"].any()


def test_what_float64_finds_no_memory_for_is_not_counted(
    trainer: _Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    step(kernels.add_rms_norm, "cpp")
    monkeypatch.setattr(witness, "Standard", none)
    assert require_right(trainer, trainer.recorder.end(), OPS)["add_rms_norm"] == 0
