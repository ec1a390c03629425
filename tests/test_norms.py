"""rms_norm and add_rms_norm against float64, every implementation that runs here; Triton's kernels through the interpreter.

Triton decides when it defines a kernel whether it will interpret it, so its cases run in a second pytest with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from bench.aot import compile_all
from kernels import INTERPRETED
from kernels.add_rms_norm import add_rms_norm
from kernels.rms_norm import rms_norm

IMPLS = ("triton",) if INTERPRETED else ("torch", "cpp")
# The interpreter is slow: there a row of odd length, rows for several programs, the model's own kind, and none.
SHAPES = (
    [(1, 7), (3, 5, 13), (31, 512), (0, 4)]
    if INTERPRETED
    else [(1, 1), (5, 1), (1, 7), (3, 5, 13), (17, 64), (2, 131), (31, 512), (0, 4), (4, 0)]
)
# Relative root-mean-square error allowed: a few roundings of the dtype (unit 2^-24, 2^-8, 2^-11; the interpreter truncates to bf16).
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
DTYPES = list(TOLERANCE)
EPS = 1e-3  # large enough that dropping it, or adding it outside the root, shows

every_impl = pytest.mark.parametrize("impl", IMPLS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
with_and_without_weight = pytest.mark.parametrize("weighted", [True, False])


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact_norm(x, weight):
    """Divide each row by its own length over sqrt(D): the definition, not the kernels' formula."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    y = x / torch.sqrt(length**2 / max(x.shape[-1], 1) + EPS)
    return y if weight is None else y * weight


def doubles(*tensors):
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


def assert_close(got, want, dtype, scale=0.0):
    """Root mean square of the difference against that of `want`, or `scale` where `want` comes out of a cancellation."""
    assert got.shape == want.shape
    if want.numel():
        error = (got.double() - want).square().mean().sqrt().item()
        size = max(want.square().mean().sqrt().item(), scale)
        assert error <= TOLERANCE[dtype] * size, f"error {error:.2e} of {size:.2e}"


@every_impl
@every_dtype
@with_and_without_weight
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm_and_its_gradients_match_float64(impl, dtype, weighted, shape):
    x = random(*shape, dtype=dtype).requires_grad_()
    weight = random(shape[-1], dtype=dtype, seed=1).requires_grad_() if weighted else None
    dy = random(*shape, dtype=dtype, seed=2)
    y = rms_norm(x, weight, EPS, impl=impl)
    y.backward(dy)

    x64, weight64 = doubles(x, weight)
    y64 = exact_norm(x64, weight64)
    y64.backward(dy.double())
    assert y.dtype == x.grad.dtype == dtype
    assert_close(y, y64, dtype)
    assert_close(x.grad, x64.grad, dtype, scale=1.0)
    if weighted:
        assert weight.grad.dtype == dtype
        assert_close(weight.grad, weight64.grad, dtype)


@every_impl
@every_dtype
@with_and_without_weight
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_add_rms_norm_and_its_gradients_match_float64(impl, dtype, weighted, shape):
    x = random(*shape, dtype=dtype).requires_grad_()
    residual = random(*shape, dtype=dtype, seed=3).requires_grad_()
    weight = random(shape[-1], dtype=dtype, seed=1).requires_grad_() if weighted else None
    dy, dtotal = random(*shape, dtype=dtype, seed=2), random(*shape, dtype=dtype, seed=4)
    y, total = add_rms_norm(x, residual, weight, EPS, impl=impl)
    torch.autograd.backward([y, total], [dy, dtotal])

    x64, residual64, weight64 = doubles(x, residual, weight)
    total64 = x64 + residual64
    y64 = exact_norm(total64, weight64)
    torch.autograd.backward([y64, total64], [dy.double(), dtotal.double()])
    assert y.dtype == total.dtype == dtype
    assert_close(total, total64, dtype)
    assert_close(y, y64, dtype, scale=1.0)
    assert_close(x.grad, x64.grad, dtype, scale=1.0)
    assert_close(residual.grad, residual64.grad, dtype, scale=1.0)
    if weighted:
        assert_close(weight.grad, weight64.grad, dtype, scale=1.0)


@every_impl
@pytest.mark.parametrize("used", ["y", "total"])
def test_add_rms_norm_gradient_when_only_one_output_is_used(impl, used):
    x, residual = random(6, 33).requires_grad_(), random(6, 33, seed=1).requires_grad_()
    dout = random(6, 33, seed=2)
    y, total = add_rms_norm(x, residual, eps=EPS, impl=impl)
    (y if used == "y" else total).backward(dout)

    x64, residual64 = doubles(x, residual)
    total64 = x64 + residual64
    (exact_norm(total64, None) if used == "y" else total64).backward(dout.double())
    assert_close(x.grad, x64.grad, torch.float32)
    assert_close(residual.grad, residual64.grad, torch.float32)


@every_impl
def test_norm_is_of_the_residual_as_it_is_stored(impl):
    # 256 + 1 is 256 in bf16 (ties go to even), so the stored row is constant and its norm is exactly one everywhere.
    x = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.bfloat16)
    y, total = add_rms_norm(x, torch.full_like(x, 256.0), eps=0.0, impl=impl)
    assert total.tolist() == [[256.0] * 4]
    assert y.tolist() == [[1.0] * 4]


@every_impl
def test_mixed_dtypes_promote(impl):
    x, residual = random(3, 8, dtype=torch.bfloat16), random(3, 8, seed=1)
    y, total = add_rms_norm(x, residual, impl=impl)
    assert y.dtype == total.dtype == torch.float32
    assert torch.equal(total, x + residual)
    # a float32 weight does not change the type of the result
    weighted = rms_norm(x, random(8, seed=2), impl=impl)
    assert weighted.dtype == torch.bfloat16


@every_impl
@pytest.mark.parametrize("layout", ["transposed", "every second", "expanded"])
def test_strided_input_matches_float64(impl, layout):
    x = {
        "transposed": random(12, 9).t(),
        "every second": random(9, 24)[:, ::2],
        "expanded": random(1, 12).expand(9, 12),
    }[layout]
    weight = random(24, seed=1)[::2]
    assert_close(rms_norm(x, weight, EPS, impl=impl), exact_norm(x.double(), weight), torch.float32)
    y, total = add_rms_norm(x, x, weight, EPS, impl=impl)
    assert_close(y, exact_norm(2 * x.double(), weight), torch.float32)
    assert torch.equal(total, 2 * x)


@every_impl
def test_expanded_upstream_gradient(impl):
    x, residual = random(4, 11).requires_grad_(), random(4, 11, seed=1).requires_grad_()
    rms_norm(x, eps=EPS, impl=impl).sum().backward()
    y, total = add_rms_norm(x, residual, eps=EPS, impl=impl)
    (y.sum() + total.sum()).backward()

    x64, residual64 = doubles(x, residual)
    exact_norm(x64, None).sum().backward()
    (exact_norm(x64 + residual64, None).sum() + (x64 + residual64).sum()).backward()
    assert_close(x.grad, x64.grad, torch.float32)
    assert_close(residual.grad, residual64.grad, torch.float32)


@every_impl
@every_dtype
def test_nan_stays_in_its_row_and_infinity_does_not_pass_for_a_number(impl, dtype):
    x = random(6, 40, dtype=dtype)
    x[1, 3], x[4, 39] = float("nan"), float("inf")
    for y in (rms_norm(x, impl=impl), add_rms_norm(x, x, impl=impl)[0]):
        assert y[1].isnan().all()
        assert y[4, 39].isnan()
        assert y[[0, 2, 3, 5]].isfinite().all()


@every_impl
@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1e15])
def test_rms_norm_is_scale_free_without_eps(impl, scale):
    x = random(3, 50)
    assert_close(
        rms_norm(x * scale, eps=0.0, impl=impl), exact_norm(x.double() * 1e9, None), torch.float32
    )


@every_impl
def test_one_dimension_and_four(impl):
    x = random(2, 3, 4, 8)
    y = rms_norm(x, impl=impl)
    assert y.shape == x.shape
    assert_close(rms_norm(x[1, 2, 3], impl=impl), y[1, 2, 3].double(), torch.float32)


@every_impl
def test_inputs_are_left_alone_and_outputs_are_fresh(impl):
    x, residual, weight = random(5, 16), random(5, 16, seed=1), random(16, seed=2)
    copies = [t.clone() for t in (x, residual, weight)]
    y, total = add_rms_norm(x, residual, weight, impl=impl)
    normed = rms_norm(x, weight, impl=impl)
    assert all(torch.equal(a, b) for a, b in zip((x, residual, weight), copies, strict=True))
    assert len({t.data_ptr() for t in (x, residual, y, total, normed)}) == 5


@every_impl
def test_under_torch_compile_without_a_graph_break(impl):
    if impl == "triton":
        pytest.skip("torch.compile does not run with TRITON_INTERPRET=1")

    def block(x, residual, weight):
        y, total = add_rms_norm(x, residual, weight, EPS, impl=impl)
        return rms_norm(y * 2, weight, EPS, impl=impl).sum() + total.square().sum()

    eager = [random(6, 24, seed=s).requires_grad_() for s in range(2)] + [
        random(24, seed=2).requires_grad_()
    ]
    compiled = [t.detach().clone().requires_grad_() for t in eager]
    block(*eager).backward()
    torch.compile(block, fullgraph=True, backend="aot_eager")(*compiled).backward()
    for a, b in zip(compiled, eager, strict=True):
        assert_close(a.grad, b.grad.double(), torch.float32)


@pytest.mark.skipif(INTERPRETED, reason="opcheck exercises the C++ ops")
@with_and_without_weight
def test_opcheck(weighted):
    x, residual = random(4, 10).requires_grad_(), random(4, 10, seed=1).requires_grad_()
    weight = random(10, seed=2).requires_grad_() if weighted else None
    torch.library.opcheck(torch.ops.kernels.rms_norm.default, (x, weight, EPS, "cpp"))
    torch.library.opcheck(torch.ops.kernels.add_rms_norm.default, (x, residual, weight, EPS, "cpp"))


@pytest.mark.skipif(INTERPRETED, reason="threads are the C++ kernels'")
def test_cpp_result_does_not_depend_on_the_number_of_threads():
    x, weight = random(500, 96).requires_grad_(), random(96, seed=1).requires_grad_()
    before, grads = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = rms_norm(x, weight, impl="cpp")
            grads.append((y, *torch.autograd.grad(y, [x, weight], random(500, 96, seed=2))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for g in grads[1:] for a, b in zip(g, grads[0], strict=True))


@pytest.mark.skipif(INTERPRETED, reason="the C++ kernels' own checks")
def test_wrong_arguments_are_named():
    with pytest.raises(RuntimeError, match="float32, bfloat16 or float16"):
        rms_norm(random(2, 3).double(), impl="cpp")
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(2, 4\)"):
        add_rms_norm(random(2, 3), random(2, 4))
    with pytest.raises(ValueError, match="expected one of torch, cpp, triton"):
        rms_norm(random(2, 3), impl="cutlass")


@pytest.mark.skipif(INTERPRETED, reason="an interpreted kernel is not compiled")
@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm"])
def test_triton_kernels_compile_for_every_gpu(op):
    entries = importlib.import_module(f"kernels.{op}").AOT
    # All for an H100, for the others the default model's: without a weight.
    rows = compile_all(entries, (90,)) + compile_all(entries[::2], (80, 100))
    assert len(rows) == 2 * len(entries) == 8
    # the backward of add_rms_norm keeps two to four words on the stack of a B200; of an A100 two, by Triton 3.6
    spilled = [row for row in rows if row["stack_bytes"] > (0 if row["arch"] == 90 else 16)]
    assert not spilled


@pytest.mark.skipif(INTERPRETED, reason="the C++ kernel's own sums")
def test_a_long_row_of_equal_numbers_is_not_rounded_one_way():
    """In one sum a lane, its 64 to 512 equal terms were each rounded up: dx was off by 9e-7 of its terms on AVX-512, by 3e-6 on AVX2."""
    x = torch.full((3, 2048), 1 + 2**-19).requires_grad_()
    y = rms_norm(x, eps=1e-7, impl="cpp")
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    exact = 1 / math.sqrt(1 + 1e-7 / (1 + 2**-19) ** 2)
    assert float((y.detach().double() - exact).abs().max()) < 2e-7
    assert float(dx.abs().max()) < 3e-7  # 1e-7 in exact arithmetic, of terms of size 1


@pytest.mark.parametrize("impl", ["torch", "cpp"])
@pytest.mark.parametrize("shape", [(1,), (7,), (9,), (8, 1)])
def test_a_weight_of_another_shape_is_refused_by_every_implementation(impl, shape):
    """A kernel that reads D of them would read what is not there."""
    x, weight = torch.randn(2, 8), torch.ones(shape)
    with pytest.raises(ValueError, match=r"expected a weight \(8,\)"):
        rms_norm(x, weight, impl=impl)
    with pytest.raises(ValueError, match=r"expected a weight \(8,\)"):
        add_rms_norm(x, x, weight, impl=impl)


@every_impl
def test_a_result_may_be_overwritten(impl):
    x, residual = random(2, 3, 11).requires_grad_(), random(2, 3, 11, seed=1).requires_grad_()
    y = rms_norm(x, eps=EPS, impl=impl)
    y *= 2
    n, _ = add_rms_norm(x, residual, eps=EPS, impl=impl)
    n += y
    n.backward(random(2, 3, 11, seed=2))

    x64, residual64 = doubles(x, residual)
    n64 = exact_norm(x64 + residual64, None) + 2 * exact_norm(x64, None)
    n64.backward(random(2, 3, 11, seed=2).double())
    assert_close(x.grad, x64.grad, torch.float32)
    assert_close(residual.grad, residual64.grad, torch.float32)


@every_impl
def test_a_weight_that_nothing_reaches_has_no_gradient(impl):
    x, weight = random(6, 33).requires_grad_(), random(33, seed=1).requires_grad_()
    add_rms_norm(x, random(6, 33, seed=2), weight, impl=impl)[1].sum().backward()
    assert weight.grad is None
