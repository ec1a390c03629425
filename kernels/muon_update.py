"""What Muon does with an orthogonalised update u of a bank of matrices w (..., M, N), in place on w and on the neurons' sizes s:

    square <- mean of u^2 over each neuron            s <- s + (1 - beta) (square - s)
    step   <- lr u / sqrt(s), times what brings each matrix's step back to the length of its u           NorMuon, arXiv 2510.05491
    w      <- w - step - decay w where step and w have one sign                             cautious weight decay, arXiv 2510.12402

A neuron is a row of its matrix where s is (..., M, 1), a column where s is (..., 1, N). The whole formula is in bench/contracts/muon_update.py.

    torch    the formula, a pass over memory an operation: about ten, and three temporaries of the bank's size
    cpp      csrc/muon_update.cpp: u is read once for the squares and once, with w, for the step
    triton   the same in two launches; each program of the second sums its matrix's squares again, one per neuron, which saves a third launch

Bound: memory. N float32 elements: 8 N bytes in (w, u), 4 N out; 4 N more where u does not stay in a cache between its two readings. With u in
bfloat16 2 N less each time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import choose, custom_op, jit, overwrite

EPS = 1e-10  # a mean square below it counts as this much


def muon_update(
    weight: Tensor,
    update: Tensor,
    size: Tensor,
    lr: float = 0.02,
    decay: float = 0.0,
    beta: float = 0.95,
    *,
    impl: str | None = None,
) -> None:
    """Take a step of Muon from an orthogonalised update (..., M, N); overwrites the float32 weight, and size (..., M, 1) or (..., 1, N).

    No gradient flows through it: it raises RuntimeError where one would be needed.
    """
    *lead, M, N = weight.shape
    if update.shape != weight.shape or list(size.shape) not in ([*lead, M, 1], [*lead, 1, N]):
        raise ValueError(
            f"muon_update: weight has shape {tuple(weight.shape)}: expected an update of that shape and a size of {(*lead, M, 1)} or "
            f"{(*lead, 1, N)}, got {tuple(update.shape)} and {tuple(size.shape)}"
        )
    if weight.dtype != torch.float32 or size.dtype != torch.float32:
        raise ValueError(
            f"muon_update: expected weight and size in float32, got {weight.dtype} and {size.dtype}"
        )
    if torch.is_grad_enabled() and (weight.requires_grad or update.requires_grad):
        raise RuntimeError("muon_update has no gradient: call it under torch.no_grad()")
    run = IMPLEMENTATIONS[choose(IMPLEMENTATIONS, impl, weight.device)]
    run(weight, update, size, lr, decay, beta)


def _by_rows(weight: Tensor, size: Tensor) -> bool:
    return size.shape[-2:] == (weight.shape[-2], 1)


# ---- torch ----


def _torch(
    weight: Tensor, update: Tensor, size: Tensor, lr: float, decay: float, beta: float
) -> None:
    axis, matrix = (-1 if _by_rows(weight, size) else -2), (-2, -1)
    norm = torch.linalg.vector_norm(update, dim=axis, keepdim=True, dtype=torch.float32)
    square = norm.square() / update.shape[axis]
    size.lerp_(square, 1 - beta)
    scale = size.clamp_min(EPS).rsqrt()
    before = square.sum(matrix, keepdim=True)
    after = (square * scale.square()).sum(matrix, keepdim=True).clamp_min(EPS)
    step = update * (scale * (lr * (before / after).sqrt()))
    shrinks = (step * weight).ge_(0)
    weight.addcmul_(weight, shrinks.mul_(decay), value=-1).sub_(step)


# ---- cpp ----


def _cpp(
    weight: Tensor, size: Tensor, update: Tensor, lr: float, decay: float, beta: float
) -> None:
    jit.load("muon_update").update(weight, size, update, lr, decay, beta)


# ---- triton ----


@triton.jit
def _neuron_size_kernel(
    u_ptr, size_ptr, square_ptr, neurons, length, stride_neuron, stride_along, rise,
    NEURONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """square (B, neurons): the mean square of each neuron of u; size moves towards it. A program takes NEURONS neurons of one matrix."""
    matrix = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * NEURONS + tl.arange(0, NEURONS)
    u_ptr += matrix * neurons * length + rows[:, None] * stride_neuron
    along = tl.arange(0, BLOCK)
    acc = tl.zeros([NEURONS, BLOCK], tl.float32)
    for k in range(0, length, BLOCK):
        mask = (rows < neurons)[:, None] & (k + along < length)[None, :]
        u = tl.load(u_ptr + (k + along)[None, :] * stride_along, mask=mask, other=0.0)
        acc += u.to(tl.float32) * u.to(tl.float32)
    square = tl.sum(acc, axis=1) / length
    mask, offs = rows < neurons, matrix * neurons + rows
    size = tl.load(size_ptr + offs, mask=mask)
    tl.store(square_ptr + offs, square, mask=mask)
    tl.store(size_ptr + offs, size + rise * (square - size), mask=mask)


@triton.jit
def _floored(x, eps):
    return tl.where(x < eps, eps, x)  # a NaN stays one


@triton.jit
def _muon_step_kernel(
    w_ptr, u_ptr, size_ptr, square_ptr, neurons, length, stride_neuron, stride_along, lr, decay, eps,
    NEURONS: tl.constexpr, BLOCK: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """The step of a tile of NEURONS neurons and BLOCK elements along them; ALL is a power of two from `neurons` up."""
    matrix = tl.program_id(2).to(tl.int64)
    every = tl.arange(0, ALL)
    mask, offs = every < neurons, matrix * neurons + every
    square = tl.load(square_ptr + offs, mask=mask, other=0.0)
    sizes = tl.load(size_ptr + offs, mask=mask, other=1.0)
    before, after = tl.sum(square, axis=0), tl.sum(square / _floored(sizes, eps), axis=0)
    whole = lr * tl.sqrt(before / _floored(after, eps))
    rows = tl.program_id(0) * NEURONS + tl.arange(0, NEURONS)
    along = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    size = tl.load(size_ptr + matrix * neurons + rows, mask=rows < neurons, other=1.0)
    factor = whole / tl.sqrt(_floored(size, eps))
    tile = matrix * neurons * length + rows[:, None] * stride_neuron + along[None, :] * stride_along
    mask = (rows < neurons)[:, None] & (along < length)[None, :]
    w = tl.load(w_ptr + tile, mask=mask)
    step = factor[:, None] * tl.load(u_ptr + tile, mask=mask, other=0.0).to(tl.float32)
    tl.store(w_ptr + tile, w - w * tl.where(step * w >= 0, decay, 0.0) - step, mask=mask)


# Elements of a tile. Its longer side lies along what is contiguous: a row of 128 float32 is four 128-byte lines.
TILE = 4096  # tune: 1024 2048 4096
CONTIGUOUS = 128  # tune: 64 128 256
WARPS = 4  # tune: 4 8


def _tile(by_rows: bool) -> dict[str, int]:
    across = TILE // CONTIGUOUS
    neurons, block = (across, CONTIGUOUS) if by_rows else (CONTIGUOUS, across)
    return {"NEURONS": neurons, "BLOCK": block}


def _triton(
    weight: Tensor, size: Tensor, update: Tensor, lr: float, decay: float, beta: float
) -> None:
    if not weight.numel():
        return
    M, N = weight.shape[-2:]
    if M * N >= 2**31:
        raise ValueError(
            "muon_update: impl='triton' counts a matrix's elements in 32 bits, "
            f"got {(M, N)}; use impl='torch'"
        )
    by_rows, batch = _by_rows(weight, size), weight.numel() // (M * N)
    form = (M, N, N, 1) if by_rows else (N, M, 1, N)
    tile, square = _tile(by_rows), torch.empty_like(size)
    grid = (triton.cdiv(form[0], tile["NEURONS"]), triton.cdiv(form[1], tile["BLOCK"]), batch)
    _neuron_size_kernel[grid[0], batch](
        update, size, square, *form, 1 - beta, **tile, num_warps=WARPS
    )
    every = triton.next_power_of_2(form[0])
    _muon_step_kernel[grid](
        weight, update, size, square, *form, lr, decay, EPS, **tile, ALL=every, num_warps=WARPS
    )


# The specialisations of the default model (banks of 512 x 2048 with neurons of 512), for compiling ahead of time.
def _aot(kernel: Any, by_rows: bool) -> tuple[Any, ...]:
    types = dict.fromkeys(("w_ptr", "size_ptr", "square_ptr"), "*fp32") | {"u_ptr": "*bf16"}
    types |= dict.fromkeys(("neurons", "length", "stride_neuron", "stride_along"), "i32")
    types |= dict.fromkeys(("rise", "lr", "decay", "eps"), "fp32")
    fixed = {"stride_along" if by_rows else "stride_neuron": 1, **_tile(by_rows), "ALL": 2048}
    fixed = {name: value for name, value in fixed.items() if name in kernel.arg_names}
    types = {name: types[name] for name in kernel.arg_names if name not in fixed}
    return kernel, types, fixed, {"num_warps": WARPS}


AOT = [
    _aot(kernel, by_rows)
    for kernel in (_neuron_size_kernel, _muon_step_kernel)
    for by_rows in (True, False)
]


# ---- custom op ----

KERNELS = {"cpp": _cpp, "triton": _triton}


@custom_op("muon_update", mutates=("weight", "size"))
def _op(
    weight: Tensor, size: Tensor, update: Tensor, lr: float, decay: float, beta: float, impl: str
) -> None:
    KERNELS[impl](weight, size, update, lr, decay, beta)


def _kernel(impl: str):
    def run(
        weight: Tensor, update: Tensor, size: Tensor, lr: float, decay: float, beta: float
    ) -> None:
        dense = update.contiguous()
        overwrite(_op, (weight, size), dense, lr, decay, beta, impl)

    return run


IMPLEMENTATIONS = {"torch": _torch, "cpp": _kernel("cpp"), "triton": _kernel("triton")}
