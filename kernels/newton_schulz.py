"""Newton-Schulz iteration: the polar factor U V^T of G = U S V^T, roughly, as Muon wants it (Jordan et al. 2024): same singular vectors,
singular values brought near one by an odd polynomial a step, X <- (a I + b X X^T + c (X X^T)^2) X.

    torch    three products a step
    cpp      symmetric products are computed only up to the diagonal. All products of up to OWN_PRODUCTS are made in tiles that stay in registers
             (csrc/product.h; bfloat16 where the processor has AVX512-BF16, by AMX where it has both), larger ones by torch. Where a float32 G is
             GRAM_ASPECT times as long as wide or more, steps run on the n x n Gram matrix R = X X^T alone:
             with P = a I + b R + c R^2 a step is Q <- P Q, R <- P R P, and X <- Q X follows once, at the end of a segment of steps
    triton   the symmetric products by their lower tiles, each stored twice; polynomials added up inside the products; steps on the Gram matrix
             too. A bfloat16 G is multiplied in float16, as fast and eight times as fine: X has norm 1, no product leaves float16's range,
             and 0.2 to 1 % of the result lies off G's singular vectors where bfloat16 leaves 0.8 to 8 %, with steps on R up to 3 %. All
             products but the last are one launch, of a recorded graph: launched one by one, each would cost the host some 10 us, and an H100,
             by calculation, only 5 on average (9 where G is square, 3 at 4:1)

Other products are made in G's dtype (in float32 where a CPU has no fast ones): bfloat16 for Muon's usual precision, float32 for singular
vectors true to 1e-4. Iteration runs on the shorter side n: (4 n^2 m + 2 n^3) flops a step and matrix, plain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import AVX512_BF16, INTERPRETED, UNCACHED, choose, custom_op, jit, product_dtype

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def newton_schulz(G: Tensor, steps: int = 5, *, impl: str | None = None) -> Tensor:
    """Orthogonalise each matrix of G (..., M, N), tall or wide; result contiguous, in G's dtype. Zeros stay zeros.

    For an optimizer: no gradient flows through it, and it raises RuntimeError where one would be needed.
    """
    if G.ndim < 2 or G.dtype not in DTYPES:
        raise ValueError(
            "newton_schulz: expected matrices (..., M, N) of float32, bfloat16 or float16, "
            f"got {G.dtype} of shape {tuple(G.shape)}"
        )
    if steps < 1:
        raise ValueError(f"newton_schulz: expected steps >= 1, got {steps}")
    if torch.is_grad_enabled() and G.requires_grad:
        raise RuntimeError("newton_schulz has no gradient: call it under torch.no_grad()")
    call = IMPLEMENTATIONS[choose(IMPLEMENTATIONS, impl, G.device)]
    if not torch.is_autocast_enabled(G.device.type):
        return call(G, steps)
    # It would make bfloat16 of a float32 product.
    with torch.autocast(G.device.type, enabled=False):
        return call(G, steps)


# Polar Express (Amsel et al. 2025, arXiv 2505.16932), its table for 5 steps with 2 % of safety: each polynomial is the best for the
# interval that the one before leaves; singular values from 7.4e-4 of the Frobenius norm up end in 0.67 .. 1.14, from 1.02e-3 up in 0.86 .. 1.14.
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
TINY = 1e-20  # a Frobenius norm below it counts as this much, so that zeros stay zeros


def coefficients(steps: int) -> list[tuple[float, float, float]]:
    """(a, b, c) of each step. The table's last three steps close in on one, its second only widens what they can reach.

    So more than 5 steps repeat the second: 6 bring values down to 1.8e-4 as far as 0.67, 7 down to 4.6e-5 (repeating the last: 3.2e-4, 1.4e-4,
    where the quintic reaches 4.3e-4, 1.2e-4). Cut below 4 steps the table would leave values at 1.97, so there the quintic is better.
    """
    if steps < 4:
        return [QUINTIC] * steps
    first, second, *last = POLAR_EXPRESS
    return [first, *[second] * (steps - 4), *last]


def _stack(G: Tensor) -> Tensor:
    """G as (B, M, N)."""
    return G.reshape(math.prod(G.shape[:-2]), *G.shape[-2:])


# From this m / n on, steps on the n x n Gram matrix save more in products with X than they cost. In symmetric n x n products, half an ordinary one
# each, five steps cost 5 (3 m / n + 1), and in segments of two and three 2 (3 m / n) + 14: 65 and 38 at 4:1, 20 and 20 at 1:1.
GRAM_ASPECT = 1.5  # tune: 1.25 1.5 2.0 3.0
# Steps on the Gram matrix R before it is formed anew from X, and in the last segment. A step multiplies R's rounding error by up to a^2. In float32
# three steps take it from 6e-8 to 1e-3 of what they bring near one; five would take it to 6e-2, and seven to 15: they diverge. So do, in float16,
# three steps that are not the last three, whose a are the smallest. Segments of one step are the plain iteration: bfloat16 has no bits for more.
SEGMENTS = {torch.float32: (3, 3), torch.float16: (2, 3), torch.bfloat16: (1, 1)}


def _segments(steps: int, n: int, m: int, dtype: torch.dtype) -> list[int]:
    """How many steps are taken between two products with X."""
    length, last = SEGMENTS[dtype] if m >= GRAM_ASPECT * n else (1, 1)
    last = min(last, steps)
    whole, first = divmod(steps - last, length)
    return [first] * (first > 0) + [length] * whole + [last]


# ---- torch ----


def _torch(G: Tensor, steps: int) -> Tensor:
    X = _stack(G)
    norm = torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    X = (X * (1 / (norm * SAFETY).clamp_min(TINY))).to(product_dtype(G))
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X
    for a, b, c in coefficients(steps):
        A = X @ X.mT
        # one rounding: in bfloat16 a sum of two rounded terms loses 2 % here
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, B, X, beta=a)
    return (X.mT if tall else X).to(G.dtype).reshape(G.shape).contiguous()


# ---- cpp ----

# Up to this side float32 is multiplied by csrc/product.h, beyond it by torch: on two cores of a Xeon, before rows had few
# pointers, 276 and 244 GFLOP/s at 192 x 192, 245 and 308 at 1024 x 1024.
OWN_PRODUCTS = 512  # tune: 256 384 512 768
# The same of bfloat16. A product is as fast as torch's (409 GFLOP/s on two Zen 4 cores), a symmetric one takes 0.62 of its time at 192 x 192;
# five steps take 0.76 of the time at 1024 x 1024 and 0.85 at 2048 x 2048, and by AMX's tiles 0.83 at 192, 0.72 and 0.67.
OWN_PRODUCTS_BF16 = 2048  # tune: 1024 2048 4096
# torch's panels of rows of a symmetric product: p of them do (p + 1) / 2p of the arithmetic, and meet all threads p times.
PANELS = 4  # tune: 2 3 4 6 8
# Rows that a panel has at least, in float32 and in bfloat16: thinner ones run too far below the speed of a square product.
PANEL = 64  # tune: 32 48 64 96 128
PANEL_BF16 = 256  # tune: 128 192 256 384 512


def _own(dtype: torch.dtype, n: int) -> bool:
    """Whether matrices of the shorter side n are multiplied by csrc/product.h."""
    if dtype == torch.bfloat16:
        return jit.isa() in ("amx", "avx512") and AVX512_BF16 and n <= OWN_PRODUCTS_BF16
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


def _normalised(G: Tensor) -> Tensor:
    """G (B, M, N), contiguous, each matrix of Frobenius norm 1 / SAFETY; zeros stay zeros. By torch this takes 7 % of five steps at 192 x 192."""
    X = torch.empty_like(G)
    jit.load("newton_schulz").normalise(G, SAFETY, TINY, X)
    return X


def _apply(P: Tensor, X: Tensor, tall: bool, a: float = 0.0) -> Tensor:
    """a X + P X from the side on which X (B, M, N) is shorter."""
    factors = (X, P) if tall else (P, X)
    if _own(X.dtype, P.shape[-1]):
        out = torch.empty_like(X)
        jit.load("newton_schulz").product(*factors, X if a else None, a, 1.0, False, out)
        return out
    return torch.baddbmm(X, *factors, beta=a) if a else torch.bmm(*factors)


def _cpp(G: Tensor, steps: int) -> Tensor:
    X = _normalised(_stack(G).to(product_dtype(G)).contiguous())
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
def _squares_kernel(g_ptr, sums_ptr, size, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """sums (B, PARTS) of the squares of g (B, size): a program takes every PARTS-th block of a matrix."""
    part, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    acc = tl.zeros([BLOCK], tl.float32)
    for begin in range(part * BLOCK, size, PARTS * BLOCK):
        offs = begin + tl.arange(0, BLOCK)
        g = tl.load(g_ptr + batch * size + offs, mask=offs < size, other=0.0).to(tl.float32)
        acc += g * g
    tl.store(sums_ptr + batch * PARTS + part, tl.sum(acc, axis=0))


@triton.jit
def _normalise_kernel(
    g_ptr, sums_ptr, x_ptr, size, safety, tiny, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    """x = g / (safety |g|) of each matrix g (B, size); zeros stay zeros. Each program adds up its matrix's sums again, rather than wait for another launch."""
    batch = tl.program_id(1).to(tl.int64)
    sums = tl.load(sums_ptr + batch * PARTS + tl.arange(0, PARTS))
    norm = tl.sqrt(tl.sum(sums, axis=0)) * safety
    # not tl.maximum: a NaN stays one
    scale = 1.0 / tl.where(norm < tiny, tiny, norm)
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(g_ptr + batch * size + offs, mask=offs < size, other=0.0).to(tl.float32)
    tl.store(x_ptr + batch * size + offs, g * scale, mask=offs < size)


@triton.jit
def _symmetric_kernel(
    left_ptr, right_ptr, out_ptr, in_strides, out_strides, n, m, b, c, d,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = c left right^T, plus b left and d right where those are given. left and right (B, n, m) of the same strides, out (B, n, n) symmetric.

    A program makes one tile on or below the diagonal; what lies below it is stored twice. So right^T is right to the bit where it has been made
    here: an antisymmetric part of one rounding, turned over and over, would grow to half of what five steps give.
    """
    tile = tl.program_id(0)
    # tile = row (row + 1) / 2 + column
    row = ((tl.sqrt(8.0 * tile + 1.0) - 1.0) / 2.0).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > tile, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= tile, row + 1, row)
    column = tile - row * (row + 1) // 2
    batch = tl.program_id(1).to(tl.int64)
    rows, columns = row * BLOCK_N + tl.arange(0, BLOCK_N), column * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    left_ptr += batch * in_strides[0]
    right_ptr += batch * in_strides[0]
    # [N, K]
    left_tile = left_ptr + rows[:, None] * in_strides[1] + ks[None, :] * in_strides[2]
    # [K, N]
    right_tile = right_ptr + columns[None, :] * in_strides[1] + ks[:, None] * in_strides[2]
    mask = (rows < n)[:, None] & (columns < n)[None, :]
    offs = rows[:, None] * in_strides[1] + columns[None, :] * in_strides[2]
    acc = tl.zeros([BLOCK_N, BLOCK_N], tl.float32)
    if b is not None:
        acc += b / c * tl.load(left_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if d is not None:
        acc += d / c * tl.load(right_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    for k in range(0, m, BLOCK_K):
        left = tl.load(left_tile, mask=(rows < n)[:, None] & (ks < m - k)[None, :], other=0.0)
        right = tl.load(right_tile, mask=(columns < n)[None, :] & (ks < m - k)[:, None], other=0.0)
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
        left_tile += BLOCK_K * in_strides[2]
        right_tile += BLOCK_K * in_strides[2]
    made = (c * acc).to(out_ptr.dtype.element_ty)
    out_ptr += batch * out_strides[0]
    below = out_ptr + rows[:, None] * out_strides[1] + columns[None, :] * out_strides[2]
    above = out_ptr + columns[:, None] * out_strides[1] + rows[None, :] * out_strides[2]
    if row == column:
        # Not by the masks of the stores: one that differs from element to element makes each of them 2 bytes wide.
        made = tl.where(rows[:, None] >= columns[None, :], made, tl.trans(made))
    tl.store(below, made, mask=mask)
    tl.store(above, tl.trans(made), mask=(columns < n)[:, None] & (rows < n)[None, :])


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


# Programs that share a matrix's squares: 512 of them for a bank of eight, four for each multiprocessor of an H100.
PARTS = 64  # tune: 32 64 128
# Elements of a program's block before the products: 16 a thread.
NORM_BLOCK = 2048  # tune: 1024 2048 4096
NORM_WARPS = 4  # tune: 4 8
# Side of an output tile: 10 tiles of a 512 x 512 symmetric product, 320 programs for a batch of 32.
BLOCK = 128  # tune: 64 128
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


class _Products:
    """The products of one stack of matrices X (B, n, m), n <= m, or of their transposes: a launch each."""

    def __init__(self, X: Tensor) -> None:
        batch, n, m = X.shape
        self.symmetric_tiling, self.apply_tiling = _tiling(n, m, X.dtype)
        tiles = triton.cdiv(n, self.symmetric_tiling["BLOCK_N"])
        self.symmetric_grid = tiles * (tiles + 1) // 2, batch
        blocks = (("BLOCK_N", n), ("BLOCK_M", m))
        self.apply_grid = (
            *(triton.cdiv(size, self.apply_tiling[name]) for name, size in blocks),
            batch,
        )

    def symmetric(
        self, left: Tensor, right: Tensor, b: float | None = None, c: float = 1.0, d: float | None = None
    ) -> Tensor:  # fmt: skip
        """c left right^T + b left + d right, which is known to be symmetric."""
        B, n, m = left.shape
        out = left.new_empty(B, n, n)
        _symmetric_kernel[self.symmetric_grid](
            left, right, out, left.stride(), out.stride(), n, m, b, c, d, **self.symmetric_tiling
        )
        return out

    def apply(self, P: Tensor, X: Tensor, a: float, dtype: torch.dtype) -> Tensor:
        """a X + P X in `dtype`, of X's strides."""
        out = torch.empty_like(X, dtype=dtype)
        _apply_kernel[self.apply_grid](
            P, X, out, P.stride(), X.stride(), *X.shape[1:], a, **self.apply_tiling
        )
        return out


def _normalise_into(X: Tensor, G: Tensor) -> None:
    """X = G (B, M, N) with each matrix of Frobenius norm 1 / SAFETY (zeros stay zeros), in two launches where torch takes six."""
    batch, size = G.shape[0], G[0].numel()
    sums = G.new_empty(batch, PARTS, dtype=torch.float32)
    _squares_kernel[(PARTS, batch)](G, sums, size, PARTS, NORM_BLOCK, num_warps=NORM_WARPS)
    _normalise_kernel[(triton.cdiv(size, NORM_BLOCK), batch)](
        G, sums, X, size, SAFETY, TINY, PARTS, NORM_BLOCK, num_warps=NORM_WARPS
    )


def _upright(X: Tensor) -> Tensor:
    """X (B, M, N) or its transpose, whichever has no more rows than columns."""
    return X.mT if X.shape[-2] > X.shape[-1] else X


@dataclass(frozen=True)
class _Factors:
    """What the last product is made of: whole X + Q X is the result."""

    Q: Tensor
    X: Tensor
    whole: float


def _factors(X: Tensor, steps: int) -> _Factors:
    """All products but the last, of an upright X."""
    products = _Products(X)
    step = iter(coefficients(steps))
    segments = _segments(steps, *X.shape[1:], X.dtype)
    for number, segment in enumerate(segments, 1):
        R = products.symmetric(X, X)
        a, b, c = next(step)
        Q = products.symmetric(R, R, b, c)  # less a I
        P, whole = Q, a
        for _ in range(segment - 1):
            RP = products.symmetric(R, P, a)
            R = products.symmetric(RP, P, a)
            a, b, c = next(step)
            P = products.symmetric(R, R, b, c)
            Q = products.symmetric(Q, P, a, 1.0, whole)
            whole *= a
        if number < len(segments):
            X = products.apply(Q, X, whole, X.dtype)
    return _Factors(Q, X, whole)


class _Graph:
    """_factors recorded: of five steps its 14 to 17 launches of 10 us each on the host are one. Works in memory of its own, from G to the last product."""

    def __init__(self, like: Tensor, dtype: torch.dtype, steps: int) -> None:
        self._X = torch.zeros_like(like, dtype=dtype)
        _factors(_upright(self._X), steps)  # compiles what is only launched below
        self._graph = torch.cuda.CUDAGraph()
        # A stream of its own: torch's for all captures lies on the device that was first to record.
        stream = torch.cuda.Stream(like.device)
        # A thread that fetches the next batch may allocate pinned memory meanwhile.
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._factors = _factors(_upright(self._X), steps)

    def factors(self, G: Tensor) -> _Factors:
        """Of G (B, M, N); they hold until the next call."""
        _normalise_into(self._X, G)
        self._graph.replay()
        return self._factors


# A model has two or three shapes; the nine of the benchmark come one after another. Who goes round more than these records at every call. A graph
# holds five times its X where that is square, 3.3 times at 4:1.
GRAPHS = 8
_graphs: dict[tuple[Any, ...], _Graph] = {}  # the one used last at the end


def _triton(G: Tensor, steps: int) -> Tensor:
    if not G.numel():
        return G.new_empty(G.shape)
    if G.shape[-2] * G.shape[-1] >= 2**31 - PARTS * NORM_BLOCK:
        raise ValueError(
            "newton_schulz: impl='triton' counts a matrix's elements in 32 bits, "
            f"got {tuple(G.shape[-2:])}; use impl='torch'"
        )
    stack = _stack(G).contiguous()
    dtype = torch.float32 if G.dtype == torch.float32 else torch.float16
    # somebody else's graph takes the launches themselves, and none is recorded without torch's allocator
    if INTERPRETED or UNCACHED or torch.cuda.is_current_stream_capturing():
        X = torch.empty_like(stack, dtype=dtype)
        _normalise_into(X, stack)
        return _last(_factors(_upright(X), steps), G)
    stream = torch.cuda.current_stream(G.device).cuda_stream
    key = stack.shape, dtype, steps, G.device, stream
    # Out of the table while it is used: another thread on this stream makes its own. Threads may replay side by side, but not record: a
    # recording begins by waiting for the whole device, which ends any other.
    graph = _graphs.pop(key, None) or _Graph(stack, dtype, steps)
    O = _last(graph.factors(stack), G)  # noqa: E741
    _graphs[key] = graph
    for unused in list(_graphs)[:-GRAPHS]:
        _graphs.pop(unused, None)
    return O


def _last(factors: _Factors, G: Tensor) -> Tensor:
    """The last product, in G's dtype and shape."""
    X = factors.X
    O = _Products(X).apply(factors.Q, X, factors.whole, G.dtype)  # noqa: E741
    return (O if X.is_contiguous() else O.mT).view(G.shape)


# The specialisations of the default model's matrices (512 wide, square, wide and tall), and of float32, for compiling ahead of time.
def _aot(
    kernel: Any, constants: Mapping[str, Any], given: str = "", *, tall: bool = False, pointer: str = "*fp16", out: str | None = None
) -> tuple[Any, ...]:  # fmt: skip
    """`given`: which of b and d are. `tall`: X is the transpose of what is in memory, so that its rows are what lies side by side. `out`: type of the
    result, where it is not that of the factors.
    """
    types: dict[str, Any] = {"n": "i32", "m": "i32", "a": "fp32", "c": "fp32"}
    types |= {name: "fp32" if name in given else "constexpr" for name in "bd"}
    types |= dict.fromkeys(("left_ptr", "right_ptr", "x_ptr", "p_ptr"), pointer)
    types["out_ptr"] = out or pointer
    contiguous, transposed = ("i32", "i32", "constexpr"), ("i32", "constexpr", "i32")
    types |= dict.fromkeys(("in_strides", "x_strides"), transposed if tall else contiguous)
    types |= dict.fromkeys(("out_strides", "s_strides"), contiguous)
    types = {name: types[name] for name in kernel.arg_names if name in types}
    fixed: dict[Any, Any] = {name: None for name, kind in types.items() if kind == "constexpr"}
    fixed |= {name: value for name, value in constants.items() if name in kernel.arg_names}
    for name, kind in types.items():
        if isinstance(kind, tuple):
            fixed[kernel.arg_names.index(name), kind.index("constexpr")] = 1
    options = {name: constants[name] for name in ("num_warps", "num_stages")}
    return kernel, types, fixed, options


_SYMMETRIC, _APPLY = _tiling(512, 512, torch.float16)
_SYMMETRIC_32, _APPLY_32 = _tiling(512, 512, torch.float32)
_NORM = {"PARTS": PARTS, "BLOCK": NORM_BLOCK}, {"num_warps": NORM_WARPS}
_NORM_TYPES = {"g_ptr": "*bf16", "sums_ptr": "*fp32", "x_ptr": "*fp16", "size": "i32", "safety": "fp32", "tiny": "fp32"}  # fmt: skip
AOT = [
    (_squares_kernel, {name: _NORM_TYPES[name] for name in ("g_ptr", "sums_ptr", "size")}, *_NORM),
    (_normalise_kernel, _NORM_TYPES, *_NORM),
    _aot(_symmetric_kernel, _SYMMETRIC),
    _aot(_symmetric_kernel, _SYMMETRIC, "b"),
    _aot(_symmetric_kernel, _SYMMETRIC, "bd"),
    _aot(_apply_kernel, _APPLY),
    _aot(_apply_kernel, _APPLY, out="*bf16"),
    _aot(_symmetric_kernel, _SYMMETRIC, tall=True),
    _aot(_apply_kernel, _APPLY, tall=True),
    _aot(_apply_kernel, _APPLY, tall=True, out="*bf16"),
    _aot(_symmetric_kernel, _SYMMETRIC_32, "bd", pointer="*fp32"),
    _aot(_apply_kernel, _APPLY_32, pointer="*fp32"),
]


# ---- custom op ----

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
