"""qk_norm_rope against a rotation of complex numbers in float64, every implementation that runs here; Triton's kernels through the interpreter.

Triton decides when it defines a kernel whether it will interpret it, so its cases run in a second pytest with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.aot import compile_all
from kernels import INTERPRETED
from kernels import qk_norm_rope as module
from kernels.qk_norm_rope import qk_norm_rope

IMPLS = ("triton",) if INTERPRETED else ("torch", "cpp")
# (B, T, H, Hk, D): one of each, odd halves, whole blocks of vectors and rows that end within one, more tokens than a thread takes
SHAPES = [(1, 1, 1, 1, 2), (2, 5, 3, 1, 14), (1, 7, 2, 2, 64), (2, 3, 1, 3, 96), (2, 90, 2, 1, 128), (0, 3, 1, 1, 8)]  # fmt: skip
SHAPES = SHAPES[1:3] if INTERPRETED else SHAPES  # 0.4 s each there
# Relative root-mean-square error allowed: a few roundings of the dtype (unit 2^-24, 2^-8, 2^-11; the interpreter truncates to bf16).
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
EPS = 1e-3  # large enough that dropping it, or adding it outside the root, shows

every_impl = pytest.mark.parametrize("impl", IMPLS)


def draw(
    B: int, T: int, H: int, Hk: int, D: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(B + T + D)
    q, k = (torch.randn(B, T, h, D).to(dtype).requires_grad_() for h in (H, Hk))
    return q, k, torch.randn(T, D // 2), torch.randn(T, D // 2)


def exact(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channels i and i + D/2 as one complex number, times cos + i sin."""
    n = x / torch.sqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True) ** 2 / x.shape[-1] + EPS)
    turned = torch.complex(*n.chunk(2, dim=-1)) * torch.complex(cos, sin).unsqueeze(1)
    return torch.cat((turned.real, turned.imag), dim=-1)


def check(impl: str, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dq: Tensor, dk: Tensor) -> None:  # fmt: skip
    """Results and gradients for upstream gradients dq and dk."""
    results = qk_norm_rope(q, k, cos, sin, EPS, impl=impl)
    gradients = torch.autograd.grad(results, (q, k), (dq, dk))
    for x, y, dy, dx in zip((q, k), results, (dq, dk), gradients, strict=True):
        x64 = x.detach().double().requires_grad_()
        y64 = exact(x64, cos.double(), sin.double())
        (dx64,) = torch.autograd.grad(y64, x64, dy.double())
        assert y.dtype == dx.dtype == x.dtype
        assert y.is_contiguous()
        for got, want in ((y, y64), (dx, dx64)):
            assert got.shape == want.shape
            error = (got.detach().double() - want.detach()).norm()
            size = max(float(want.detach().norm()), want.numel() ** 0.5)
            assert error <= TOLERANCE[x.dtype] * size, f"{error / size:.2e}"


@every_impl
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_match_float64(impl, dtype, shape):
    q, k, cos, sin = draw(*shape, dtype)
    check(impl, q, k, cos, sin, torch.randn_like(q), torch.randn_like(k))


@every_impl
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_views_of_a_packed_projection_and_gradients_in_any_order_of_dimensions(impl, dtype):
    B, T, H, D = 2, 9, 3, 64
    torch.manual_seed(0)
    qkv = torch.randn(B, T, 3 * H * D).to(dtype)
    q, k, _ = (x.view(B, T, H, D).requires_grad_() for x in qkv.split(H * D, dim=-1))
    cos, sin = torch.randn(2 * D // 2, T).t()[:, ::2], torch.randn(T, D // 2).double()
    transposed = torch.randn(B, H, T, D).to(dtype).transpose(1, 2)
    check(impl, q, k, cos, sin.float(), transposed, torch.tensor(0.3, dtype=dtype).expand(k.shape))
    with_gaps = torch.randn(B, T, H, 2 * D).to(dtype)[..., ::2].requires_grad_()
    check(impl, with_gaps, k, cos, sin.float(), transposed, torch.randn_like(k))


@pytest.mark.skipif(INTERPRETED, reason="the C++ kernel's own reading")
def test_a_packed_projection_is_read_without_a_copy():
    qkv = torch.randn(2, 4, 3 * 128)
    q, k, _ = (x.view(2, 4, 2, 64) for x in qkv.split(128, dim=-1))
    assert module._rows(q) is q
    cos, sin = torch.randn(4, 32), torch.randn(4, 32)
    with torch.profiler.profile() as seen:
        qk_norm_rope(q, k, cos, sin, impl="cpp")
    assert not {"aten::copy_", "aten::clone"} & {event.name for event in seen.events()}


@every_impl
def test_a_gradient_of_one_result_alone(impl):
    q, k, cos, sin = draw(1, 6, 2, 1, 64)
    dy = torch.randn_like(q)
    y, _ = qk_norm_rope(q, k, cos, sin, EPS, impl=impl)
    (dq,) = torch.autograd.grad(y, q, dy)
    q64 = q.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(exact(q64, cos.double(), sin.double()), q64, dy.double())
    assert (dq.double() - want).norm() <= 1e-6 * want.norm()


@every_impl
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_nan_and_infinity_show_and_stay_where_they_belong(impl, dtype):
    q, k, cos, sin = (x.detach() for x in draw(1, 5, 2, 1, 64, dtype))
    q[0, 1, 0, 3], q[0, 2, 1, 40] = float("nan"), float("inf")
    # the NaN of which a carry would make a number: all bits are set
    cos[4, 7] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)
    y, yk = qk_norm_rope(q, k, cos, sin, impl=impl)
    assert y[0, 1, 0].isnan().all()
    assert y[0, 2, 1, [8, 40]].isnan().all()
    assert y[0, 4][:, [7, 39]].isnan().all()
    assert yk[0, 4, 0, [7, 39]].isnan().all()
    assert int(y.isnan().sum()) == 64 + 2 + 4
    assert int(yk.isnan().sum()) == 2


@pytest.mark.skipif(INTERPRETED, reason="opcheck exercises the C++ op")
def test_the_custom_op_keeps_its_word_and_compiles_whole():
    q, k, cos, sin = draw(2, 4, 2, 1, 64)
    torch.library.opcheck(torch.ops.kernels.qk_norm_rope.default, (q, k, cos, sin, EPS, "cpp"))
    compiled = torch.compile(qk_norm_rope, fullgraph=True, backend="aot_eager")
    loss = sum(y.square().sum() for y in compiled(q, k, cos, sin))
    want = sum(y.square().sum() for y in qk_norm_rope(q, k, cos, sin))
    for a, b in zip(torch.autograd.grad(loss, (q, k)), torch.autograd.grad(want, (q, k)), strict=True):  # fmt: skip
        assert torch.equal(a, b)


@pytest.mark.skipif(INTERPRETED, reason="the C++ op's own checks")
def test_wrong_arguments_are_named():
    q, k, cos, sin = (x.detach() for x in draw(2, 4, 2, 1, 8))
    with pytest.raises(ValueError, match="even D"):
        qk_norm_rope(q[..., :7], k, cos, sin)
    with pytest.raises(ValueError, match=r"k must be \(B=2, T=4, Hk, D=8\)"):
        qk_norm_rope(q, k[:1], cos, sin)
    with pytest.raises(ValueError, match=r"\(T, D/2\) = \(4, 4\), got \(3, 4\)"):
        qk_norm_rope(q, k, cos[:3], sin)
    with pytest.raises(TypeError, match="cast them first"):
        qk_norm_rope(q, k.half(), cos, sin)
    with pytest.raises(ValueError, match="no gradient of cos and sin"):
        qk_norm_rope(q, k, cos.requires_grad_(), sin, impl="cpp")
    with torch.no_grad():
        qk_norm_rope(q, k, cos, sin, impl="cpp")  # nobody asks for a gradient of cos


@pytest.mark.skipif(INTERPRETED, reason="an interpreted kernel is not compiled")
def test_triton_compiles_ahead_of_time_without_a_spill():
    rows = compile_all(module.AOT, (80, 90, 100))
    assert len(rows) == 6
    assert all(row["stack_bytes"] == 0 for row in rows), rows


@pytest.mark.skipif(not INTERPRETED, reason="of the interpreted kernel")
def test_heads_may_lie_more_than_2_to_the_31_elements_apart(monkeypatch):
    from triton.runtime import interpreter

    # all of it lies on the CPU: there is nothing to copy back, 4 GB least of all
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *arguments: None)
    far = 2**30 + 64
    q = torch.empty(2 * far + 8, dtype=torch.bfloat16).as_strided((1, 1, 3, 8), (8, 8, far, 1))
    q.copy_(torch.randn(1, 1, 3, 8))
    k, cos, sin = torch.randn(1, 1, 1, 8).bfloat16(), torch.randn(1, 4), torch.randn(1, 4)
    got, want = (qk_norm_rope(q, k, cos, sin, impl=impl)[0].float() for impl in ("triton", "torch"))
    assert (got - want).norm() <= 1e-2 * want.norm()
