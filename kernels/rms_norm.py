"""RMSNorm: y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2, -1) + eps)  (Zhang & Sennrich 2019, arXiv 1910.07467).

    torch    the formula; autograd keeps float32 copies and makes about fifteen passes over memory, forward and backward
    cpp      csrc/rms_norm.cpp: a row is read once and stays in L1 until it is written
    triton   the same, one program a row forward; backward walks many rows a program, so that dweight is summed in registers

Bound: memory. R rows of D elements of b bytes: forward 2 R D b, backward 3 R D b, plus 4 R for rstd.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import choose, jit


def rms_norm(
    x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, impl: str | None = None
) -> Tensor:
    """Normalise the last dimension of x (..., D) to unit root mean square, times weight (D,) if given; result in x's dtype."""
    return IMPLEMENTATIONS[choose(IMPLEMENTATIONS, impl, x.device)](x, weight, eps)


def _torch(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    xf = x.float()
    y = xf * torch.rsqrt(xf.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight.float()).to(x.dtype)


def _cpp_forward(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    return jit.load("rms_norm").forward(x, weight, eps)


def _cpp_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    return jit.load("rms_norm").backward(dy, x, weight, rstd)


@triton.jit
def _rms_norm_forward_kernel(
    x_ptr, weight_ptr, y_ptr, rstd_ptr, D, eps, HAS_WEIGHT: tl.constexpr, BLOCK_D: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK_D)
    mask = offs < D
    x = tl.load(x_ptr + row * D + offs, mask=mask, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / D + eps)
    tl.store(rstd_ptr + row, rstd)
    y = x * rstd
    if HAS_WEIGHT:
        y *= tl.load(weight_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * D + offs, y, mask=mask)


@triton.jit
def _rms_norm_backward_kernel(
    dy_ptr, x_ptr, weight_ptr, rstd_ptr, dx_ptr, dweight_ptr, R, D,
    HAS_WEIGHT: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK_D)
    mask = offs < D
    dweight = tl.zeros([BLOCK_D], dtype=tl.float32)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    for row in range(program * ROWS, min(program * ROWS + ROWS, R)):
        x = tl.load(x_ptr + row * D + offs, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * D + offs, mask=mask, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row)
        n = x * rstd
        g = dy
        if HAS_WEIGHT:
            g = dy * weight
            dweight += dy * n
        dx = rstd * (g - n * (tl.sum(g * n, axis=0) / D))
        tl.store(dx_ptr + row * D + offs, dx, mask=mask)
    if HAS_WEIGHT:
        tl.store(dweight_ptr + program * D + offs, dweight, mask=mask)


ROWS = 16  # tune: 4 8 16 32 64
# Rows a backward program walks: dweight partials shrink to R / ROWS rows, and 132 SMs x 8 programs still need R > 16 K to fill.


def _warps(block_d: int) -> int:
    return min(max(block_d // 256, 1), 16)  # 8 elements a thread: 16-byte loads of bf16


def _triton_forward(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    R, D = x.shape
    y, rstd = torch.empty_like(x), x.new_empty(R, dtype=torch.float32)
    block = triton.next_power_of_2(D)
    _rms_norm_forward_kernel[(R,)](
        x, weight, y, rstd, D, eps, weight is not None, block, num_warps=_warps(block)
    )
    return y, rstd


def _triton_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    R, D = x.shape
    dx = torch.empty_like(x)
    programs = triton.cdiv(R, ROWS)
    partial = x.new_empty((programs, D) if weight is not None else (0, D), dtype=torch.float32)
    block = triton.next_power_of_2(D)
    _rms_norm_backward_kernel[(programs,)](
        dy, x, weight, rstd, dx, partial, R, D, weight is not None, ROWS, block, num_warps=_warps(block)
    )  # fmt: skip
    return dx, partial.sum(0)


FORWARD = {"cpp": _cpp_forward, "triton": _triton_forward}
BACKWARD = {"cpp": _cpp_backward, "triton": _triton_backward}


# One custom op for all kernels: its fake and its autograd formula are written once, and torch.compile keeps it whole.
@torch.library.custom_op("kernels::rms_norm", mutates_args=())
def _op(x: Tensor, weight: Tensor | None, eps: float, impl: str) -> tuple[Tensor, Tensor]:
    return FORWARD[impl](x, weight, eps)


@torch.library.custom_op("kernels::rms_norm_backward", mutates_args=())
def _op_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor, impl: str
) -> tuple[Tensor, Tensor]:
    return BACKWARD[impl](dy, x, weight, rstd)


@_op.register_fake
def _(x: Tensor, weight: Tensor | None, eps: float, impl: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[0], dtype=torch.float32)


@_op_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor, impl: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[1], dtype=torch.float32)


def _save(ctx, inputs, output):
    x, weight, _, ctx.impl = inputs
    ctx.save_for_backward(x, weight, output[1])


def _gradient(ctx, dy: Tensor, _):
    x, weight, rstd = ctx.saved_tensors
    dx, dweight = _op_backward(dy.contiguous(), x, weight, rstd, ctx.impl)
    return dx, None if weight is None else dweight.to(weight.dtype), None, None


_op.register_autograd(_gradient, setup_context=_save)


def _kernel(impl: str):
    def run(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        scale = None if weight is None else weight.to(x.dtype).contiguous()
        return _op(rows, scale, eps, impl)[0].view(x.shape)

    return run


IMPLEMENTATIONS = {"torch": _torch, "cpp": _kernel("cpp"), "triton": _kernel("triton")}
