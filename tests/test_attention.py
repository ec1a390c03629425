"""attention against float64, every implementation that runs here; Triton's kernels through the interpreter.

Triton decides when it defines a kernel whether it will interpret it, so its cases run in a second pytest with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch

from bench.aot import compile_all
from kernels import INTERPRETED
from kernels.attention import AOT, attention

IMPLS = ("triton",) if INTERPRETED else ("torch", "cpp")
# Relative root-mean-square error allowed: a few roundings of the dtype (unit 2^-24, 2^-8, 2^-11; the interpreter truncates to bf16).
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
# The interpreter takes a hundred times as long: enough lengths and windows for tiles with, without and beside the band's edges.
LENGTHS = (1, 70) if INTERPRETED else (1, 2, 17, 64, 65, 127, 130)
WIDTHS = (33,) if INTERPRETED else (1, 8, 33, 64)
WIDE = (128,) if INTERPRETED else (100, 128, 256)
WINDOWS = (31,) if INTERPRETED else (1, 2, 31, 64, 65, 129, 130, 1000)
HEADS = ((4, 2),) if INTERPRETED else ((1, 1), (2, 1), (4, 1), (4, 2), (6, 3))
CUTS = (64,) if INTERPRETED else (1, 31, 64, 100)

every_impl = pytest.mark.parametrize("impl", IMPLS)


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact(q, k, v, causal, window):
    """One query at a time over just the keys that it sees: no mask, no tile."""
    T, D = q.shape[2:]
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    rows = []
    for i in range(T):
        first = 0 if window is None else max(0, i - window + 1)
        last = i + 1 if causal else T if window is None else min(T, i + window)
        scores = k[:, :, first:last] @ q[:, :, i, :, None] / D**0.5  # (B, H, keys, 1)
        rows.append((scores.softmax(2) * v[:, :, first:last]).sum(2))
    return torch.stack(rows, 2)


def assert_close(got, want, dtype, scale=0.0):
    """Root mean square of the difference against that of `want`, or `scale` where `want` comes out of a cancellation."""
    assert got.shape == want.shape
    assert got.dtype == dtype
    error = (got.double() - want).square().mean().sqrt().item()
    size = max(want.square().mean().sqrt().item(), scale)
    assert error <= TOLERANCE[dtype] * size, f"error {error:.2e} of {size:.2e}"


def assert_matches_float64(q, k, v, causal, window, impl, do=None):
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    do = random(*q.shape, dtype=q.dtype, seed=9) if do is None else do
    o = attention(q, k, v, causal, window, impl=impl)
    gradients = torch.autograd.grad(o, (q, k, v), do)
    exact_inputs = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact_o = exact(*exact_inputs, causal, window)
    exact_gradients = torch.autograd.grad(exact_o, exact_inputs, do.double(), allow_unused=True)
    assert_close(o, exact_o, q.dtype)
    for got, want in zip(gradients, exact_gradients, strict=True):
        # A query with one key has gradient zero: what is left is the rounding of dO v' - delta, 1 or so apiece.
        assert_close(got, want, q.dtype, scale=1.0)


@every_impl
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("D", WIDTHS)
@pytest.mark.parametrize("T", LENGTHS)
def test_values_and_gradients_match_float64(impl, causal, T, D):
    q, k, v = (random(1, 2, T, D, seed=s) for s in range(3))
    assert_matches_float64(q, k, v, causal, None, impl)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.skipif(INTERPRETED, reason="the C++ kernel's own shapes")
@pytest.mark.parametrize("D", [1, 16, 33, 64, 100, 256])
@pytest.mark.parametrize("T", [1, 2, 17, 64, 97, 130])
@pytest.mark.parametrize("window", [None, 40])
def test_bfloat16_of_any_shape_matches_float64(causal, T, D, window):
    q = random(1, 2, T, D, dtype=torch.bfloat16)
    k, v = (random(1, 1, T, D, dtype=torch.bfloat16, seed=s) for s in (1, 2))
    assert_matches_float64(q, k, v, causal, window, "cpp")


@every_impl
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("window", WINDOWS)
def test_windows_match_float64(impl, causal, window):
    T = 70 if INTERPRETED else 130
    q, k, v = (random(1, 1, T, 8, seed=s) for s in range(3))
    assert_matches_float64(q, k, v, causal, window, impl)


@every_impl
@pytest.mark.parametrize(("H", "Hkv"), HEADS)
def test_grouped_heads_match_float64(impl, H, Hkv):
    T, window = (35, 20) if INTERPRETED else (67, 40)
    q, k, v = random(2, H, T, 16), random(2, Hkv, T, 16, seed=1), random(2, Hkv, T, 16, seed=2)
    assert_matches_float64(q, k, v, True, window, impl)


@every_impl
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_dtypes_match_float64(impl, dtype):
    B = 1 if INTERPRETED else 2  # several matrices are other tests'
    q, k, v = (random(B, B, 70, 32, dtype=dtype, seed=s) for s in range(3))
    assert_matches_float64(q, k, v, True, 33, impl)


@every_impl
@pytest.mark.parametrize("D", WIDE)
def test_wide_heads_match_float64(impl, D):
    q, k, v = (random(1, 1, 66, D, seed=s) for s in range(3))
    assert_matches_float64(q, k, v, True, None, impl)


@every_impl
def test_any_strides_match_float64(impl):
    T = 34 if INTERPRETED else 66
    packed = random(2, T, 3, 2, 16)  # (B, T, 3, H, D): what one projection for q, k and v leaves
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    assert_matches_float64(q, k, v, True, None, impl)
    columns = random(2, 2, 16, T, seed=1).mT  # D is not the contiguous dimension
    halves = random(2, 2, T, 32, seed=2)[..., ::2]
    shared = random(1, 1, T, 16, seed=3).expand(2, 2, T, 16)
    assert_matches_float64(columns, halves, shared, True, 20, impl, do=columns * 2)


@every_impl
@pytest.mark.parametrize("layout", ["expanded", "transposed"])
def test_upstream_gradient_of_any_strides(impl, layout):
    q, k, v = (random(2, 2, 35, 16, seed=s) for s in range(3))
    do = {
        "expanded": random(2, 1, 35, 1, seed=4).expand(2, 2, 35, 16),
        "transposed": random(16, 35, 2, 2, seed=4).permute(3, 2, 1, 0),
    }[layout]
    assert_matches_float64(q, k, v, True, None, impl, do)


@every_impl
def test_large_scores_do_not_overflow(impl):
    q, k, v = random(1, 1, 66, 16) * 1e3, random(1, 1, 66, 16, seed=1) * 1e3, random(1, 1, 66, 16)
    o = attention(q, k, v, impl=impl)
    assert_close(o, exact(q.double(), k.double(), v.double(), True, None), torch.float32)


@every_impl
@pytest.mark.parametrize("cut", CUTS)
def test_future_does_not_change_the_past(impl, cut):
    q, k, v = (random(1, 2, 130, 16, seed=s) for s in range(3))
    other = [x.clone() for x in (q, k, v)]
    for x in other:
        x[:, :, cut:] = 1e4
    before = attention(q, k, v, True, 70, impl=impl)[:, :, :cut]
    after = attention(*other, True, 70, impl=impl)[:, :, :cut]
    assert torch.equal(before, after)


@every_impl
def test_nan_reaches_the_rows_that_see_it(impl):
    q, k, v = (random(1, 1, 140, 16, seed=s) for s in range(3))
    sees = torch.zeros(140, dtype=torch.bool)
    sees[50:60] = True
    for name in "qkv":
        bad = {"q": q.clone(), "k": k.clone(), "v": v.clone()}
        bad[name][0, 0, 50, 3] = float("nan")
        nan = attention(**bad, window=10, impl=impl)[0, 0].isnan()
        if name == "q":
            assert nan.all(1).nonzero().flatten().tolist() == [50]
            assert nan.any(1).nonzero().flatten().tolist() == [50]
        elif name == "k":
            assert torch.equal(nan.all(1), sees)
            assert torch.equal(nan.any(1), sees)
        else:  # 0 * NaN: the formula hands a NaN of v to rows that weigh it with zero, too
            assert nan[sees][:, 3].all()
            assert not nan[:, [0, 1, 2, *range(4, 16)]].any()


@every_impl
def test_infinite_scores_do_not_pass_for_numbers(impl):
    q, k, v = (random(1, 1, 70, 16, seed=s).abs() for s in range(3))
    k[0, 0, 40] = float("inf")
    o = attention(q, k, v, impl=impl)[0, 0]
    assert o[:40].isfinite().all()
    assert o[40:].isnan().all()
    k[0, 0, 40] = -float("inf")  # a weight of zero
    assert attention(q, k, v, impl=impl).isfinite().all()


@every_impl
def test_inputs_are_left_alone_and_results_are_fresh(impl):
    q, k, v = (random(1, 2, 20, 16, seed=s).requires_grad_() for s in range(3))
    copies = [x.detach().clone() for x in (q, k, v)]
    first = attention(q, k, v, impl=impl)
    first.sum().backward()
    second = attention(q, k, v, impl=impl)
    assert all(torch.equal(x, y) for x, y in zip((q, k, v), copies, strict=True))
    assert torch.equal(first, second)
    assert len({x.data_ptr() for x in (q, k, v, first, second, q.grad, k.grad, v.grad)}) == 8


@every_impl
@pytest.mark.parametrize("shape", [(0, 2, 5, 8), (2, 0, 5, 8), (2, 2, 0, 8)], ids=str)
def test_empty_input_gives_empty_result(impl, shape):
    q = random(*shape).requires_grad_()
    k = random(shape[0], 1, *shape[2:])
    o = attention(q, k, k, impl=impl)
    o.sum().backward()
    assert o.shape == q.grad.shape == shape


@pytest.mark.skipif(INTERPRETED, reason="the C++ kernel's own writing")
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", [(40, 66), (64, 128)], ids=str)
def test_results_whose_channels_lie_apart_match_float64(dtype, shape):
    q, k, v = (random(1, 2, *shape, dtype=dtype, seed=s).mT for s in range(3))
    assert_matches_float64(q, k, v, True, 20, "cpp")


@pytest.mark.skipif(INTERPRETED, reason="the compiled kernels have threads")
@pytest.mark.parametrize("Hkv", [1, 2])
def test_result_does_not_depend_on_threads(Hkv):
    q, (k, v) = random(1, 2, 300, 16), (random(1, Hkv, 300, 16, seed=s) for s in (1, 2))
    seen, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):  # 3: more than key heads, so the tiles of queries are dealt out
            torch.set_num_threads(threads)
            leaves = [x.clone().requires_grad_() for x in (q, k, v)]
            o = attention(*leaves, impl="cpp")
            seen.append((o, *torch.autograd.grad(o.square().sum(), leaves)))
    finally:
        torch.set_num_threads(before)
    for one, many in zip(*seen, strict=True):
        torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-5)  # sums of another order
    assert torch.equal(seen[0][0], seen[1][0])


@pytest.mark.skipif(INTERPRETED, reason="torch.compile does not trace the interpreter")
@every_impl
def test_compiles_whole_with_the_same_result(impl):
    q, k, v = (random(2, 40, 2, 16, seed=s).transpose(1, 2).requires_grad_() for s in range(3))

    def loss(q, k, v):
        return attention(q * 2, k, v, True, 9, impl=impl).transpose(1, 2).flatten(2).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(q, k, v), (q, k, v))
    want = torch.autograd.grad(loss(q, k, v), (q, k, v))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.skipif(INTERPRETED, reason="a check of the custom op, whichever the kernel")
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_custom_op_passes_opcheck(layout):
    q = random(2, 4, 30, 8)
    k, v = random(2, 2, 30, 8, seed=1), random(2, 2, 30, 8, seed=2)
    if layout == "transposed":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    torch.library.opcheck(torch.ops.kernels.attention.default, (q, k, v, True, 7, "cpp"))
    with torch.no_grad():
        o, lse = torch.ops.kernels.attention(q, k, v, True, 7, "cpp")
        torch.library.opcheck(
            torch.ops.kernels.attention_backward.default,
            (o, q, k, v, o, lse, True, 7, "cpp"),
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(4, 5, 8)] * 3, "expected q"),
        ([(1, 2, 5, 8), (1, 2, 5, 8), (1, 2, 6, 8)], "one shape"),
        ([(1, 2, 5, 8), (1, 2, 6, 8), (1, 2, 6, 8)], "T=5"),
        ([(1, 2, 5, 8), (1, 2, 5, 4), (1, 2, 5, 4)], "D=8"),
        ([(1, 3, 5, 8), (1, 2, 5, 8), (1, 2, 5, 8)], "multiple"),
    ],
)
def test_shapes_that_do_not_fit_are_named(shapes, message):
    with pytest.raises(ValueError, match=message):
        attention(*(random(*s) for s in shapes))


def test_wrong_dtype_window_and_impl_are_named():
    x = random(1, 1, 4, 8)
    with pytest.raises(TypeError, match="float32, bfloat16, float16"):
        attention(x, x, x.bfloat16())
    with pytest.raises(TypeError, match="float64"):
        attention(x.double(), x.double(), x.double())
    with pytest.raises(ValueError, match="at least 1, got 0"):
        attention(x, x, x, window=0)
    with pytest.raises(ValueError, match="expected one of torch, cpp, triton, cudnn, flex, fa4"):
        attention(x, x, x, impl="fa3")


@pytest.mark.skipif(INTERPRETED, reason="an interpreted kernel is not compiled")
def test_triton_kernels_compile_ahead_of_time():
    # All for an H100, the default model's three for the others too.
    rows = compile_all(AOT, [90]) + compile_all(AOT[:3], [80, 100])
    assert len(rows) == len(AOT) + 6
    assert all(row["registers"] <= 255 for row in rows)
    most_shared = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # of a block
    assert all(row["shared_bytes"] <= most_shared[row["arch"]] for row in rows), rows


@pytest.mark.skipif(INTERPRETED, reason="the C++ kernel's own reading")
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize(
    ("T", "window"), [(192, 64), (192, 65), (192, 1), (130, 64), (131, 50), (128, None)]
)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_rows_read_where_they_lie_match_float64(dtype, T, window, causal):
    q, k, v = random(1, T, 3, 2, 64, dtype=dtype).permute(2, 0, 3, 1, 4)  # parts of one projection
    assert_matches_float64(q, k, v, causal, window, "cpp")
    # rows an odd number of elements apart
    odd = random(1, 2, T, 65, dtype=dtype, seed=1)[..., :64]
    assert_matches_float64(odd, k, v, causal, window, "cpp")
