"""linear_cross_entropy: values and gradients against float64, over dtypes, softcaps, odd sizes and upstream gradients."""

from __future__ import annotations

import math

import pytest
import torch
from interpreter import interpret
from torch import Tensor

from bench.aot import compile_all
from kernels import linear_cross_entropy as module
from kernels.linear_cross_entropy import linear_cross_entropy

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}  # relative RMS


def truth(h: Tensor, W: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """The formula in float64, written out."""
    z = torch.einsum("...d,vd->...v", h, W)
    y = z if softcap is None else softcap * torch.tanh(z / softcap)
    counts = targets != -100
    picked = y.gather(-1, targets.where(counts, 0)[..., None])[..., 0]
    return (torch.logsumexp(y, -1) - picked) * counts


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm().clamp_min(1e-30))


def draw(
    lead: tuple[int, ...], D: int, V: int, dtype: torch.dtype, scale: float = 0.3, ignored: bool = True
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    torch.manual_seed(D * V)
    h = torch.randn(*lead, D).to(dtype).requires_grad_()
    W = (torch.randn(V, D) * scale).to(dtype).requires_grad_()
    targets = torch.randint(V, lead)
    if ignored:
        targets.view(-1)[::5] = -100
    return h, W, targets


def check(
    h: Tensor, W: Tensor, targets: Tensor, softcap: float | None, g: Tensor, impl: str | None = None
) -> None:
    """Loss and both gradients of `impl` against float64, for the upstream gradient g."""
    head = W.to(h.dtype)  # what is computed with
    h64, W64 = h.detach().double().requires_grad_(), head.detach().double().requires_grad_()
    want = truth(h64, W64, targets, softcap)
    wanted = torch.autograd.grad(want, (h64, W64), g.double())
    loss = linear_cross_entropy(h, W, targets, softcap, impl=impl)
    got = torch.autograd.grad(loss, (h, W), g)
    assert loss.dtype == torch.float32
    assert loss.shape == targets.shape
    assert (got[0].dtype, got[1].dtype) == (h.dtype, W.dtype)
    tolerance = TOLERANCE[h.dtype]
    for name, a, b in (("loss", loss.detach(), want.detach()), ("dh", got[0], wanted[0]), ("dW", got[1], wanted[1])):  # fmt: skip
        assert relative(a, b) < tolerance, name


@pytest.mark.parametrize("softcap", [None, 15.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", ["torch", "cpp"])
@pytest.mark.parametrize(("lead", "D", "V"), [((37,), 24, 101), ((2, 9), 16, 64), ((1,), 1, 1), ((3, 0), 4, 7)])  # fmt: skip
def test_loss_and_gradients_match_float64(impl, dtype, softcap, lead, D, V):
    h, W, targets = draw(lead, D, V, dtype)
    if V == 1 or 0 in lead:  # the truth is 0: no relative error
        loss = linear_cross_entropy(h, W, targets, softcap, impl=impl)
        loss.sum().backward()
        assert not loss.detach().any()
        assert not W.grad.any()
    else:
        check(h, W, targets, softcap, torch.randn(lead), impl)


def test_chunks_of_rows_join_without_a_seam():
    N = module.CHUNK + 3
    h, W, targets = draw((N,), 8, 33, torch.float32)
    check(h, W, targets, 15.0, torch.randn(N), "cpp")
    with torch.no_grad():
        assert relative(linear_cross_entropy(h, W, targets), truth(h.double(), W.double(), targets, None)) < 3e-6  # fmt: skip


def test_an_expanded_upstream_gradient_is_taken_as_it_is():
    h, W, targets = draw((4, 11), 16, 50, torch.float32)
    check(h, W, targets, 15.0, torch.tensor(0.25).expand(4, 11), "cpp")


@pytest.mark.parametrize("softcap", [None, 15.0, 40.0, 41.0, 500.0])
def test_large_logits_do_not_overflow(softcap):
    h, W, targets = draw((20,), 16, 70, torch.float32, scale=60.0)
    loss = linear_cross_entropy(h, W, targets, softcap, impl="cpp")
    want = truth(h.double(), W.double(), targets, softcap)
    assert relative(loss.detach(), want.detach()) < 3e-6
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss.sum(), (h, W)))


def test_tiny_logits_keep_their_relative_precision():
    h, W, targets = draw((20,), 16, 70, torch.float32, scale=1e-4)
    check(h, W, targets, 15.0, torch.randn(20), "cpp")


@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_a_float32_head_under_bfloat16_activations_gets_a_float32_gradient(impl):
    h, W, targets = draw((30,), 16, 60, torch.float32)
    check(h.detach().bfloat16().requires_grad_(), W, targets, 15.0, torch.rand(30), impl)


def test_autocast_computes_in_its_dtype():
    h, W, targets = draw((30,), 16, 60, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(h, W, targets, 15.0)
        gradients = torch.autograd.grad(loss.sum(), (h, W))
    want = linear_cross_entropy(h.bfloat16(), W.bfloat16(), targets, 15.0, impl="torch")
    assert relative(loss.detach(), want.detach().double()) < 1e-2
    assert [g.dtype for g in gradients] == [torch.float32, torch.float32]


@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_ignored_tokens_have_no_loss_and_no_gradient(impl):
    h, W, targets = draw((12,), 8, 20, torch.float32)
    loss = linear_cross_entropy(h, W, targets, 15.0, impl=impl)
    dh, _ = torch.autograd.grad(loss.sum(), (h, W))
    assert not loss[::5].any()
    assert not dh[::5].any()
    assert loss[1:5].all()


@pytest.mark.parametrize("target", [-1, 20, 10**12])
@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_a_target_outside_the_vocabulary_is_named(impl, target):
    h, W, targets = draw((12,), 8, 20, torch.float32)
    targets[7] = target
    with pytest.raises(IndexError, match=str(target)):
        linear_cross_entropy(h, W, targets, impl=impl)


def test_wrong_arguments_are_named():
    h, W, targets = draw((12,), 8, 20, torch.float32)
    with pytest.raises(ValueError, match=r"\(12, 8\)"):
        linear_cross_entropy(h, W, targets[:5])
    with pytest.raises(TypeError, match="int64"):
        linear_cross_entropy(h, W, targets.int())
    with pytest.raises(ValueError, match="softcap > 0"):
        linear_cross_entropy(h, W, targets, 0.0)


def test_only_the_wanted_gradient_is_made():
    h, W, targets = draw((12,), 8, 20, torch.float32)
    both = torch.autograd.grad(linear_cross_entropy(h, W, targets).sum(), (h, W))
    assert torch.equal(torch.autograd.grad(linear_cross_entropy(h, W.detach(), targets).sum(), h)[0], both[0])  # fmt: skip
    assert torch.equal(torch.autograd.grad(linear_cross_entropy(h.detach(), W, targets).sum(), W)[0], both[1])  # fmt: skip


def test_without_gradients_only_a_chunk_of_logits_is_kept(monkeypatch):
    h, W, targets = draw((12,), 8, 20, torch.float32)
    want = linear_cross_entropy(h, W, targets, 15.0).detach()
    monkeypatch.setitem(module.LOSS_AND_GRADIENT, "cpp", None)  # calling it would fail
    with torch.no_grad():
        assert torch.allclose(linear_cross_entropy(h, W, targets, 15.0), want, rtol=1e-6)


def test_it_repeats_bit_by_bit_and_leaves_its_inputs():
    h, W, targets = draw((300,), 16, 1000, torch.bfloat16)
    before = [t.detach().clone() for t in (h, W, targets)]

    def run() -> list[Tensor]:
        loss = linear_cross_entropy(h, W, targets, 15.0)
        return [loss.detach(), *torch.autograd.grad(loss.sum(), (h, W))]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, (h, W, targets), strict=True))


def test_a_second_derivative_is_refused():
    h, W, targets = draw((12,), 8, 20, torch.float32)
    (dh,) = torch.autograd.grad(linear_cross_entropy(h, W, targets).sum(), h, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(dh.square().sum(), h)


def test_it_compiles_whole():
    h, W, targets = draw((24,), 16, 60, torch.float32)
    compiled = torch.compile(
        lambda *a: linear_cross_entropy(*a, 15.0), fullgraph=True, backend="aot_eager"
    )
    want = linear_cross_entropy(h, W, targets, 15.0)
    got = compiled(h, W, targets)
    assert torch.equal(got, want)
    for a, b in zip(*(torch.autograd.grad(o.mean(), (h, W)) for o in (got, want)), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_the_custom_ops_are_well_formed():
    h, W, targets = draw((6,), 8, 20, torch.float32)
    # AOT dispatch is what test_it_compiles_whole runs; opcheck's own would differentiate dz, which is refused.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.kernels.linear_cross_entropy.default,
        (h, W, targets, 15.0, "cpp"),
        test_utils=checks,
    )
    torch.library.opcheck(
        torch.ops.kernels.linear_cross_entropy_loss.default,
        (h.detach(), W.detach(), targets, None, "cpp"),
    )


def test_triton_kernels_compile_for_every_gpu():
    # All for an H100, for the others the default model's with its gradient, and what does not fit a row.
    rows = compile_all(module.AOT, (90,)) + compile_all(module.AOT[::3], (80, 100))
    assert len(rows) == 8
    # Triton 3.6 keeps 8 bytes on the stack of sm_80 where a row does not fit; 3.7 none
    assert all(row["stack_bytes"] <= 8 for row in rows), rows


INTERPRETED = """
import torch
from tests.test_linear_cross_entropy import check, draw
from kernels import linear_cross_entropy as module
module.TRITON_CHUNK = 4
for module.BLOCK_V in (16, 64):  # a row in three blocks, and in one
    for dtype in (torch.float32, torch.bfloat16):
        for softcap in (None, 15.0, 90.0):
            h, W, targets = draw((7,), 8, 37, dtype)
            check(h, W, targets, softcap, torch.randn(7), "triton")
            with torch.no_grad():
                loss = module.linear_cross_entropy(h, W, targets, softcap, impl="triton")
                plain = module.linear_cross_entropy(h, W, targets, softcap, impl="torch")
                assert torch.allclose(loss, plain, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5)
    targets[3] = (1 << 32) + 5
    assert module.linear_cross_entropy(h, W, targets, impl="triton")[3].isnan()
    targets[3] = 37
    loss = module.linear_cross_entropy(h, W, targets, impl="triton")
    assert loss[3].isnan() and torch.autograd.grad(loss.sum(), h)[0][3].isnan().all()
    h, W, targets = draw((3,), 8, 37, torch.float32, scale=60.0)
    assert all(g.isfinite().all() for g in torch.autograd.grad(module.linear_cross_entropy(h, W, targets, impl="triton").sum(), (h, W)))
assert not module.linear_cross_entropy(torch.randn(3, 8), torch.randn(0, 8), torch.full((3,), -100), impl="triton").any()
"""


def test_triton_kernels_agree_with_float64_in_the_interpreter():
    interpret("-c", INTERPRETED)


@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_no_vocabulary_and_no_channels_are_no_accident(impl):
    """Every target ignored of no classes, and logits that are sums of nothing."""
    ignored = torch.full((3,), -100)
    h, W = torch.randn(3, 8), torch.randn(0, 8)
    if impl == "cpp":
        assert torch.equal(linear_cross_entropy(h, W, ignored, impl=impl), torch.zeros(3))
    h, W = torch.randn(3, 0, requires_grad=True), torch.randn(5, 0)
    loss = linear_cross_entropy(h, W, torch.tensor([0, 4, -100]), 15.0, impl=impl)
    assert torch.allclose(loss, torch.tensor([1.0, 1.0, 0.0]) * math.log(5))


def test_a_row_may_be_longer_than_a_threads_share():
    h, W, targets = draw((3,), 32, (1 << 15) + 1, torch.float32)
    check(h, W, targets, 15.0, torch.randn(3), "cpp")


@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_a_small_loss_of_large_logits_keeps_its_digits(impl):
    h, W = torch.ones(1, 1), torch.tensor([[100.0], [90.0]])
    loss = linear_cross_entropy(h, W, torch.tensor([0]), impl=impl)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-10)), rel=2e-3)


@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_a_saturated_logit_has_no_gradient(impl):
    """The slope of a cap at 12 to 120 times the cap is below 2e-10; in float32 it is nothing."""
    W = (torch.linspace(12.0, 120.0, 70)[:, None] * torch.tensor([1.0, -1.0])).requires_grad_()
    h = torch.eye(2).repeat(10, 1).requires_grad_()
    loss = linear_cross_entropy(h, W, torch.arange(20), 1.0, impl=impl)
    for gradient in torch.autograd.grad(loss.sum(), (h, W)):
        assert float(gradient.abs().max()) == 0


@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_an_ignored_token_has_no_gradient_whatever_comes_down(impl):
    h, W, targets = draw((12,), 8, 20, torch.float32)
    g = torch.ones(12)
    g[::5] = float("inf")
    dh, dW = torch.autograd.grad(linear_cross_entropy(h, W, targets, 15.0, impl=impl), (h, W), g)
    assert not dh[::5].any()
    assert dW.isfinite().all()


def test_a_high_cap_keeps_small_channels():
    torch.manual_seed(0)
    big, small = torch.full((64, 8), 3.4), torch.randn(64, 8) * 1e-3
    h = torch.cat([big, small], 1).bfloat16().requires_grad_()
    W = torch.cat([torch.full((500, 8), 3.4), torch.randn(500, 8)], 1).bfloat16().requires_grad_()
    targets, g = torch.randint(500, (64,)), torch.full((64,), 1e-9)
    got, want = (
        torch.autograd.grad(linear_cross_entropy(h, W, targets, 60.0, impl=impl), W, g)[0][:, 8:]
        for impl in ("cpp", "torch")
    )
    assert relative(got, want.double()) < 2e-2


def test_a_gradient_in_float16_is_refused_and_not_infinite():
    h, W, targets = draw((6,), 8, 20, torch.float16)
    with pytest.raises(RuntimeError, match="float16 cannot hold"):
        torch.ops.kernels.linear_cross_entropy(h.detach(), W.detach(), targets, 15.0, "cpp")
