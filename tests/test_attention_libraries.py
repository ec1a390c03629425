"""What others have written of attention: what each says it does not do, and that ours asks it for the right band, heads and layout.

No GPU is needed: FlexAttention runs uncompiled, and flash-attn-4 is stood in for by float32 attention behind its two functions.
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from agent.static.python import inspect_source
from bench.contracts.attention import CONTRACT, reference
from bench.runner.calls import Calls
from kernels import attention as module
from kernels.attention import LIBRARIES, attention

BANDS = [(True, None), (True, 1), (True, 31), (False, None), (False, 31)]
FA4 = "flash_attn.cute.interface"


def heads(H: int, Hkv: int, T: int = 70, D: int = 16, dtype=torch.bfloat16) -> list[torch.Tensor]:
    """q, k and v as a projection leaves them: (B, T, H, D) in memory."""
    generator = torch.Generator().manual_seed(H)
    return [torch.randn(2, T, h, D, generator=generator).to(dtype).transpose(1, 2) for h in (H, Hkv, Hkv)]  # fmt: skip


def exact(q, k, v, causal, window):
    return reference(q.double(), k.double(), v.double(), causal, window)


def close(got, want) -> bool:
    return bool((got.double() - want).norm() <= 1e-2 * want.norm())


def _weights(q, k, causal, left, right):
    """The softmax and its log-sum-exp, of a band as flash-attn-4 documents its arguments: its ends, None for none."""
    ahead = torch.arange(q.shape[2]) - torch.arange(q.shape[2])[:, None]
    hidden = (ahead > 0) & causal
    hidden = hidden if left is None else hidden | (ahead < -left)
    hidden = hidden if right is None else hidden | (ahead > right)
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf)
    return scores.softmax(-1), scores.logsumexp(-1)


def _by_head(group, *tensors):
    """(B, H, T, D) in float32, heads of keys as many as of queries."""
    found = [x.transpose(1, 2).float() for x in tensors]
    return [x.repeat_interleave(group // x.shape[1], 1) for x in found]


def _forward(q, k, v, *, causal, window_size_left, window_size_right, return_lse):
    assert return_lse
    qh, kh, vh = _by_head(q.shape[2], q, k, v)
    p, lse = _weights(qh, kh, causal, window_size_left, window_size_right)
    return (p @ vh).transpose(1, 2).to(q.dtype).contiguous(), lse, None, None, None


def _backward(q, k, v, o, do, lse, *, causal, window_size_left, window_size_right):
    qh, kh, vh, oh, doh = _by_head(q.shape[2], q, k, v, o, do)
    p, rebuilt = _weights(qh, kh, causal, window_size_left, window_size_right)
    assert torch.allclose(lse, rebuilt)
    ds = p * (doh @ vh.mT - (doh * oh).sum(-1, keepdim=True)) / q.shape[-1] ** 0.5
    gradients = []
    for x, dx in ((q, ds @ kh), (k, ds.mT @ qh), (v, p.mT @ doh)):
        grouped = dx.unflatten(1, (x.shape[2], -1)).sum(2)
        gradients.append(grouped.transpose(1, 2).to(x.dtype).contiguous())
    return gradients


@pytest.fixture
def fa4(monkeypatch):
    for name in ("flash_attn", "flash_attn.cute", FA4):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[FA4]._flash_attn_fwd, sys.modules[FA4]._flash_attn_bwd = _forward, _backward
    return LIBRARIES["fa4"]


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_runs_where_it_is_named_and_on_cuda_tensors_alone(name):
    with pytest.raises(RuntimeError, match=f"impl='{name}' runs on cuda tensors, got a cpu tensor"):
        attention(*heads(2, 2), impl=name)


def test_a_library_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(RuntimeError, match="pip install flash-attn-4"):
        LIBRARIES["fa4"](*heads(2, 2), True, None)


@pytest.mark.parametrize(
    ("name", "inputs", "window", "words"),
    [
        ("cudnn", heads(2, 2), 16, "'cudnn' knows no window, got window=16"),
        ("cudnn", heads(4, 2), None, "as many heads of keys as of queries, got 4 and 2"),
        ("cudnn", heads(2, 2, dtype=torch.float32), None, "bfloat16 or float16, got torch.float32"),
        ("fa4", heads(2, 2, dtype=torch.float32), None, "bfloat16 or float16, got torch.float32"),
    ],
)
def test_what_a_library_does_not_do_it_says(name, inputs, window, words):
    with pytest.raises(ValueError, match=words):
        LIBRARIES[name](*inputs, True, window)


@pytest.mark.parametrize(("causal", "window"), BANDS)
def test_flash_attention_4_is_asked_for_the_ops_band_and_heads(fa4, causal, window):
    inputs = [x.detach().requires_grad_() for x in heads(4, 2)]
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    o, want = fa4(*inputs, causal, window), exact(*doubles, causal, window)
    do = torch.randn(o.shape, generator=torch.Generator().manual_seed(9)).to(o.dtype)
    assert close(o, want)
    gradients = torch.autograd.grad(o, inputs, do)
    for x, got, wanted in zip(inputs, gradients, torch.autograd.grad(want, doubles, do.double()), strict=True):  # fmt: skip
        if window == 1 and x is not inputs[2]:
            # with one key a query dq and dk are zero, and what is left of them is rounding
            assert got.double().norm() <= 1e-2 * do.double().norm()
        else:
            assert close(got, wanted)
        assert got.dtype == x.dtype


@pytest.mark.parametrize("contiguous", [True, False])
def test_flash_attention_4_keeps_the_promise_of_the_ops_fake(fa4, contiguous):
    inputs = [x.contiguous() if contiguous else x for x in heads(2, 2)]
    torch.library.opcheck(
        torch.ops.kernels.attention.default,
        (*inputs, True, 31, "fa4"),
        test_utils="test_faketensor",
    )
    leaves = [x.detach().requires_grad_() for x in inputs]
    o = fa4(*leaves, True, 31)
    assert o.stride() == inputs[0].stride()
    for x, got in zip(leaves, torch.autograd.grad(o.sum(), leaves), strict=True):
        assert got.stride() == x.stride()


@pytest.mark.parametrize(("causal", "window"), BANDS)
def test_flex_attention_is_given_the_ops_band_and_heads(monkeypatch, causal, window):
    monkeypatch.setattr(module, "_compiled_flex", lambda: module.flex_attention)
    inputs = heads(4, 2, dtype=torch.float32)
    assert close(LIBRARIES["flex"](*inputs, causal, window), exact(*inputs, causal, window))


def test_flash_attention_4_may_be_imported_by_the_file_of_attention_alone():
    line = "from flash_attn.cute.interface import _flash_attn_fwd"
    assert not inspect_source("kernels/attention.py", line).refusals
    assert inspect_source("kernels/rms_norm.py", line).refusals
    assert inspect_source("kernels/attention.py", "import flash_attn.utils").refusals


def test_a_trace_shows_a_package_that_launches_past_the_dispatcher(fa4, monkeypatch):
    calls = Calls(None)
    monkeypatch.setattr(calls, "whole", lambda request: None)
    (seen,) = calls.do_trace({})["operators"]
    assert seen.startswith(CONTRACT.library)
