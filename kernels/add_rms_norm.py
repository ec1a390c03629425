"""Residual addition and RMSNorm together: total = x + residual, y = rms_norm(total, weight).

    torch    an addition and the formula of kernels/rms_norm.py
    cpp      csrc/add_rms_norm.cpp: a row is added, stored and normalised while it is in L1
    triton   the same for a tile of rows

Bound: memory. R rows of D elements of b bytes: forward 4 R D b (x and residual in, total and y out), backward 4 R D b (the
gradients of both outputs and total in, one gradient out), plus 4 R for rstd.

The gradient of total joins that of y at the sum, so x and residual share one gradient: dx = dtotal + rstd * (g - n * mean(g * n)),
with n = total * rstd, g = dy * weight. The norm is that of the stored total, rounded to its dtype.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import choose, custom_op, dense, jit, rows_of


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, total): x + residual (..., D) is the total, of the type both promote to; y is its RMSNorm, times weight (D,) if given."""
    if x.shape != residual.shape:
        raise ValueError(
            f"add_rms_norm: x and residual must have one shape, got {tuple(x.shape)} and {tuple(residual.shape)}"
        )
    if weight is not None and weight.shape != x.shape[-1:]:
        raise ValueError(
            f"add_rms_norm: expected a weight ({x.shape[-1]},), got {tuple(weight.shape)}"
        )
    return IMPLEMENTATIONS[choose(IMPLEMENTATIONS, impl, x.device)](x, residual, weight, eps)


# ---- torch ----


def _torch(x: Tensor, residual: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    tf = total.float()
    y = tf * torch.rsqrt(tf.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight.float()).to(total.dtype), total


# ---- cpp ----


def _cpp_forward(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return jit.load("add_rms_norm").forward(x, residual, weight, eps)


def _cpp_backward(
    dy: Tensor, dtotal: Tensor | None, total: Tensor, weight: Tensor | None, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    return jit.load("add_rms_norm").backward(dy, dtotal, total, weight, rstd)


# ---- triton ----


@triton.jit
def _add_rms_norm_fwd_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, total_ptr, rstd_ptr, R, D, eps,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_D)
    offs = rows[:, None] * D + cols[None, :]
    mask = (rows < R)[:, None] & (cols < D)[None, :]
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    stored = (x + residual).to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + offs, stored, mask=mask)
    total = stored.to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(total * total, axis=1) / D + eps)
    tl.store(rstd_ptr + rows, rstd, mask=rows < R)
    y = total * rstd[:, None]
    if weight_ptr is not None:
        y *= tl.load(weight_ptr + cols, mask=cols < D, other=0.0)[None, :]
    tl.store(y_ptr + offs, y, mask=mask)


@triton.jit
def _add_rms_norm_bwd_kernel(
    dy_ptr, dtotal_ptr, total_ptr, weight_ptr, rstd_ptr, dx_ptr, dweight_ptr, R, D,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_D)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + cols, mask=cols < D, other=0.0)[None, :]
        dweight = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    for first in range(program * ROWS, R, tl.num_programs(0) * ROWS):
        rows = first + tl.arange(0, ROWS)
        offs = rows[:, None] * D + cols[None, :]
        mask = (rows < R)[:, None] & (cols < D)[None, :]
        dy = tl.load(dy_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        total = tl.load(total_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + rows, mask=rows < R, other=0.0)[:, None]
        if dtotal_ptr is not None:  # before the sum, over whose barriers no load is moved
            dtotal = tl.load(dtotal_ptr + offs, mask=mask, other=0.0)
        n = total * rstd
        g = dy
        if weight_ptr is not None:
            g = dy * weight
            dweight += dy * n
        dx = rstd * (g - n * (tl.sum(g * n, axis=1) / D)[:, None])
        if dtotal_ptr is not None:
            dx += dtotal.to(tl.float32)
        tl.store(dx_ptr + offs, dx, mask=mask)
    if weight_ptr is not None:
        tl.store(dweight_ptr + program * D + cols, tl.sum(dweight, axis=0), mask=cols < D)


# Elements of a tile where D is smaller: rows are taken together, so that a program has 16-byte loads for all its threads.
TILE = 2048  # tune: 512 1024 2048 4096
# Backward programs where there is a weight: enough to fill 132 SMs, few enough that their dweights (PROGRAMS, D) are cheap to write and to add.
PROGRAMS = 512  # tune: 256 512 1024 2048


def _tile(D: int) -> tuple[int, int, int]:
    """Rows and columns of a tile, and its warps (16 elements a thread, until there are 1024 threads)."""
    block = triton.next_power_of_2(D)
    rows = max(TILE // block, 1)
    return rows, block, min(max(rows * block // 512, 1), 32)


def _triton_forward(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    R, D = rows_of(x), x.shape[-1]
    y, total = torch.empty_like(x), torch.empty_like(x)
    rstd = x.new_empty(R, dtype=torch.float32)
    if x.numel():
        rows, block, warps = _tile(D)
        _add_rms_norm_fwd_kernel[(triton.cdiv(R, rows),)](
            x, residual, weight, y, total, rstd, R, D, eps, rows, block, num_warps=warps
        )
    return y, total, rstd


def _triton_backward(
    dy: Tensor, dtotal: Tensor | None, total: Tensor, weight: Tensor | None, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    R, D = rows_of(total), total.shape[-1]
    dx = torch.empty_like(total)
    if not total.numel():
        return dx, total.new_zeros(D, dtype=torch.float32)
    rows, block, warps = _tile(D)
    programs, dweights = triton.cdiv(R, rows), None
    if weight is not None:
        programs = min(PROGRAMS, programs)
        dweights = total.new_empty(programs, D, dtype=torch.float32)
    _add_rms_norm_bwd_kernel[(programs,)](
        dy, dtotal, total, weight, rstd, dx, dweights, R, D, rows, block, num_warps=warps
    )
    return dx, total.new_empty(D, dtype=torch.float32) if dweights is None else dweights.sum(0)


# The specialisations of the default model (bf16, D = 512, no weight), and the same with a weight, for compiling ahead of time.
_ROWS, _BLOCK_D, _WARPS = _tile(512)
_SHAPE = {"ROWS": _ROWS, "BLOCK_D": _BLOCK_D}
_FWD = {
    "x_ptr": "*bf16", "residual_ptr": "*bf16", "y_ptr": "*bf16", "total_ptr": "*bf16", "rstd_ptr": "*fp32",
    "R": "i32", "D": "i32", "eps": "fp32",
}  # fmt: skip
_BWD = {
    "dy_ptr": "*bf16", "dtotal_ptr": "*bf16", "total_ptr": "*bf16", "rstd_ptr": "*fp32", "dx_ptr": "*bf16",
    "R": "i32", "D": "i32",
}  # fmt: skip
AOT = [
    (_add_rms_norm_fwd_kernel, _FWD, {"weight_ptr": None, **_SHAPE}, {"num_warps": _WARPS}),
    (_add_rms_norm_fwd_kernel, {**_FWD, "weight_ptr": "*fp32"}, _SHAPE, {"num_warps": _WARPS}),
    (_add_rms_norm_bwd_kernel, _BWD, {"weight_ptr": None, "dweight_ptr": None, **_SHAPE}, {"num_warps": _WARPS}),
    (_add_rms_norm_bwd_kernel, {**_BWD, "weight_ptr": "*fp32", "dweight_ptr": "*fp32"}, _SHAPE, {"num_warps": _WARPS}),
]  # fmt: skip


# ---- custom op ----
#
# It takes x as it is shaped. Were x and the residual reshaped to rows before, the one gradient that they have in
# common would reach two leaves as two views, and torch (2.13) accumulates into both: every sum of gradients would count twice.


FORWARD = {"cpp": _cpp_forward, "triton": _triton_forward}
BACKWARD = {"cpp": _cpp_backward, "triton": _triton_backward}


@custom_op("add_rms_norm")
def _op(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    return FORWARD[impl](x, residual, weight, eps)


@_op.register_fake
def _(
    x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x), x.new_empty(rows_of(x), dtype=torch.float32)


@custom_op("add_rms_norm_backward")
def _op_backward(
    dy: Tensor, dtotal: Tensor | None, total: Tensor, weight: Tensor | None, rstd: Tensor, impl: str
) -> tuple[Tensor, Tensor]:
    return BACKWARD[impl](dy, dtotal, total, weight, rstd)


@_op_backward.register_fake
def _(
    dy: Tensor, dtotal: Tensor | None, total: Tensor, weight: Tensor | None, rstd: Tensor, impl: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(total), total.new_empty(total.shape[-1], dtype=torch.float32)


def _save(ctx, inputs, output):
    _, _, weight, _, ctx.impl = inputs
    _, total, rstd = output
    ctx.save_for_backward(total, weight, rstd)
    # an output that nothing uses sends None, not a tensor of zeros
    ctx.set_materialize_grads(False)


def _gradient(ctx, dy: Tensor | None, dtotal: Tensor | None, _):
    total, weight, rstd = ctx.saved_tensors
    if dy is None:
        return dtotal, dtotal, None, None, None
    dtotal = None if dtotal is None else dtotal.contiguous()
    dx, dweight = _op_backward(dy.contiguous(), dtotal, total, weight, rstd, ctx.impl)
    return dx, dx, None if weight is None else dweight, None, None


_op.register_autograd(_gradient, setup_context=_save)


def _kernel(impl: str):
    def run(
        x: Tensor, residual: Tensor, weight: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(x.dtype, residual.dtype)
        scale = None if weight is None else dense(weight, torch.float32)
        y, total, _ = _op(dense(x, dtype), dense(residual, dtype), scale, eps, impl)
        return y, total

    return run


IMPLEMENTATIONS = {"torch": _torch, "cpp": _kernel("cpp"), "triton": _kernel("triton")}
