"""relu2_mlp: values and gradients against float64, every implementation that runs here; Triton's kernel through the interpreter.

Triton decides when it defines a kernel whether it will interpret it, so its cases run in a second pytest with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.aot import compile_all
from kernels import INTERPRETED
from kernels import relu2_mlp as module
from kernels.relu2_mlp import relu2_mlp

IMPLS = ("triton",) if INTERPRETED else ("torch", "cpp")
# Lead of x, D, M, E: ones, odd sizes, more rows than a tile, hidden tensors that end within a vector, nothing
SHAPES = [
    ((1,), 1, 1, 1),
    ((2, 9), 13, 37, 13),
    ((150,), 24, 70, 17),
    ((3, 0), 8, 20, 8),
    ((), 5, 8, 5),
]
# interpreted also one that whole tiles fill
SHAPES = [*SHAPES[1:3], ((128,), 64, 128, 64)] if INTERPRETED else SHAPES
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}  # relative RMS

every_impl = pytest.mark.parametrize("impl", IMPLS)


def draw(
    lead: tuple[int, ...], D: int, M: int, E: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(D + M)
    shapes = ((*lead, D), (M, D), (E, M))
    return tuple(torch.randn(shape).to(dtype).requires_grad_() for shape in shapes)  # type: ignore[return-value]


def check(impl: str, arguments: tuple[Tensor, Tensor, Tensor], dy: Tensor) -> None:
    """Result and gradients for an upstream gradient dy."""
    y = relu2_mlp(*arguments, impl=impl)
    gradients = torch.autograd.grad(y, arguments, dy)
    exact = [t.detach().double().requires_grad_() for t in arguments]
    h = torch.einsum("...d,md->...m", exact[0], exact[1])
    y64 = torch.einsum("...m,em->...e", torch.where(h > 0, h * h, 0.0), exact[2])
    wanted = torch.autograd.grad(y64, exact, dy.double())
    assert y.dtype == arguments[0].dtype
    assert [g.dtype for g in gradients] == [t.dtype for t in arguments]
    for got, want in zip((y.detach(), *gradients), (y64.detach(), *wanted), strict=True):
        assert got.shape == want.shape
        error = float((got.double() - want).norm())
        assert error <= TOLERANCE[y.dtype] * float(want.norm()), error


@every_impl
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_match_float64(impl, dtype, shape):
    check(impl, draw(*shape, dtype), torch.randn(*shape[0], shape[3]).to(dtype))


@every_impl
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_strides(impl, dtype):
    torch.manual_seed(0)
    x = torch.randn(20, 6).to(dtype).t()[:, ::2].requires_grad_()
    up, down = (torch.randn(s).to(dtype).t().requires_grad_() for s in ((10, 33), (33, 4)))
    check(impl, (x, up, down), torch.tensor(0.3, dtype=dtype).expand(6, 4))


@every_impl
def test_float32_weights_under_bfloat16_activations_get_float32_gradients(impl):
    x, up, down = draw((30,), 16, 40, 16)
    x = x.detach().bfloat16().requires_grad_()
    y = relu2_mlp(x, up, down, impl=impl)
    plain = relu2_mlp(x, up, down, impl="torch")
    for got, want in zip(torch.autograd.grad(y.sum(), (x, up, down)), torch.autograd.grad(plain.sum(), (x, up, down)), strict=True):  # fmt: skip
        assert got.dtype == want.dtype
        assert (got.float() - want.float()).norm() <= 1.2e-2 * want.float().norm()


@every_impl
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_reaches_its_row_and_no_other(impl, dtype):
    x, up, down = (t.detach() for t in draw((6,), 8, 70, 8, dtype))
    x[2, 3] = float("nan")
    y = relu2_mlp(x, up, down, impl=impl)
    assert y[2].isnan().all()
    assert y[[0, 1, 3, 4, 5]].isfinite().all()


@pytest.mark.skipif(INTERPRETED, reason="opcheck exercises the C++ op")
def test_the_custom_op_keeps_its_word_and_compiles_whole():
    arguments = draw((2, 7), 12, 40, 12)
    flat = arguments[0].detach().view(14, 12).requires_grad_()
    torch.library.opcheck(torch.ops.kernels.relu2_mlp.default, (flat, *arguments[1:], "cpp"), test_utils=("test_schema", "test_faketensor", "test_autograd_registration"))  # fmt: skip
    compiled = torch.compile(relu2_mlp, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*arguments).square().sum(), arguments)
    wanted = torch.autograd.grad(relu2_mlp(*arguments).square().sum(), arguments)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.skipif(INTERPRETED, reason="the C++ op's own")
def test_a_second_derivative_is_refused_and_wrong_shapes_are_named():
    x, up, down = draw((3,), 4, 6, 4)
    with pytest.raises(ValueError, match=r"got \(3, 4\), \(6, 3\), \(4, 6\)"):
        relu2_mlp(x, up[:, :3], down)
    (dx,) = torch.autograd.grad(relu2_mlp(x, up, down).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(dx.sum(), up)


@pytest.mark.skipif(INTERPRETED, reason="an interpreted kernel is not compiled")
def test_triton_compiles_ahead_of_time_without_a_spill():
    # All for an H100, for the others the default model's, which fills whole tiles.
    rows = compile_all(module.AOT, (90,)) + compile_all(module.AOT[::2], (80, 100))
    assert len(rows) == 8
    assert all(row["stack_bytes"] == 0 for row in rows), rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_may_end_before_the_backward_or_not(dtype: torch.dtype) -> None:
    """Where the processor multiplies neither, products are formed in float32, and autocast would take them back."""
    found = []
    for inside in (False, True):
        x, up, down = draw((3, 5), 16, 32, 16, torch.float32)
        with torch.autocast("cpu", dtype):
            y = relu2_mlp(x, up, down, impl="cpp")
            if inside:
                y.float().sum().backward()
        if not inside:
            y.float().sum().backward()
        assert y.dtype == dtype
        found.append((y.detach(), x.grad, up.grad, down.grad))
    for outside, within in zip(*found, strict=True):
        torch.testing.assert_close(outside, within, rtol=0, atol=0)
