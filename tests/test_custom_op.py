"""A kernel is a custom op to whoever looks at operators, and a plain function to whoever only calls it."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from kernels import CustomOp, choose, overwrite
from kernels.add_rms_norm import add_rms_norm
from kernels.attention import attention
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.relu2_mlp import relu2_mlp
from kernels.rms_norm import rms_norm


class Seen(TorchDispatchMode):
    """The operators that are called in it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def tripled(x: Tensor) -> Tensor:
    return x * 3


def doubled_in_place(x: Tensor) -> None:
    x.numpy()[...] *= 2  # which torch does not see


def op(name: str) -> CustomOp:
    found = CustomOp(name, tripled)
    found.register_fake(torch.empty_like)
    found.register_autograd(lambda ctx, g: g * 3, setup_context=lambda ctx, inputs, output: None)
    return found


def test_a_plain_call_and_a_watched_one_have_the_same_result_and_gradient() -> None:
    triple = op("tested_triple")
    for watch in (False, True):
        x = torch.ones(4, requires_grad=True)
        with Seen() if watch else profile() as seen:
            y = triple(x)
            (gradient,) = torch.autograd.grad(y.sum(), x)
        assert y.tolist() == [3.0] * 4
        assert gradient.tolist() == [3.0] * 4
        called = seen.names if watch else [event.name for event in seen.function_events]
        assert ("kernels::tested_triple" in called) == watch


def test_the_compiler_and_fake_tensors_see_one_operator() -> None:
    triple = op("tested_whole")
    x = torch.ones(4, requires_grad=True)
    compiled = torch.compile(lambda x: triple(x) + 1, fullgraph=True, backend="aot_eager")
    (gradient,) = torch.autograd.grad(compiled(x).sum(), x)
    assert compiled(x).tolist() == [4.0] * 4
    assert gradient.tolist() == [3.0] * 4
    with FakeTensorMode():
        assert triple(torch.empty(2, 3)).shape == (2, 3)


def test_a_second_derivative_is_refused() -> None:
    x = torch.ones(4, requires_grad=True)
    (gradient,) = torch.autograd.grad(op("tested_twice")(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("watch", [False, True])
def test_a_penalty_on_a_gradient_beside_the_loss_is_not_lost(watch: bool) -> None:
    """What comes down is a constant, and the gradient depends on x all the same."""
    x = torch.arange(1.0, 5.0).requires_grad_()
    with Seen() if watch else contextlib.nullcontext():
        loss = rms_norm(x, impl="cpp").sum()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivative"):
            torch.autograd.grad(loss + gradient.square().sum(), x)
        (again,) = torch.autograd.grad(loss, x, create_graph=True)
    assert torch.equal(gradient, again)


def test_a_graph_of_a_gradient_that_is_recomputed_takes_its_tensors_out_once() -> None:
    x = torch.arange(1.0, 5.0).requires_grad_()
    y = checkpoint(rms_norm, x, use_reentrant=False, impl="cpp")
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (plain,) = torch.autograd.grad(rms_norm(x, impl="cpp").square().sum(), x)
    assert torch.equal(gradient.detach(), plain)


def test_a_norm_is_one_node_of_the_graph_whatever_its_dimensions() -> None:
    """A reshape and a view around it would take half as long as a norm of few rows."""
    x = torch.ones(2, 3, 4, requires_grad=True)
    residual = torch.ones(2, 3, 4, requires_grad=True)
    for y in (rms_norm(x, impl="cpp"), *add_rms_norm(x, residual, impl="cpp")):
        assert y.shape == x.shape
        assert y.grad_fn is not None
        into = [node for node, _ in y.grad_fn.next_functions if node is not None]
        assert {node.name() for node in into} == {"torch::autograd::AccumulateGrad"}


def test_what_is_overwritten_is_known_to_autograd_whatever_its_strides() -> None:
    double = CustomOp("tested_double", doubled_in_place, mutates=("x",))
    saved, weight = torch.ones(3, 4), torch.ones(3, 4, requires_grad=True)
    product = saved * weight  # keeps `saved` for its gradient
    overwrite(double, (saved,))
    assert saved.tolist() == [[2.0] * 4] * 3
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
    transposed = torch.ones(3, 4).T
    overwrite(double, (transposed,))
    assert transposed.tolist() == [[2.0] * 3] * 4


def test_triton_refuses_tensors_of_another_than_the_current_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    known = dict.fromkeys(("torch", "triton"))
    assert choose(known, None, torch.device("cuda:0")) == "triton"
    assert choose(known, "torch", torch.device("cuda:1")) == "torch"
    for impl in (None, "triton"):
        with pytest.raises(RuntimeError, match="current device, cuda:0"):
            choose(known, impl, torch.device("cuda:1"))


class SendsNothingBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return None


def test_where_no_gradient_comes_down_none_is_handed_on() -> None:
    x, weights = torch.randn(1, 2, 4, 8, requires_grad=True), torch.randn(2, 8, 8)
    targets = torch.zeros(1, 2, 4, dtype=torch.int64)
    for y in (
        rms_norm(x, impl="cpp"),
        add_rms_norm(x, x, impl="cpp")[0],
        attention(x, x, x, impl="cpp"),
        relu2_mlp(x, *weights, impl="cpp"),
        linear_cross_entropy(x, weights[0], targets, impl="cpp"),
    ):
        SendsNothingBack.apply(y).sum().backward()
        assert x.grad is None


CALLS = {
    "rms_norm": lambda x: rms_norm(x, eps=1e-6),
    "attention": lambda x: attention(*x.view(1, -1, 3, 1, 32).transpose(1, 3).unbind(2), causal=True, window=8),
    "relu2_mlp": lambda x: relu2_mlp(x, W, W.t()),
    "linear_cross_entropy": lambda x: linear_cross_entropy(x, W, TARGETS[: len(x)], softcap=15.0),
}  # fmt: skip
W, TARGETS = torch.randn(40, 96), torch.arange(64) % 40


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("op", CALLS)
def test_one_graph_serves_any_number_of_tokens(op: str) -> None:
    """As a model asks for that scores batches of any size: what it compiles anew for a size counts as work off the clock."""
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph

    compiled = torch.compile(CALLS[op], fullgraph=True, dynamic=True, backend=counting)
    for n in (10, 14, 22):
        x = torch.randn(n, 96)
        torch.testing.assert_close(compiled(x), CALLS[op](x), rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1
