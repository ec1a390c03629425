"""Newton-Schulz iteration: the polar factor U V^T of G = U S V^T, roughly, as Muon wants it (Jordan et al. 2024): same singular vectors,
singular values brought near one by an odd polynomial a step, X <- (a I + b X X^T + c (X X^T)^2) X.

    torch    three products a step
    cpp      products whose result is symmetric only up to the diagonal, in tiles that stay in registers (csrc/product.h; bfloat16 where the
             processor has AVX512-BF16), and, where a float32 G is much longer than wide, steps taken on the Gram matrix R = X X^T, n x n,
             alone: with P = a I + b R + c R^2 a step is Q <- P Q, R <- P R P, and X <- Q X is made good at the end of a segment
    triton   the symmetric products by their lower tiles, each stored twice; both polynomials in the products' epilogues

Products are made in G's dtype (in float32 where a CPU has no fast ones): bfloat16 for Muon's usual precision, float32 for singular vectors true to 1e-4. Iteration runs on the
shorter side n: (4 n^2 m + 2 n^3) flops a step and matrix, plain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import AMX, AVX512_BF16, INTERPRETED, choose, custom_op, jit, product_dtype


def newton_schulz(G: Tensor, steps: int = 5, *, impl: str | None = None) -> Tensor:
    """Orthogonalise each matrix of G (..., M, N), tall or wide; result contiguous, in G's dtype. Zeros stay zeros.

    For an optimizer: no gradient flows through it, and RuntimeError says so where one would be asked for.
    """
    if G.ndim < 2 or not G.is_floating_point():
        raise ValueError(
            f"expected floating matrices (..., M, N), got {G.dtype} of shape {tuple(G.shape)}"
        )
    if steps < 1:
        raise ValueError(f"expected steps >= 1, got {steps}")
    if torch.is_grad_enabled() and G.requires_grad:
        raise RuntimeError("newton_schulz has no gradient: call it under torch.no_grad()")
    call = IMPLEMENTATIONS[choose(IMPLEMENTATIONS, impl, G.device)]
    if not torch.is_autocast_enabled(G.device.type):
        return call(G, steps)
    # It would make bfloat16 of a float32 product.
    with torch.autocast(G.device.type, enabled=False):
        return call(G, steps)


# Polar Express (Amsel et al. 2025, arXiv 2505.16932), its table for 5 steps with 2 % of safety: each polynomial is the best for the
# interval that the one before leaves; singular values from 7.4e-4 of the Frobenius norm up end in 0.86 .. 1.14.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# Keller Jordan's, the same every step: keeps values in 0.68 .. 1.13, and may leave one that is just arriving at 1.20.
QUINTIC = (3.4445, -4.7750, 2.0315)
# The first polynomial explodes above 1; rounding must not carry a singular value there.
SAFETY = 1.02
TINY = 1e-20  # a Frobenius norm below it counts as zero


def coefficients(steps: int) -> list[tuple[float, float, float]]:
    """(a, b, c) of each step. The table's last three steps close in on one, its second only widens what they can reach.

    So more than 5 steps repeat the second: 6 reach down to 1.8e-4, 7 to 4.6e-5 (repeating the last: 3.2e-4, 1.4e-4, where the quintic
    reaches 4.3e-4, 1.2e-4). Cut below 4 steps the table would leave values at 1.97, so there the quintic is better.
    """
    if steps < 4:
        return [QUINTIC] * steps
    first, second, *last = POLAR_EXPRESS
    return [first, *[second] * (steps - 4), *last]


def _scales(G: Tensor) -> tuple[Tensor, Tensor]:
    """G as (B, M, N), and the factors (B, 1, 1) in float32 that give each matrix a Frobenius norm of 1 / SAFETY."""
    X = G.reshape(math.prod(G.shape[:-2]), *G.shape[-2:])
    norm = torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    return X, 1 / (norm * SAFETY).clamp_min(TINY)


def _normalised(G: Tensor, dtype: torch.dtype) -> Tensor:
    """G as (B, M, N) in `dtype`, each matrix of Frobenius norm 1 / SAFETY, or zero.

    `out`, because the product of a bfloat16 and a float32 tensor is a float32 copy first: 938 MB for 16 x 1024 x 4096 where 402 are enough.
    """
    X, scale = _scales(G)
    return torch.mul(X, scale, out=torch.empty(X.shape, dtype=dtype, device=X.device))


# ---- torch ----


def _torch(G: Tensor, steps: int) -> Tensor:
    X, scale = _scales(G)
    X = (X * scale).to(product_dtype(G))
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X
    for a, b, c in coefficients(steps):
        A = X @ X.mT
        # one rounding: in bfloat16 a sum of two rounded terms loses 2 % here
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, B, X, beta=a)
    return (X.mT if tall else X).to(G.dtype).reshape(G.shape).contiguous()


# ---- cpp ----

OWN_PRODUCTS = 512  # tune: 256 384 512 768
# Up to this side float32 is multiplied by csrc/product.h, beyond it by torch: 276 and 244 GFLOP/s at 192 x 192, 245 and 308 at 1024 x 1024.
OWN_PRODUCTS_BF16 = 2048  # tune: 1024 2048 4096
# The same of bfloat16. A product is as fast as torch's (409 GFLOP/s on two Zen 4 cores), a symmetric one takes 0.62 of its time at 192 x 192;
# five steps take 0.76 of the time at 1024 x 1024 and 0.85 at 2048 x 2048. The tiles of AMX are faster than either.
PANELS = 4  # tune: 2 3 4 6 8
# torch's panels of rows of a symmetric product: p of them do (p + 1) / 2p of the arithmetic, and meet all threads p times.
PANEL = 64  # tune: 32 48 64 96 128
PANEL_BF16 = 256  # tune: 128 192 256 384 512
# Rows that a panel has at least, in float32 and in bfloat16: thinner ones run too far below the speed of a square product.
GRAM_ASPECT = 1.5  # tune: 1.25 1.5 2.0 3.0
# From this m / n on, steps on the n x n Gram matrix save more in products with X than they cost.
SEGMENT = 3
# Steps on the Gram matrix before it is made anew from X. A step multiplies R's rounding error by up to a^2: three steps take 6e-8 to
# 1e-3 of what they bring near one, five would take it to 6e-2 and seven to 15, a divergence.


def _segments(steps: int, n: int, m: int, dtype: torch.dtype) -> list[int]:
    """Steps between two products with X. Segments of one step are the plain iteration; bfloat16 has no bits for more."""
    length = SEGMENT if dtype == torch.float32 and m >= GRAM_ASPECT * n else 1
    first = steps % length or length
    return [first] + [length] * ((steps - first) // length)


def _own(dtype: torch.dtype, n: int) -> bool:
    """Whether matrices of the shorter side n are multiplied by csrc/product.h."""
    if dtype == torch.bfloat16:
        return jit.isa() == "avx512" and AVX512_BF16 and not AMX and n <= OWN_PRODUCTS_BF16
    return dtype == torch.float32 and n <= OWN_PRODUCTS


def _symmetric(
    left: Tensor, right: Tensor, add: Tensor | None = None, a: float = 0.0, b: float = 0.0, c: float = 1.0
) -> Tensor:  # fmt: skip
    """a I + b add + c left @ right, (B, n, n), where the product is known to be symmetric."""
    B, n, _ = left.shape
    out = left.new_empty(B, n, n)
    own = _own(left.dtype, n)
    thinnest = PANEL if own or left.dtype == torch.float32 else PANEL_BF16
    panel_rows = max(math.ceil(n / PANELS), thinnest)
    mirrored = n > panel_rows
    if own:
        jit.load("newton_schulz").product(left, right, add, b, c, mirrored, out)
    else:
        for begin in range(0, n, panel_rows):
            end = min(begin + panel_rows, n)
            rows, columns = slice(begin, end), slice(0, end)
            panel, factors = out[:, rows, columns], (left[:, rows], right[:, :, columns])
            if add is None:
                torch.bmm(*factors, out=panel)
            else:
                torch.baddbmm(add[:, rows, columns], *factors, beta=b, alpha=c, out=panel)
    if mirrored:
        jit.load("newton_schulz").mirror(out, a)
    elif a:
        out.diagonal(dim1=-2, dim2=-1).add_(a)
    return out


def _apply(P: Tensor, X: Tensor, tall: bool, a: float = 0.0) -> Tensor:
    """a X + P X from the side on which X (B, M, N) is shorter."""
    factors = (X, P) if tall else (P, X)
    if _own(X.dtype, P.shape[-1]):
        out = torch.empty_like(X)
        jit.load("newton_schulz").product(*factors, X if a else None, a, 1.0, False, out)
        return out
    return torch.baddbmm(X, *factors, beta=a) if a else torch.bmm(*factors)


def _cpp(G: Tensor, steps: int) -> Tensor:
    X = _normalised(G, product_dtype(G))
    tall = X.shape[-2] > X.shape[-1]
    n, m = sorted(X.shape[-2:])
    step = iter(coefficients(steps))
    for segment in _segments(steps, n, m, X.dtype):
        R = _symmetric(X.mT, X) if tall else _symmetric(X, X.mT)
        if segment == 1:  # a X apart: a I inside P would cost bfloat16 four times the error
            a, b, c = next(step)
            X = _apply(_symmetric(R, R, R, 0.0, b, c), X, tall, a)
            continue
        Q: Tensor | None = None
        for remaining in reversed(range(segment)):
            P = _symmetric(R, R, R, *next(step))
            # polynomials of one R commute, so that every product is symmetric
            Q = P if Q is None else _symmetric(Q, P)
            if remaining:
                R = _symmetric(_symmetric(R, P), P)
        X = _apply(Q, X, tall)
    return X.to(G.dtype).view(G.shape)


# ---- triton ----


@triton.jit
def _symmetric_kernel(
    x_ptr, add_ptr, out_ptr, x_strides, s_strides, n, m, b, c,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = b add + c x x^T: a program makes one tile on or below the diagonal and stores it twice. add and out (B, n, n)."""
    tile = tl.program_id(0)
    # tile = row (row + 1) / 2 + column
    row = ((tl.sqrt(8.0 * tile + 1.0) - 1.0) / 2.0).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > tile, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= tile, row + 1, row)
    column = tile - row * (row + 1) // 2
    batch = tl.program_id(1).to(tl.int64)
    rows, columns = row * BLOCK_N + tl.arange(0, BLOCK_N), column * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    # [N, K]
    left_ptr = (
        x_ptr + batch * x_strides[0] + rows[:, None] * x_strides[1] + ks[None, :] * x_strides[2]
    )
    # [K, N]
    right_ptr = (
        x_ptr + batch * x_strides[0] + columns[None, :] * x_strides[1] + ks[:, None] * x_strides[2]
    )
    acc = tl.zeros([BLOCK_N, BLOCK_N], tl.float32)
    for k in range(0, m, BLOCK_K):
        left = tl.load(left_ptr, mask=(rows < n)[:, None] & (ks < m - k)[None, :], other=0.0)
        right = tl.load(right_ptr, mask=(columns < n)[None, :] & (ks < m - k)[:, None], other=0.0)
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
        left_ptr += BLOCK_K * x_strides[2]
        right_ptr += BLOCK_K * x_strides[2]
    acc *= c
    mask = (rows < n)[:, None] & (columns < n)[None, :]
    offs = rows[:, None] * s_strides[1] + columns[None, :] * s_strides[2]
    if add_ptr is not None:
        acc += b * tl.load(add_ptr + batch * s_strides[0] + offs, mask=mask, other=0.0).to(
            tl.float32
        )
    made = acc.to(out_ptr.dtype.element_ty)
    out_ptr += batch * s_strides[0]
    tl.store(out_ptr + offs, made, mask=mask)
    if row != column:
        mirrored = columns[:, None] * s_strides[1] + rows[None, :] * s_strides[2]
        tl.store(
            out_ptr + mirrored, tl.trans(made), mask=(columns < n)[:, None] & (rows < n)[None, :]
        )


@triton.jit
def _apply_kernel(
    p_ptr, x_ptr, out_ptr, s_strides, x_strides, n, m, a,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = a x + p x. p (B, n, n), x and out (B, n, m) of the same strides."""
    batch = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    ks = tl.arange(0, BLOCK_K)
    x_ptr += batch * x_strides[0]
    # [N, K]
    left_ptr = (
        p_ptr + batch * s_strides[0] + rows[:, None] * s_strides[1] + ks[None, :] * s_strides[2]
    )
    right_ptr = x_ptr + ks[:, None] * x_strides[1] + columns[None, :] * x_strides[2]  # [K, M]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for k in range(0, n, BLOCK_K):
        left = tl.load(left_ptr, mask=(rows < n)[:, None] & (ks < n - k)[None, :], other=0.0)
        right = tl.load(right_ptr, mask=(ks < n - k)[:, None] & (columns < m)[None, :], other=0.0)
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
        left_ptr += BLOCK_K * s_strides[2]
        right_ptr += BLOCK_K * x_strides[1]
    mask = (rows < n)[:, None] & (columns < m)[None, :]
    offs = rows[:, None] * x_strides[1] + columns[None, :] * x_strides[2]
    acc += a * tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + batch * x_strides[0] + offs, acc.to(out_ptr.dtype.element_ty), mask=mask)


BLOCK = 128  # tune: 64 128
# Side of an output tile: 10 tiles of a 512 x 512 symmetric product, 320 programs for a batch of 32.
BLOCK_K = 64  # tune: 32 64 128
WARPS = 8  # tune: 4 8
STAGES = 3  # tune: 2 3 4


def _tiling(n: int, m: int, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constexprs and options of the two kernels for matrices of n x m; small ones take small tiles (a dot needs 16)."""
    # Three tf32 products stand in for a float32 one; their split operands fill the registers of a 128 tile twice over.
    block, depth = (64, 32) if dtype == torch.float32 else (BLOCK, BLOCK_K)
    rows, columns = (min(block, max(16, triton.next_power_of_2(size))) for size in (n, m))
    common = {
        "PRECISION": "tf32x3" if dtype == torch.float32 else "tf32",
        "num_warps": WARPS if rows == 128 else 4,
        "num_stages": STAGES,
    }
    return (
        {"BLOCK_N": rows, "BLOCK_K": min(depth, columns), **common},
        {"BLOCK_N": rows, "BLOCK_M": columns, "BLOCK_K": min(depth, rows), **common},
    )


def _triton(G: Tensor, steps: int) -> Tensor:
    if not G.numel():
        return G.new_empty(G.shape)
    # The interpreter's dot multiplies the bits of bfloat16 as integers.
    X = _normalised(G, torch.float32 if INTERPRETED else G.dtype)
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X
    batch, n, m = X.shape
    symmetric, apply = _tiling(n, m, X.dtype)
    tiles = triton.cdiv(n, symmetric["BLOCK_N"])
    # of X's strides
    A, B, spare = X.new_empty(batch, n, n), X.new_empty(batch, n, n), torch.empty_like(X)
    grid = (tiles * (tiles + 1) // 2, batch)
    apply_grid = (triton.cdiv(n, apply["BLOCK_N"]), triton.cdiv(m, apply["BLOCK_M"]), batch)
    for a, b, c in coefficients(steps):
        _symmetric_kernel[grid](X, None, A, X.stride(), A.stride(), n, m, 0.0, 1.0, **symmetric)
        _symmetric_kernel[grid](A, A, B, A.stride(), A.stride(), n, n, b, c, **symmetric)
        _apply_kernel[apply_grid](B, X, spare, A.stride(), X.stride(), n, m, a, **apply)
        X, spare = spare, X
    return (X.mT if tall else X).to(G.dtype).view(G.shape)


# The specialisations of the default model's matrices (bfloat16, 512 wide, wide and tall), and of float32, for compiling ahead of time:
# (kernel, types of its runtime arguments, its constexprs, options).
def _aot(
    kernel: Any, added: str | None, constants: Mapping[str, Any], *, tall: bool = False, pointer: str = "*bf16"
) -> tuple[Any, ...]:  # fmt: skip
    """`tall`: X is the transpose of what is in memory, so that its rows are what lies side by side."""
    types: dict[str, Any] = {"n": "i32", "m": "i32", "a": "fp32", "b": "fp32", "c": "fp32"}
    types |= dict.fromkeys(("x_ptr", "out_ptr", "p_ptr"), pointer) | {
        "add_ptr": added or "constexpr"
    }
    contiguous, transposed = ("i32", "i32", "constexpr"), ("i32", "constexpr", "i32")
    types |= {"x_strides": transposed if tall else contiguous, "s_strides": contiguous}
    fixed: dict[Any, Any] = {
        name: value for name, value in constants.items() if name in kernel.arg_names
    }
    fixed |= {(kernel.arg_names.index(name), types[name].index("constexpr")): 1 for name in ("x_strides", "s_strides")}  # fmt: skip
    fixed |= {"add_ptr": None} if "add_ptr" in kernel.arg_names and added is None else {}
    options = {name: constants[name] for name in ("num_warps", "num_stages")}
    return kernel, {name: types[name] for name in kernel.arg_names if name in types}, fixed, options


_SYMMETRIC, _APPLY = _tiling(512, 512, torch.bfloat16)
_SYMMETRIC_32, _APPLY_32 = _tiling(512, 512, torch.float32)
AOT = [
    _aot(_symmetric_kernel, None, _SYMMETRIC),
    _aot(_symmetric_kernel, "*bf16", _SYMMETRIC),
    _aot(_apply_kernel, None, _APPLY),
    _aot(_symmetric_kernel, None, _SYMMETRIC, tall=True),
    _aot(_apply_kernel, None, _APPLY, tall=True),
    _aot(_symmetric_kernel, "*fp32", _SYMMETRIC_32, pointer="*fp32"),
    _aot(_apply_kernel, None, _APPLY_32, pointer="*fp32"),
]


# ---- one custom op for all kernels, so that torch.compile keeps it whole ----

KERNELS = {"cpp": _cpp, "triton": _triton}


@custom_op("newton_schulz")
def _op(G: Tensor, steps: int, impl: str) -> Tensor:
    return KERNELS[impl](G, steps)


@_op.register_fake
def _(G: Tensor, steps: int, impl: str) -> Tensor:
    return G.new_empty(G.shape)


def _kernel(impl: str):
    def run(G: Tensor, steps: int) -> Tensor:
        return _op(G, steps, impl)

    return run


IMPLEMENTATIONS = {"torch": _torch, "cpp": _kernel("cpp"), "triton": _kernel("triton")}
