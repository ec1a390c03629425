"""Muon's momentum with Nesterov's look ahead (Jordan et al. 2024), in place:

    m <- m + (1 - beta) (g - m)        g <- g + beta (m - g)

    torch    two interpolations in place, each a pass that reads two tensors and writes one: 24 bytes an element
    cpp      csrc/nesterov.cpp: both in one pass, 16 bytes
    triton   the same, a block of elements a program

Bound: memory. N float32 elements: 8 N bytes in, 8 N out. What is to be orthogonalised next overwrites the gradient, so that a step allocates
no memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import choose, custom_op, jit, overwrite


def nesterov(
    momentum: Tensor, grad: Tensor, beta: float = 0.95, *, impl: str | None = None
) -> None:
    """Move the float32 momentum towards grad, and grad towards the new momentum, in place.

    No gradient flows through it: it raises RuntimeError where one would be needed.
    """
    if momentum.shape != grad.shape or momentum.dtype != torch.float32:
        raise ValueError(
            f"nesterov: expected a float32 momentum of grad's shape, got {momentum.dtype} of shape {tuple(momentum.shape)} "
            f"and a gradient of shape {tuple(grad.shape)}"
        )
    if torch.is_grad_enabled() and (momentum.requires_grad or grad.requires_grad):
        raise RuntimeError("nesterov has no gradient: call it under torch.no_grad()")
    IMPLEMENTATIONS[choose(IMPLEMENTATIONS, impl, momentum.device)](momentum, grad, beta)


# ---- torch ----


def _torch(momentum: Tensor, grad: Tensor, beta: float) -> None:
    g = grad.float()
    momentum.lerp_(g, 1 - beta)
    g.lerp_(momentum, beta)
    if grad.dtype != torch.float32:
        grad.copy_(g)


# ---- cpp ----


def _cpp(momentum: Tensor, grad: Tensor, beta: float) -> None:
    jit.load("nesterov").update(momentum, grad, beta)


# ---- triton ----


@triton.jit
def _nesterov_kernel(m_ptr, g_ptr, N, rise, beta, BLOCK: tl.constexpr):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < N
    g = tl.load(g_ptr + offs, mask=mask).to(tl.float32)
    m = tl.load(m_ptr + offs, mask=mask)
    m += rise * (g - m)
    tl.store(m_ptr + offs, m, mask=mask)
    tl.store(g_ptr + offs, g + beta * (m - g), mask=mask)


BLOCK = 1024  # tune: 512 1024 2048 4096
WARPS = 4  # tune: 4 8


def _triton(momentum: Tensor, grad: Tensor, beta: float) -> None:
    N = momentum.numel()
    if N:
        _nesterov_kernel[(triton.cdiv(N, BLOCK),)](
            momentum, grad, N, 1 - beta, beta, BLOCK, num_warps=WARPS
        )


# The specialisation of the default model, for compiling ahead of time.
AOT = [
    (
        _nesterov_kernel,
        {"m_ptr": "*fp32", "g_ptr": "*fp32", "N": "i32", "rise": "fp32", "beta": "fp32"},
        {"BLOCK": BLOCK},
        {"num_warps": WARPS},
    )
]


# ---- custom op ----

KERNELS = {"cpp": _cpp, "triton": _triton}


@custom_op("nesterov", mutates=("momentum", "grad"))
def _op(momentum: Tensor, grad: Tensor, beta: float, impl: str) -> None:
    KERNELS[impl](momentum, grad, beta)


def _kernel(impl: str):
    def run(momentum: Tensor, grad: Tensor, beta: float) -> None:
        overwrite(_op, (momentum, grad), beta, impl)

    return run


IMPLEMENTATIONS = {"torch": _torch, "cpp": _kernel("cpp"), "triton": _kernel("triton")}
