"""Attention: o = softmax(q k^T / sqrt(D) + mask) v, causal or not, with a sliding window and grouped heads.

    torch    the formula, with its (T, T) scores in memory; masked pairs are computed and thrown away
    cpp      csrc/attention.cpp: tiles of scores in L1 with an online softmax; tiles outside the band are skipped. bfloat16 by AVX512-BF16, or AMX
    triton   the same in shared memory and registers; one program a tile of queries, backward also one a tile of keys

Other people's GPU kernels (LIBRARIES: cudnn, flex, fa4) run only by name. Each does a part of what the op means and raises for the rest.
They are here to be measured against, and for a model that finds one of them faster.

The band: query i sees keys i - before <= j <= i + after. Both fast versions keep lse, the log-sum-exp of every row of scores, and
rebuild P = exp(scores - lse) in the backward (Dao et al. 2022, arXiv 2205.14135):

    dv = P^T do     dP = do v^T     delta = sum(do * o, -1)     dS = P * (dP - delta)     dq = dS k / sqrt(D)     dk = dS^T q / sqrt(D)

Bound: arithmetic. 4 D flops a visible pair forward, 10 D backward (Triton: 14 D, as dq and dk rebuild P apart and need no atomics);
B H T^2 / 2 pairs if causal, B H T w with a window. Least traffic of b-byte elements: 4 B H T D b forward, 8 backward, plus lse.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from kernels import INTERPRETED, choose, custom_op, jit

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = True,
    window: int | None = None,
    *,
    impl: str | None = None,
) -> Tensor:
    """Attend from q (B, H, T, D) to k and v (B, Hkv, T, D), Hkv dividing H: head h of q reads head h // (H // Hkv).

    With `window` query i sees keys i - window < j <= i (causal) or |i - j| < window (not causal). Any strides; float32, bfloat16 or
    float16; the result has q's shape, dtype and order of dimensions in memory. Raises ValueError or TypeError if the arguments
    do not fit together; of LIBRARIES ValueError for what one does not do, RuntimeError where it is not installed.
    """
    _check(q, k, v, window)
    table = {**IMPLEMENTATIONS, **LIBRARIES}
    return table[choose(table, impl, q.device)](q, k, v, causal, window)


def _check(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> None:
    if q.ndim != 4 or k.ndim != 4:
        raise ValueError(
            f"attention: expected q (B, H, T, D) and k, v (B, Hkv, T, D), got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    if k.shape != v.shape:
        raise ValueError(
            f"attention: k and v must have one shape, got {tuple(k.shape)} and {tuple(v.shape)}"
        )
    B, H, T, D = q.shape
    if (k.shape[0], k.shape[2], k.shape[3]) != (B, T, D):
        raise ValueError(
            f"attention: k and v must be (B={B}, Hkv, T={T}, D={D}) as q is, got {tuple(k.shape)}"
        )
    if k.shape[1] == 0 or H % k.shape[1] != 0:
        raise ValueError(
            f"attention: q's heads must be a multiple of k's, got H={H} and Hkv={k.shape[1]}"
        )
    if not q.dtype == k.dtype == v.dtype or q.dtype not in DTYPES:
        raise TypeError(
            "attention: q, k and v must share one of float32, bfloat16, float16, "
            f"got {q.dtype}, {k.dtype}, {v.dtype}; cast them first"
        )
    if not q.device == k.device == v.device:
        raise ValueError(
            f"attention: q, k and v must be on one device, got {q.device}, {k.device}, {v.device}"
        )
    if window is not None and window < 1:
        raise ValueError(
            f"attention: window counts the query itself and must be at least 1, got {window}; None means no window"
        )


# ---- torch ----


def _torch(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None) -> Tensor:
    T, D = q.shape[2:]
    group = q.shape[1] // k.shape[1]
    kf, vf = (x.float().repeat_interleave(group, 1) for x in (k, v))
    distance = torch.arange(T, device=q.device)[:, None] - torch.arange(T, device=q.device)
    before, after = _band(T, causal, window)
    hidden = (distance > before) | (distance < -after)
    # Autocast would form in bfloat16 the products of what is widened here.
    with torch.autocast(q.device.type, enabled=False):
        scores = (q.float() @ kf.mT / math.sqrt(D)).masked_fill(hidden, -math.inf)  # (B, H, T, T)
        return (scores.softmax(-1) @ vf).to(q.dtype)


def _band(T: int, causal: bool, window: int | None) -> tuple[int, int]:
    """(before, after): how many keys each query sees on either side of its own."""
    reach = T if window is None else min(window - 1, T)
    return reach, 0 if causal else reach


# ---- cpp ----


def _cpp_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None
) -> tuple[Tensor, Tensor]:
    return jit.load("attention").forward(q, k, v, causal, window)


def _cpp_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, causal: bool, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return jit.load("attention").backward(do, q, k, v, o, lse, causal, window)


# ---- triton ----
# Strides come as tuples (B, H, T, D), of which Triton makes a 1 a constant. Row numbers are int64 from the program id on, so that no
# offset can overflow. Scores are in base 2 (exp2 is one instruction): LOG2E is folded into the scale.

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
BAND = ("before", "after")  # a window of another length takes no compilation of its own


@triton.jit
def _load_rows(ptr, strides, start, T, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, CHECK: tl.constexpr):  # fmt: skip
    """Rows [start, start + ROWS) of one (T, D) matrix  # [ROWS, BLOCK_D]; zeros past its ends."""
    rows, offs_d = tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    ptrs = ptr + start * strides[2] + rows[:, None] * strides[2] + offs_d * strides[3]
    if CHECK:
        left = (T - start).to(tl.int32)
        tile = tl.load(ptrs, mask=(rows[:, None] < left) & (offs_d < D), other=0.0)
    elif D == BLOCK_D:
        tile = tl.load(ptrs)
    else:
        tile = tl.load(ptrs, mask=offs_d < D, other=0.0)
    return tile


@triton.jit
def _store_rows(ptr, strides, start, T, D, tile, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    rows, offs_d = tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    ptrs = ptr + start * strides[2] + rows[:, None] * strides[2] + offs_d * strides[3]
    mask = (rows[:, None] < (T - start).to(tl.int32)) & (offs_d < D)
    tl.store(ptrs, tile.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _place(heads):
    """(tile, head of all, batch, head of `heads`) of this program, int64, for a grid of _grid. Programs start in the order of its first axis, then of
    its second: sections of heads one after the other, and in each every head's tile 0 before any tile 1.

    So the keys of a section stay in L2, and what is left for the end are the short programs of all its heads: with one head after the
    other, the last head's longest would start when the other multiprocessors are nearly done (causal, 64 heads of 16 tiles, a program a
    multiprocessor: 1.14 times the ideal in a model of the schedule, where this has 1.02).
    """
    head = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    return (
        tl.program_id(1).to(tl.int64),
        head.to(tl.int64),
        (head // heads).to(tl.int64),
        (head % heads).to(tl.int64),
    )


@triton.jit
def _head(ptr, strides, batch, h):
    return ptr + batch * strides[0] + h * strides[1]


@triton.jit
def _key_tiles(m0, T, before, after, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(lo, a, b, hi): queries [m0, m0 + BLOCK_M) see keys in [lo, hi); tiles of keys in [a, b) need no mask."""
    lo = max(m0 - before, 0) // BLOCK_N * BLOCK_N
    hi = min(m0 + BLOCK_M + after, T)
    a = min((max(m0 + BLOCK_M - 1 - before, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N, hi)
    return lo, a, max(a, min(m0 + after + 1, T) // BLOCK_N * BLOCK_N), hi


@triton.jit
def _query_tiles(n0, T, before, after, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(lo, a, b, hi): keys [n0, n0 + BLOCK_N) are seen by queries in [lo, hi); tiles of queries in [a, b) need no mask."""
    lo = max(n0 - after, 0) // BLOCK_M * BLOCK_M
    hi = min(n0 + BLOCK_N + before, T)
    a = min((max(n0 + BLOCK_N - 1 - after, 0) + BLOCK_M - 1) // BLOCK_M * BLOCK_M, hi)
    return lo, a, max(a, min(n0 + before + 1, T) // BLOCK_M * BLOCK_M), hi


@triton.jit
def _within(across, first, reach):
    """Whether first <= across <= first + reach, by one comparison: what lies before `first` is a huge unsigned number. In 32 bits."""
    return (across - first).to(tl.uint32) <= reach.to(tl.uint32)


@triton.jit
def _forward_tiles(
    acc, total, m, q, k_ptr, v_ptr, k_strides, v_strides, lo, hi, gap_at, gap, m0, T, D, before, after, scale,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The online softmax over the tiles of keys in [lo, hi), all but the `gap` keys from `gap_at` on.

    Like its counterparts in the backward kernels it is called twice: MASKED for both edges of the band, whose middle is the gap, then without a mask
    for the middle. So each kernel holds two loops, not three.
    """
    i, j = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    for t in range(lo, hi - gap, BLOCK_N):
        n0 = t + (t >= gap_at) * gap
        k = _load_rows(k_ptr, k_strides, n0, T, D, BLOCK_N, BLOCK_D, MASKED)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        if MASKED:
            reach = before + tl.minimum(after, (T - 1 - m0).to(tl.int32) - i)
            seen = _within(j, (m0 - n0).to(tl.int32) + i - before, reach)
            scores = tl.where(seen, scores, float("-inf"))
        # scaled after the maximum, so that a score takes one fused multiply-add and not two operations
        m_new = tl.maximum(m, tl.max(scores, 1) * scale)
        p = tl.exp2(scores * scale - m_new[:, None])
        decay = tl.exp2(m - m_new)
        total = total * decay + tl.sum(p, 1)
        m = m_new
        v = _load_rows(v_ptr, v_strides, n0, T, D, BLOCK_N, BLOCK_D, MASKED)
        acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
    return acc, total, m


@triton.jit(do_not_specialize=BAND)
def _attention_forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, q_strides, k_strides, v_strides, o_strides, H, T, before, after, scale,
    GROUP: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tile, head, batch, h = _place(H)
    # the last queries see the most keys: they start first
    m0 = (tl.cdiv(T, BLOCK_M) - 1 - tile) * BLOCK_M
    k_ptr = _head(k_ptr, k_strides, batch, h // GROUP)
    v_ptr = _head(v_ptr, v_strides, batch, h // GROUP)
    q = _load_rows(_head(q_ptr, q_strides, batch, h), q_strides, m0, T, D, BLOCK_M, BLOCK_D, True)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    m = tl.full([BLOCK_M], -3.0e38, tl.float32)  # finite: the first decay is then 0 and not NaN
    lo, a, b, hi = _key_tiles(m0, T, before, after, BLOCK_M, BLOCK_N)
    acc, total, m = _forward_tiles(
        acc, total, m, q, k_ptr, v_ptr, k_strides, v_strides, lo, hi, a, b - a, m0, T, D, before, after, scale * LOG2E,
        True, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    acc, total, m = _forward_tiles(
        acc, total, m, q, k_ptr, v_ptr, k_strides, v_strides, a, b, b, 0, m0, T, D, before, after, scale * LOG2E,
        False, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    _store_rows(_head(o_ptr, o_strides, batch, h), o_strides, m0, T, D, acc * (1.0 / total)[:, None], BLOCK_M, BLOCK_D)  # fmt: skip
    rows = m0 + tl.arange(0, BLOCK_M)
    tl.store(lse_ptr + head * T + rows, (m + tl.log2(total)) * LN2, mask=rows < T)


@triton.jit
def _dq_tiles(
    dq, q, do, lse, delta, k_ptr, v_ptr, k_strides, v_strides, lo, hi, gap_at, gap, m0, T, D, before, after, scale,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i, j = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    for t in range(lo, hi - gap, BLOCK_N):
        n0 = t + (t >= gap_at) * gap
        k = _load_rows(k_ptr, k_strides, n0, T, D, BLOCK_N, BLOCK_D, MASKED)
        v = _load_rows(v_ptr, v_strides, n0, T, D, BLOCK_N, BLOCK_D, MASKED)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        p = tl.exp2(scores - lse[:, None])  # [BLOCK_M, BLOCK_N]
        if MASKED:  # p and not ds: in 32 bits, and while dp is being made
            reach = before + tl.minimum(after, (T - 1 - m0).to(tl.int32) - i)
            p = tl.where(_within(j, (m0 - n0).to(tl.int32) + i - before, reach), p, 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq


@triton.jit(do_not_specialize=BAND)
def _attention_dq_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, o_ptr, lse_ptr, delta_ptr, dq_ptr,
    q_strides, k_strides, v_strides, do_strides, o_strides, dq_strides, H, T, before, after, scale,
    GROUP: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dq, and delta, which the kernel after this one reads: here do is at hand, a kernel of its own would read it once more."""
    tile, head, batch, h = _place(H)
    m0 = (tl.cdiv(T, BLOCK_M) - 1 - tile) * BLOCK_M
    k_ptr = _head(k_ptr, k_strides, batch, h // GROUP)
    v_ptr = _head(v_ptr, v_strides, batch, h // GROUP)
    q = _load_rows(_head(q_ptr, q_strides, batch, h), q_strides, m0, T, D, BLOCK_M, BLOCK_D, True)
    do = _load_rows(
        _head(do_ptr, do_strides, batch, h), do_strides, m0, T, D, BLOCK_M, BLOCK_D, True
    )
    o = _load_rows(_head(o_ptr, o_strides, batch, h), o_strides, m0, T, D, BLOCK_M, BLOCK_D, True)
    rows = m0 + tl.arange(0, BLOCK_M)
    lse = tl.load(lse_ptr + head * T + rows, mask=rows < T, other=0.0) * LOG2E
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta_ptr + head * T + rows, delta, mask=rows < T)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    lo, a, b, hi = _key_tiles(m0, T, before, after, BLOCK_M, BLOCK_N)
    dq = _dq_tiles(
        dq, q, do, lse, delta, k_ptr, v_ptr, k_strides, v_strides, lo, hi, a, b - a, m0, T, D, before, after, scale * LOG2E,
        True, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    dq = _dq_tiles(
        dq, q, do, lse, delta, k_ptr, v_ptr, k_strides, v_strides, a, b, b, 0, m0, T, D, before, after, scale * LOG2E,
        False, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    _store_rows(
        _head(dq_ptr, dq_strides, batch, h), dq_strides, m0, T, D, dq * scale, BLOCK_M, BLOCK_D
    )


@triton.jit
def _dkv_tiles(
    dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, q_strides, do_strides, lo, hi, gap_at, gap, n0, T, D, before, after, scale,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i, j = tl.arange(0, BLOCK_M)[None, :], tl.arange(0, BLOCK_N)[:, None]
    for t in range(lo, hi - gap, BLOCK_M):
        m0 = t + (t >= gap_at) * gap
        q = _load_rows(q_ptr, q_strides, m0, T, D, BLOCK_M, BLOCK_D, MASKED)
        do = _load_rows(do_ptr, do_strides, m0, T, D, BLOCK_M, BLOCK_D, MASKED)
        rows = m0 + tl.arange(0, BLOCK_M)
        lse = tl.load(lse_ptr + rows, mask=rows < T, other=0.0) * LOG2E
        delta = tl.load(delta_ptr + rows, mask=rows < T, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
        p = tl.exp2(scores - lse[None, :])  # [BLOCK_N, BLOCK_M]
        if MASKED:
            # keys past the end may count as seen: only their own rows of dk and dv know of them, and those are not stored
            p = tl.where(_within(i, (n0 - m0).to(tl.int32) + j - after, before + after), p, 0.0)
        # before dv: p is made while this product runs, and ds while dv does
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=BAND)
def _attention_dkv_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    q_strides, k_strides, v_strides, do_strides, dk_strides, dv_strides, H, T, before, after, scale,
    GROUP: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tile, _, batch, hk = _place(H // GROUP)
    n0 = tile * BLOCK_N  # the first keys are seen by the most queries
    k = _load_rows(_head(k_ptr, k_strides, batch, hk), k_strides, n0, T, D, BLOCK_N, BLOCK_D, True)
    v = _load_rows(_head(v_ptr, v_strides, batch, hk), v_strides, n0, T, D, BLOCK_N, BLOCK_D, True)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    lo, a, b, hi = _query_tiles(n0, T, before, after, BLOCK_M, BLOCK_N)
    # the heads of a group are summed here: no atomics
    for h in range(hk * GROUP, hk * GROUP + GROUP):
        q_head, do_head = _head(q_ptr, q_strides, batch, h), _head(do_ptr, do_strides, batch, h)
        lse_head, delta_head = lse_ptr + (batch * H + h) * T, delta_ptr + (batch * H + h) * T
        dk, dv = _dkv_tiles(
            dk, dv, k, v, q_head, do_head, lse_head, delta_head, q_strides, do_strides, lo, hi, a, b - a, n0, T, D, before, after, scale * LOG2E,
            True, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        dk, dv = _dkv_tiles(
            dk, dv, k, v, q_head, do_head, lse_head, delta_head, q_strides, do_strides, a, b, b, 0, n0, T, D, before, after, scale * LOG2E,
            False, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    _store_rows(_head(dk_ptr, dk_strides, batch, hk), dk_strides, n0, T, D, dk * scale, BLOCK_N, BLOCK_D)  # fmt: skip
    _store_rows(_head(dv_ptr, dv_strides, batch, hk), dv_strides, n0, T, D, dv, BLOCK_N, BLOCK_D)


# Tiles for rows of up to 256 bytes (bf16, D = 128); _tiles shrinks them for longer ones. They were chosen by the code that ptxas makes of them: with
# these no inner loop of the three kernels spills a register on sm_90 or sm_100. The side whose gradient is summed (queries for dq, keys for
# dk and dv) has 128 rows, 64 for each of sm_90's two warpgroups; with 64 rows each warpgroup would compute the whole tile (dq: 72 narrow wgmma a
# round and not 20 wide ones). With 64 queries at a time dk and dv spill 55 registers a round; with 4 warps they spill too. Of two stages a tile is
# asked for at the end of a round and waited for at once; of three it travels during a round.
FORWARD_M = 128  # tune: 64 128
FORWARD_N = 64  # tune: 32 64 128
FORWARD_WARPS = 8  # tune: 4 8
FORWARD_STAGES = 3  # tune: 2 3 4
DQ_M = 128  # tune: 64 128
DQ_N = 64  # tune: 32 64 128
DQ_WARPS = 8  # tune: 4 8
DQ_STAGES = 3  # tune: 2 3 4
DKV_M = 32  # tune: 32 64 128
DKV_N = 128  # tune: 64 128
DKV_WARPS = 8  # tune: 4 8
DKV_STAGES = 3  # tune: 2 3 4
# Heads whose programs run beside each other: 16 MB of keys and values at T = 2048 and D = 128, of an H100's 50 MB L2.
SECTION = 16  # tune: 8 16 32 64


def _grid(tiles: int, heads: int) -> tuple[int, int, int]:
    """(heads of a section, tiles, sections). Counted out of one axis they were three divisions one after the other, before a program's first load.
    A grid's third axis takes 65,535."""
    section = math.gcd(heads, SECTION)
    return (section, tiles, heads // section) if heads // section < 2**16 else (heads, tiles, 1)


def _block_d(D: int) -> int:
    return max(16, triton.next_power_of_2(D))


def _tiles(D: int, itemsize: int, m: int, n: int, warps: int, stages: int) -> dict[str, int]:
    """Launch options: both blocks shrink by as much as a row of D elements exceeds 256 bytes, the longer one by the square of it.

    float32 is multiplied in three parts: its tiles shrink by 2 at least, or dq would keep 10 KB on an A100's stack at 64 channels.
    """
    shrink = max(itemsize // 2, _block_d(D) * itemsize // 256)
    blocks = {
        "BLOCK_M": max(16, m // shrink ** (1 + (m > n))),
        "BLOCK_N": max(16, n // shrink ** (1 + (n > m))),
    }
    return {**blocks, "BLOCK_D": _block_d(D), "num_warps": warps, "num_stages": stages}


def _precision(dtype: torch.dtype) -> str:
    # three TF32 products keep 21 of float32's 24 bits
    return "tf32x3" if dtype == torch.float32 else "tf32"


def _operands(*tensors: Tensor) -> list[Tensor]:
    """The tensors that tl.dot reads. Triton's interpreter multiplies bf16 as if its bits were an integer: there they are widened."""
    widen = INTERPRETED and tensors[0].dtype == torch.bfloat16
    return [x.float() if widen else x for x in tensors]


def _triton_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None
) -> tuple[Tensor, Tensor]:
    B, H, T, D = q.shape
    before, after = _band(T, causal, window)
    o, lse = torch.empty_like(q), q.new_empty((B, H, T), dtype=torch.float32)
    if q.numel() == 0:
        return o, lse
    q, k, v = _operands(q, k, v)
    tiles = _tiles(D, q.element_size(), FORWARD_M, FORWARD_N, FORWARD_WARPS, FORWARD_STAGES)
    _attention_forward_kernel[_grid(triton.cdiv(T, tiles["BLOCK_M"]), B * H)](
        q, k, v, o, lse, *(x.stride() for x in (q, k, v, o)), H, T, before, after, 1 / math.sqrt(D),
        GROUP=H // k.shape[1], D=D, PRECISION=_precision(q.dtype), **tiles,
    )  # fmt: skip
    return o, lse


def _triton_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, causal: bool, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    B, H, T, D = q.shape
    before, after = _band(T, causal, window)
    if q.numel() == 0:  # of no queries; there may be keys
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    do, q, k, v = _operands(do, q, k, v)
    delta = torch.empty_like(lse)
    scale, inputs = 1 / math.sqrt(D), [x.stride() for x in (q, k, v, do)]
    shared = {
        "GROUP": H // k.shape[1],
        "D": D,
        "PRECISION": _precision(q.dtype),
    }
    tiles = _tiles(D, q.element_size(), DQ_M, DQ_N, DQ_WARPS, DQ_STAGES)
    _attention_dq_kernel[_grid(triton.cdiv(T, tiles["BLOCK_M"]), B * H)](
        q, k, v, do, o, lse, delta, dq, *inputs, o.stride(), dq.stride(), H, T, before, after, scale,
        **shared, **tiles,
    )  # fmt: skip
    tiles = _tiles(D, q.element_size(), DKV_M, DKV_N, DKV_WARPS, DKV_STAGES)
    _attention_dkv_kernel[_grid(triton.cdiv(T, tiles["BLOCK_N"]), B * k.shape[1])](
        q, k, v, do, lse, delta, dk, dv, *inputs, dk.stride(), dv.stride(), H, T, before, after, scale,
        **shared, **tiles,
    )  # fmt: skip
    return dq, dk, dv


def _aot(
    kernel: triton.JITFunction,
    *tiles: int,
    D: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    group: int = 1,
):
    """An entry of AOT: contiguous rows."""
    types: dict[str, Any] = {
        "H": "i32",
        "T": "i32",
        "before": "i32",
        "after": "i32",
        "scale": "fp32",
    }
    constants: dict[Any, Any] = {
        "GROUP": group,
        "D": D,
        "PRECISION": _precision(dtype),
    }
    constants |= _tiles(D, dtype.itemsize, *tiles)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    for i, name in enumerate(kernel.arg_names):
        if name.endswith("_ptr"):
            whole = name in ("lse_ptr", "delta_ptr") or dtype == torch.float32
            types[name] = "*fp32" if whole else "*bf16"
        elif name.endswith("_strides"):
            types[name] = ("i32", "i32", "i32", "constexpr")
            constants[i, 3] = 1  # the fourth stride
    return kernel, types, constants, options


# The specialisations of the default model on a GPU (bf16, D = 128), and what differs most from them, for compiling ahead of time.
_FORWARD = (_attention_forward_kernel, FORWARD_M, FORWARD_N, FORWARD_WARPS, FORWARD_STAGES)
_DQ = (_attention_dq_kernel, DQ_M, DQ_N, DQ_WARPS, DQ_STAGES)
_DKV = (_attention_dkv_kernel, DKV_M, DKV_N, DKV_WARPS, DKV_STAGES)
AOT = [
    _aot(*_FORWARD),
    _aot(*_DQ),
    _aot(*_DKV),
    _aot(*_FORWARD, D=96, dtype=torch.float32, group=2),
    _aot(*_DKV, D=96, dtype=torch.float32, group=2),
    _aot(*_DQ, D=64, dtype=torch.float32),
]


# ---- what others have written ----

HALVES = (torch.bfloat16, torch.float16)


def _only_halves(name: str, dtype: torch.dtype) -> None:
    if dtype not in HALVES:
        raise ValueError(f"attention: impl={name!r} takes bfloat16 or float16, got {dtype}")


def _cudnn(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None) -> Tensor:
    """cuDNN's kernels, through torch: all keys or those before the query, in 16 bits."""
    _only_halves("cudnn", q.dtype)
    if window is not None:
        raise ValueError(f"attention: impl='cudnn' knows no window, got window={window}; 'flex' and 'fa4' do")  # fmt: skip
    if q.shape[1] != k.shape[1]:
        raise ValueError(
            f"attention: impl='cudnn' wants as many heads of keys as of queries, got {q.shape[1]} and {k.shape[1]}; 'flex' and 'fa4' group them"
        )
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


@functools.cache
def _compiled_flex():
    """One for all shapes, with code for each: where that is too many, fullgraph raises in place of running (T, T) scores eagerly."""
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


@functools.lru_cache(maxsize=16)
def _band_mask(T: int, before: int, after: int, device: torch.device):
    """Which 128 x 128 tiles of scores the band touches; built from the (T, T) mask, so it is kept."""

    def visible(b, h, i, j):
        return (i - j <= before) & (j - i <= after)

    with torch.inference_mode(False):  # it is kept, and a gradient may want it later
        return create_block_mask(visible, None, None, T, T, device=device)


def _flex(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None) -> Tensor:
    """torch's FlexAttention: a Triton template that skips the tiles which a mask leaves empty."""
    T = q.shape[2]
    mask = _band_mask(T, *_band(T, causal, window), q.device)
    # a model that is compiled takes it into its own graph
    flex = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    return flex(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def _flash_attention_4():
    """(forward, backward) of the package flash-attn-4; imported on first use, which takes seconds."""
    try:
        from flash_attn.cute.interface import _flash_attn_bwd, _flash_attn_fwd
    except ImportError as missing:
        raise RuntimeError(
            f"attention: impl='fa4' needs flash_attn.cute ({missing}): pip install flash-attn-4"
        ) from missing
    return _flash_attn_fwd, _flash_attn_bwd


def _fa4_band(q: Tensor, causal: bool, window: int | None) -> dict[str, Any]:
    """What its kernels call the band; None stands for no end."""
    _only_halves("fa4", q.dtype)
    before = None if window is None else window - 1
    return {"causal": causal, "window_size_left": before, "window_size_right": None if causal else before}  # fmt: skip


def _laid_out_as(like: Tensor, x: Tensor) -> Tensor:
    """x in the order of dimensions that the op promises; a copy only where it came in another."""
    promised = torch.empty_like(like)
    return x if x.stride() == promised.stride() else promised.copy_(x)


def _fa4_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None
) -> tuple[Tensor, Tensor]:
    band, (forward, _) = _fa4_band(q, causal, window), _flash_attention_4()
    rows = [x.transpose(1, 2) for x in (q, k, v)]  # (B, T, H, D)
    o, lse, *_ = forward(*rows, **band, return_lse=True)
    return _laid_out_as(q, o.transpose(1, 2)), lse


def _fa4_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, causal: bool, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    band, (_, backward) = _fa4_band(q, causal, window), _flash_attention_4()
    rows = [x.transpose(1, 2) for x in (q, k, v, o, do)]
    dq, dk, dv, *_ = backward(*rows, lse, **band)
    dq, dk, dv = (_laid_out_as(x, dx.transpose(1, 2)) for x, dx in ((q, dq), (k, dk), (v, dv)))
    return dq, dk, dv


# ---- custom op ----

FORWARD = {"cpp": _cpp_forward, "triton": _triton_forward, "fa4": _fa4_forward}
BACKWARD = {"cpp": _cpp_backward, "triton": _triton_backward, "fa4": _fa4_backward}


@custom_op("attention")
def _op(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, impl: str
) -> tuple[Tensor, Tensor]:
    return FORWARD[impl](q, k, v, causal, window)


@custom_op("attention_backward")
def _op_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, causal: bool, window: int | None, impl: str
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return BACKWARD[impl](do, q, k, v, o, lse, causal, window)


@_op.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, impl: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@_op_backward.register_fake
def _(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, causal: bool, window: int | None, impl: str
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx, inputs, output):
    q, k, v, ctx.causal, ctx.window, ctx.impl = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.set_materialize_grads(False)  # lse has no gradient: None, not a tensor of zeros


def _gradient(ctx, do: Tensor, _):
    gradients = _op_backward(do, *ctx.saved_tensors, ctx.causal, ctx.window, ctx.impl)
    return *gradients, None, None, None


_op.register_autograd(_gradient, setup_context=_save)


def _kernel(impl: str):
    def run(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None) -> Tensor:
        return _op(q, k, v, causal, window, impl)[0]

    return run


IMPLEMENTATIONS = {"torch": _torch, "cpp": _kernel("cpp"), "triton": _kernel("triton")}
LIBRARIES = {"cudnn": _cudnn, "flex": _flex, "fa4": _kernel("fa4")}
