"""The ops that update weights in place, against float64, every implementation that runs here; Triton's kernels through the interpreter.

Triton decides when it defines a kernel whether it will interpret it, so its cases run in a second pytest with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import importlib

import pytest
import torch

from bench import aot
from kernels import INTERPRETED
from kernels.adamw import adamw
from kernels.muon_update import muon_update
from kernels.nesterov import nesterov

COMPILED = ("triton",) if INTERPRETED else ("cpp",)
ADAMW = COMPILED if INTERPRETED else ("torch", "fused", "cpp")
MUON = COMPILED if INTERPRETED else ("torch", "cpp")
UNIT = {torch.float32: 1e-6, torch.bfloat16: 2**-8}  # of what is stored, relative
OPTIONS = {"lr": 0.03, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(got, want):
    """Root mean square of the difference against that of `want`."""
    assert got.shape == want.shape
    error, size = ((t.double().square().mean().sqrt()) for t in (got - want, want))
    assert error <= UNIT[got.dtype] * size, f"error {error:.2e} of {size:.2e}"


def adam_state(*shape, dtype=torch.float32):
    """param, grad, exp_avg, exp_avg_sq"""
    param, grad, moment, square = (random(*shape, seed=s) for s in range(4))
    return param, grad.to(dtype), moment.to(dtype), square.abs().to(dtype)


@pytest.mark.parametrize("impl", ADAMW)
@pytest.mark.parametrize(
    "shape", [(1,), (17, 31), (3, 5, 40), (40, 60) if INTERPRETED else (300, 120)], ids=str
)
def test_adamw_walks_with_torchs_own_in_float64(impl, shape):
    param, moments = random(*shape), [torch.zeros(shape), torch.zeros(shape)]
    exact = param.double().requires_grad_()
    betas = OPTIONS["beta1"], OPTIONS["beta2"]
    options = {name: OPTIONS[name] for name in ("lr", "eps", "weight_decay")}
    theirs = torch.optim.AdamW([exact], betas=betas, **options)
    for step in range(1, 5):
        gradient = random(*shape, seed=step) * 10.0**-step
        exact.grad = gradient.double()
        theirs.step()
        assert adamw(param, gradient, *moments, **OPTIONS, step=step, impl=impl) is None
    assert_close(param, exact.detach())
    for moment, name in zip(moments, ("exp_avg", "exp_avg_sq"), strict=True):
        assert_close(moment, theirs.state[exact][name])


@pytest.mark.parametrize("impl", ADAMW)
def test_adamw_takes_its_step_before_bfloat16_moments_are_rounded(impl):
    state = adam_state(40, 50, dtype=torch.bfloat16)
    exact = [t.double() for t in state]
    adamw(*state, **OPTIONS, step=3, impl=impl)
    adamw_in_float64(*exact, step=3)
    assert state[2].dtype == state[3].dtype == torch.bfloat16
    for got, want in zip(state, exact, strict=True):
        assert_close(got, want)


def adamw_in_float64(param, grad, moment, square, step):
    moment.mul_(0.8).add_(0.2 * grad)
    square.mul_(0.95).add_(0.05 * grad**2)
    size = (square / (1 - 0.95**step)).sqrt() + OPTIONS["eps"]
    param.mul_(1 - 0.003).sub_(0.03 * moment / (1 - 0.8**step) / size)


@pytest.mark.parametrize("impl", ADAMW)
def test_adamw_writes_through_strides_and_nothing_beside_them(impl):
    param, grad, moment, square = adam_state(12, 9)
    memory = torch.full((9, 24), 5.0)
    view = memory[:, ::2].t()
    view.copy_(param)
    dense = [param.clone(), grad.clone(), moment.clone(), square.clone()]
    adamw(*dense, step=2, impl=impl)
    adamw(view, grad.t().contiguous().t(), moment, square, step=2, impl=impl)
    torch.testing.assert_close(view, dense[0])
    assert (memory[:, 1::2] == 5.0).all()


@pytest.mark.parametrize("impl", MUON)
@pytest.mark.parametrize("dtype", UNIT, ids=str)
def test_nesterov_looks_ahead_from_the_new_momentum(impl, dtype):
    momentum, gradient = random(3, 40, 50), random(3, 40, 50, seed=1).to(dtype)
    exact = 0.9 * momentum.double() + 0.1 * gradient.double()
    ahead = 0.1 * gradient.double() + 0.9 * exact
    assert nesterov(momentum, gradient, 0.9, impl=impl) is None
    assert gradient.dtype == dtype
    assert_close(momentum, exact)
    assert_close(gradient, ahead)


@pytest.mark.parametrize("impl", MUON)
@pytest.mark.parametrize("dtype", UNIT, ids=str)
@pytest.mark.parametrize("by_rows", [True, False], ids=("rows", "columns"))
@pytest.mark.parametrize(
    "shape",
    [(2, 3, 17, 40), (2, 100, 150)]
    if INTERPRETED
    else [(2, 3, 17, 40), (2, 600, 70), (70, 9), (2, 1, 5), (5, 1)],
    ids=str,
)
def test_muon_update_matches_float64_matrix_by_matrix(impl, dtype, by_rows, shape):
    weight, update = random(*shape), random(*shape, seed=1).to(dtype)
    size = random(*((*shape[:-1], 1) if by_rows else (*shape[:-2], 1, shape[-1])), seed=2).abs()
    exact = [t.double() for t in (weight, update, size)]
    muon_update(weight, update, size, lr=0.1, decay=0.05, beta=0.8, impl=impl)
    for w, u, s in zip(*(t.reshape(-1, *t.shape[-2:]) for t in exact), strict=True):
        if not by_rows:
            w, u, s = w.mT, u.mT, s.mT
        for neuron, mean in zip(u, s, strict=True):
            mean.mul_(0.8).add_(0.2 * (neuron @ neuron) / len(neuron))
        step = u / s.sqrt()
        step *= 0.1 * u.norm() / step.norm()
        w.copy_(torch.where(step.sign() == w.sign(), 0.95 * w, w) - step)
    assert_close(weight, exact[0])
    assert_close(size, exact[2])


@pytest.mark.parametrize("impl", MUON)
def test_muon_update_writes_through_strides_and_passes_nan_on(impl):
    bank = random(4, 6, 10)
    dense, update, size = (
        bank[:, :3].mT.contiguous(),
        random(4, 10, 3, seed=1),
        torch.ones(4, 10, 1),
    )
    update[2, 0, 0] = float("nan")
    beside = bank[:, 3:].clone()
    sizes = size.clone()
    muon_update(dense, update, size, decay=0.1, impl=impl)
    muon_update(bank[:, :3].mT, update, sizes, decay=0.1, impl=impl)
    torch.testing.assert_close(bank[:, :3].mT, dense, equal_nan=True)
    assert torch.equal(bank[:, 3:], beside)
    assert dense[2].isnan().all()
    assert dense[[0, 1, 3]].isfinite().all()
    assert sizes[2].isnan().flatten().tolist() == [True] + [False] * 9


@pytest.mark.skipif(INTERPRETED, reason="threads are the C++ kernels'")
@pytest.mark.parametrize("by_rows", [True, False], ids=("rows", "columns"))
def test_muon_update_does_not_depend_on_the_number_of_threads(by_rows):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            weight, update = random(2, 400, 300), random(2, 400, 300, seed=1)
            size = torch.ones(2, 400, 1) if by_rows else torch.ones(2, 1, 300)
            muon_update(weight, update, size, decay=0.1, impl="cpp")
            found.append((weight, size))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for f in found[1:] for a, b in zip(f, found[0], strict=True))


@pytest.mark.parametrize("impl", COMPILED)
def test_an_update_is_seen_by_autograd_and_by_torch_compile(impl):
    eager, compiled = ([t.clone() for t in adam_state(6, 24)] for _ in range(2))
    if not INTERPRETED:  # torch.compile does not run with it

        def twice(*state):
            weight, gradient, moment, square = state
            adamw(*state, impl=impl)
            nesterov(moment, gradient, impl=impl)
            muon_update(weight, gradient, square[:1], decay=0.1, impl=impl)
            adamw(*state, impl=impl)
            return weight * 2

        doubled = torch.compile(twice, fullgraph=True, backend="aot_eager")(*compiled)
        torch.testing.assert_close(twice(*eager), doubled)
        torch.testing.assert_close(eager, compiled)
    weight = random(4).requires_grad_()
    loss = weight.square().sum()
    with torch.no_grad():
        adamw(weight, *adam_state(4)[1:], impl=impl)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.skipif(INTERPRETED, reason="the C++ kernels' own checks")
def test_wrong_arguments_are_named():
    param, grad, moment, square = adam_state(3, 4)
    with pytest.raises(ValueError, match=r"grad has shape \(2, 4\): expected param's, \(3, 4\)"):
        adamw(param, grad[:2], moment, square)
    with pytest.raises(ValueError, match="both moments in one type"):
        adamw(param, grad, moment, square.bfloat16())
    with pytest.raises(ValueError, match=r"of grad's shape, got torch.float32 of shape \(3, 4\)"):
        nesterov(moment, grad[:2])
    with pytest.raises(
        ValueError, match=r"a size of \(3, 1\) or \(1, 4\), got \(3, 4\) and \(3, 4\)"
    ):
        muon_update(param, grad, square)
    for update, arguments in (
        (adamw, (moment, square)),
        (muon_update, (torch.ones(3, 1),)),
    ):
        with pytest.raises(RuntimeError, match="no gradient: call it under torch.no_grad"):
            update(param.detach().requires_grad_(), grad, *arguments)


@pytest.mark.skipif(INTERPRETED, reason="an interpreted kernel is not compiled")
@pytest.mark.parametrize("op", ["adamw", "nesterov", "muon_update"])
def test_triton_compiles_ahead_of_time_and_spills_next_to_nothing(op):
    rows = aot.compile_all(importlib.import_module(f"kernels.{op}").AOT, (80, 90, 100))
    # muon_update keeps two words on the stack of a B200
    assert all(row["stack_bytes"] <= (8 if row["arch"] == 100 else 0) for row in rows), rows
