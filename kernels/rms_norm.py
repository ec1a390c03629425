"""RMSNorm: y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2, -1) + eps)  (Zhang & Sennrich 2019, arXiv 1910.07467).

    torch    the formula; autograd keeps float32 copies and makes about fifteen passes over memory, forward and backward
    cpp      csrc/rms_norm.cpp: a row is read once and stays in L1 until it is written
    triton   a tile of rows a program; backward walks many tiles a program, so that dweight is summed in registers

Bound: memory. R rows of D elements of b bytes: forward 2 R D b, backward 3 R D b, plus 4 R for rstd.

With n = x * rstd and g = dy * weight, the gradients are  dx = rstd * (g - n * mean(g * n)),  dweight = sum over rows of dy * n.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import choose, custom_op, dense, jit, rows_of


def rms_norm(
    x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, *, impl: str | None = None
) -> Tensor:
    """Normalise the last dimension of x (..., D) to unit root mean square, times weight (D,) if given; result in x's dtype.

    Raises ValueError for a weight of another shape.
    """
    if weight is not None and weight.shape != x.shape[-1:]:
        raise ValueError(f"rms_norm: expected a weight ({x.shape[-1]},), got {tuple(weight.shape)}")
    return IMPLEMENTATIONS[choose(IMPLEMENTATIONS, impl, x.device)](x, weight, eps)


# ---- torch ----


def _torch(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    xf = x.float()
    y = xf * torch.rsqrt(xf.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight.float()).to(x.dtype)


# ---- cpp ----


def _cpp_forward(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    return jit.load("rms_norm").forward(x, weight, eps)


def _cpp_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    return jit.load("rms_norm").backward(dy, x, weight, rstd)


# ---- triton ----


@triton.jit
def _rms_norm_fwd_kernel(
    x_ptr, weight_ptr, y_ptr, rstd_ptr, R, D, eps, ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_D)
    offs = rows[:, None] * D + cols[None, :]
    mask = (rows < R)[:, None] & (cols < D)[None, :]
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / D + eps)
    tl.store(rstd_ptr + rows, rstd, mask=rows < R)
    y = x * rstd[:, None]
    if weight_ptr is not None:
        y *= tl.load(weight_ptr + cols, mask=cols < D, other=0.0)[None, :]
    tl.store(y_ptr + offs, y, mask=mask)


@triton.jit
def _rms_norm_bwd_kernel(
    dy_ptr, x_ptr, weight_ptr, rstd_ptr, dx_ptr, dweight_ptr, R, D,
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
        x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + rows, mask=rows < R, other=0.0)[:, None]
        n = x * rstd
        g = dy
        if weight_ptr is not None:
            g = dy * weight
            dweight += dy * n
        dx = rstd * (g - n * (tl.sum(g * n, axis=1) / D)[:, None])
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


def _triton_forward(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    R, D = rows_of(x), x.shape[-1]
    y, rstd = torch.empty_like(x), x.new_empty(R, dtype=torch.float32)
    if x.numel():
        rows, block, warps = _tile(D)
        _rms_norm_fwd_kernel[(triton.cdiv(R, rows),)](
            x, weight, y, rstd, R, D, eps, rows, block, num_warps=warps
        )
    return y, rstd


def _triton_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    R, D = rows_of(x), x.shape[-1]
    dx = torch.empty_like(x)
    if not x.numel():
        return dx, x.new_zeros(D, dtype=torch.float32)
    rows, block, warps = _tile(D)
    programs, dweights = triton.cdiv(R, rows), None
    if weight is not None:
        programs = min(PROGRAMS, programs)
        dweights = x.new_empty(programs, D, dtype=torch.float32)
    _rms_norm_bwd_kernel[(programs,)](
        dy, x, weight, rstd, dx, dweights, R, D, rows, block, num_warps=warps
    )
    return dx, x.new_empty(D, dtype=torch.float32) if dweights is None else dweights.sum(0)


# The specialisations of the default model (bf16, D = 512, no weight), and the same with a weight, for compiling ahead of time.
_ROWS, _BLOCK_D, _WARPS = _tile(512)
_SHAPE = {"ROWS": _ROWS, "BLOCK_D": _BLOCK_D}
_FWD = {"x_ptr": "*bf16", "y_ptr": "*bf16", "rstd_ptr": "*fp32", "R": "i32", "D": "i32", "eps": "fp32"}  # fmt: skip
_BWD = {"dy_ptr": "*bf16", "x_ptr": "*bf16", "rstd_ptr": "*fp32", "dx_ptr": "*bf16", "R": "i32", "D": "i32"}  # fmt: skip
AOT = [
    (_rms_norm_fwd_kernel, _FWD, {"weight_ptr": None, **_SHAPE}, {"num_warps": _WARPS}),
    (_rms_norm_fwd_kernel, {**_FWD, "weight_ptr": "*fp32"}, _SHAPE, {"num_warps": _WARPS}),
    (_rms_norm_bwd_kernel, _BWD, {"weight_ptr": None, "dweight_ptr": None, **_SHAPE}, {"num_warps": _WARPS}),
    (_rms_norm_bwd_kernel, {**_BWD, "weight_ptr": "*fp32", "dweight_ptr": "*fp32"}, _SHAPE, {"num_warps": _WARPS}),
]  # fmt: skip


# ---- custom op ----

FORWARD = {"cpp": _cpp_forward, "triton": _triton_forward}
BACKWARD = {"cpp": _cpp_backward, "triton": _triton_backward}


@custom_op("rms_norm")
def _op(x: Tensor, weight: Tensor | None, eps: float, impl: str) -> tuple[Tensor, Tensor]:
    return FORWARD[impl](x, weight, eps)


@_op.register_fake
def _(x: Tensor, weight: Tensor | None, eps: float, impl: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(rows_of(x), dtype=torch.float32)


@custom_op("rms_norm_backward")
def _op_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor, impl: str
) -> tuple[Tensor, Tensor]:
    return BACKWARD[impl](dy, x, weight, rstd)


@_op_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor, impl: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[-1], dtype=torch.float32)


def _save(ctx, inputs, output):
    x, weight, _, ctx.impl = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.set_materialize_grads(False)  # rstd has no gradient: None, not a tensor of zeros


def _gradient(ctx, dy: Tensor, _):
    x, weight, rstd = ctx.saved_tensors
    dx, dweight = _op_backward(dy.contiguous(), x, weight, rstd, ctx.impl)
    return dx, None if weight is None else dweight, None, None


_op.register_autograd(_gradient, setup_context=_save)


def _kernel(impl: str):
    def run(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        scale = None if weight is None else dense(weight, torch.float32)
        return _op(x.contiguous(), scale, eps, impl)[0]

    return run


IMPLEMENTATIONS = {"torch": _torch, "cpp": _kernel("cpp"), "triton": _kernel("triton")}
