"""AdamW: one step of Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101), in place:

    m <- m + (1 - beta1) (g - m)        v <- beta2 v + (1 - beta2) g^2
    w <- (1 - lr weight_decay) w - lr / (1 - beta1^step) * m / (sqrt(v / (1 - beta2^step)) + eps)

    torch    the formula, a pass over memory an operation: ten in float32
    fused    torch's own single pass, torch._fused_adamw_, which wants all tensors in one type: others are converted there and back
    cpp      csrc/adamw.cpp: a single pass, each tensor in its own type
    triton   the same, a block of elements a program

Bound: memory. N float32 elements: 16 N bytes in (w, g, m, v), 12 N out (w, m, v). With moments and gradient in bfloat16 10 N and 8 N.

A call updates one tensor. On a CPU a table of a model takes about a millisecond, beside which the 10 us of overhead per call that a list of
tensors would save are nothing. An H100 takes 35 us by its bytes (8192 x 512); there the host launches ahead of the device.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import choose, custom_op, jit, overwrite


def adamw(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    step: int = 1,
    *,
    impl: str | None = None,
) -> None:
    """Step number `step` (from 1) of a float32 weight; updates param, exp_avg and exp_avg_sq, the two in one type, in place.

    No gradient flows through it: it raises RuntimeError where one would be needed.
    """
    for name, t in (("grad", grad), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        if t.shape != param.shape:
            raise ValueError(f"adamw: {name} has shape {tuple(t.shape)}: expected param's, {tuple(param.shape)}")  # fmt: skip
    if param.dtype != torch.float32 or exp_avg.dtype != exp_avg_sq.dtype:
        raise ValueError(
            f"adamw: expected a float32 param and both moments in one type, got {param.dtype}, {exp_avg.dtype} and {exp_avg_sq.dtype}"
        )
    if torch.is_grad_enabled() and (param.requires_grad or grad.requires_grad):
        raise RuntimeError("adamw has no gradient: call it under torch.no_grad()")
    run = IMPLEMENTATIONS[choose(IMPLEMENTATIONS, impl, param.device)]
    run(param, grad, exp_avg, exp_avg_sq, lr, beta1, beta2, eps, weight_decay, step)


# ---- torch ----


def _torch(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int,
) -> None:  # fmt: skip
    g = grad.float()
    m = exp_avg.float().lerp(g, 1 - beta1)
    v = (exp_avg_sq.float() * beta2).addcmul_(g, g, value=1 - beta2)
    size = (v / (1 - beta2**step)).sqrt_().add_(eps)
    param.mul_(1 - lr * weight_decay).addcdiv_(m, size, value=-lr / (1 - beta1**step))
    exp_avg.copy_(m)
    exp_avg_sq.copy_(v)


# ---- fused ----


def _fused(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int,
) -> None:  # fmt: skip
    states = (param, exp_avg, exp_avg_sq)
    w, m, v = (t.float().contiguous() for t in states)
    steps = torch.full((), float(step), device=param.device)
    torch._fused_adamw_(
        [w], [grad.float().contiguous()], [m], [v], [], [steps],
        lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay, eps=eps, amsgrad=False, maximize=False,
    )  # fmt: skip
    for state, updated in zip(states, (w, m, v), strict=True):
        if state.dtype != torch.float32 or not state.is_contiguous():
            state.copy_(updated)


# ---- cpp ----


def _cpp(
    param: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, grad: Tensor,
    keep: float, rate: float, beta1: float, beta2: float, root: float, eps: float,
) -> None:  # fmt: skip
    jit.load("adamw").update(param, exp_avg, exp_avg_sq, grad, keep, rate, beta1, beta2, root, eps)


# ---- triton ----


@triton.jit
def _adamw_kernel(
    w_ptr, m_ptr, v_ptr, g_ptr, N, keep, rate, rise1, beta2, rise2, root, eps, BLOCK: tl.constexpr
):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < N
    g = tl.load(g_ptr + offs, mask=mask).to(tl.float32)
    m = tl.load(m_ptr + offs, mask=mask).to(tl.float32)
    v = tl.load(v_ptr + offs, mask=mask).to(tl.float32)
    w = tl.load(w_ptr + offs, mask=mask)
    m += rise1 * (g - m)
    v = beta2 * v + rise2 * g * g
    tl.store(m_ptr + offs, m, mask=mask)
    tl.store(v_ptr + offs, v, mask=mask)
    tl.store(w_ptr + offs, keep * w - rate * m / (tl.sqrt(v) * root + eps), mask=mask)


# 8 elements a thread: two 16-byte loads of each of four tensors are under way at once.
BLOCK = 1024  # tune: 512 1024 2048 4096
WARPS = 4  # tune: 4 8


def _triton(
    param: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, grad: Tensor,
    keep: float, rate: float, beta1: float, beta2: float, root: float, eps: float,
) -> None:  # fmt: skip
    N = param.numel()
    if N:
        _adamw_kernel[(triton.cdiv(N, BLOCK),)](
            param, exp_avg, exp_avg_sq, grad, N,
            keep, rate, 1 - beta1, beta2, 1 - beta2, root, eps, BLOCK, num_warps=WARPS,
        )  # fmt: skip


# The specialisations of the default model (all float32) and of a lean one (bfloat16 moments and gradient), for compiling ahead of time.
_NUMBERS = ("keep", "rate", "rise1", "beta2", "rise2", "root", "eps")
AOT = [
    (
        _adamw_kernel,
        {"w_ptr": "*fp32", "m_ptr": state, "v_ptr": state, "g_ptr": state, "N": "i32", **dict.fromkeys(_NUMBERS, "fp32")},
        {"BLOCK": BLOCK},
        {"num_warps": WARPS},
    )
    for state in ("*fp32", "*bf16")
]  # fmt: skip


# ---- custom op ----
#
# What depends on the step alone is worked out before it, in double precision.

KERNELS = {"cpp": _cpp, "triton": _triton}


@custom_op("adamw", mutates=("param", "exp_avg", "exp_avg_sq"))
def _op(
    param: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, grad: Tensor,
    keep: float, rate: float, beta1: float, beta2: float, root: float, eps: float, impl: str,
) -> None:  # fmt: skip
    KERNELS[impl](param, exp_avg, exp_avg_sq, grad, keep, rate, beta1, beta2, root, eps)


def _kernel(impl: str):
    def run(
        param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor,
        lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int,
    ) -> None:  # fmt: skip
        keep, rate = 1 - lr * weight_decay, lr / (1 - beta1**step)
        root = 1 / math.sqrt(1 - beta2**step)
        states, g = (param, exp_avg, exp_avg_sq), grad.contiguous()
        overwrite(_op, states, g, keep, rate, beta1, beta2, root, eps, impl)

    return run


IMPLEMENTATIONS = {
    "torch": _torch,
    "fused": _fused,
    "cpp": _kernel("cpp"),
    "triton": _kernel("triton"),
}
