"""RMSNorm of every head of queries and keys, then rotary embedding (Su et al. 2021, arXiv 2104.09864), in one pass.

    n = x / sqrt(mean(x^2) + eps)      y = n turned: channel i against channel i + D/2, by the angle of its position

    torch    the formula; normalised, turned and concatenated copies of q and k, about thirty passes over memory in all
    cpp      csrc/qk_norm_rope.cpp: a row of D channels is read once and stays in registers until it is written
    triton   a tile of tokens a program, one head after another: a token's cos and sin are loaded once for all its heads

Turning by an angle is a linear map R, whose transpose turns back. With g = R^T dy the gradient is RMSNorm's,
dx = rstd * (g - x * rstd^2 * mean(g * x)). cos and sin may hold any scale, which R and R^T then share.

Bound: memory. N elements of q and k of b bytes: forward 2 N b, backward 3 N b (dy and x in, dx out), plus cos and sin. rstd is not kept:
backward reads x in any case, and the sum of its squares comes with it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import choose, custom_op, dense, jit


def qk_norm_rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, eps: float = 1e-6, *, impl: str | None = None
) -> tuple[Tensor, Tensor]:
    """(q', k'): every head of q (B, T, H, D) and k (B, T, Hk, D) normalised to unit root mean square, then turned by its position.

    cos and sin (T, D/2) belong to the pairs of channels (i, i + D/2):  y[i] = n[i] cos[i] - n[i + D/2] sin[i],
    y[i + D/2] = n[i + D/2] cos[i] + n[i] sin[i]. Any strides; results are contiguous and of q's dtype. cos and sin are constants: only
    impl="torch" has gradients of them. Raises ValueError or TypeError if the arguments do not fit together.
    """
    _check(q, k, cos, sin)
    return IMPLEMENTATIONS[choose(IMPLEMENTATIONS, impl, q.device)](q, k, cos, sin, eps)


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    if q.ndim != 4 or k.ndim != 4 or q.shape[-1] % 2:
        raise ValueError(
            f"qk_norm_rope: expected q (B, T, H, D) and k (B, T, Hk, D) with an even D, got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    B, T, _, D = q.shape
    if (*k.shape[:2], k.shape[3]) != (B, T, D):
        raise ValueError(
            f"qk_norm_rope: k must be (B={B}, T={T}, Hk, D={D}) as q is, got {tuple(k.shape)}"
        )
    if not cos.shape == sin.shape == (T, D // 2):
        raise ValueError(
            f"qk_norm_rope: cos and sin must be (T, D/2) = {(T, D // 2)}, got {tuple(cos.shape)} and {tuple(sin.shape)}"
        )
    if q.dtype != k.dtype:
        raise TypeError(
            f"qk_norm_rope: q and k must share one dtype, got {q.dtype} and {k.dtype}; cast them first"
        )


# ---- torch ----


def _torch(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    cos, sin = cos.float().unsqueeze(1), sin.float().unsqueeze(1)  # (T, 1, D/2)

    def turned(x: Tensor) -> Tensor:
        xf = x.float()
        a, b = (xf * torch.rsqrt(xf.square().mean(-1, keepdim=True) + eps)).chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)

    return turned(q), turned(k)


# ---- cpp ----


def _rows(x: Tensor) -> Tensor:
    """x with contiguous rows: itself, unless its last dimension has gaps."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _cpp_forward(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return jit.load("qk_norm_rope").forward(_rows(q), _rows(k), cos, sin, eps)


def _cpp_backward(
    dq_out: Tensor, dk_out: Tensor, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    gradients = _rows(dq_out), _rows(dk_out)
    return jit.load("qk_norm_rope").backward(*gradients, _rows(q), _rows(k), cos, sin, eps)


# ---- triton ----
# Strides come as tuples (B, T, H, D), of which Triton makes a 1 a constant. A token's number is int32: divided in 64 bits, it
# would add 112 instructions to the 402 of the forward kernel (sm_90, ptxas 12.8). Offsets are int64.


@triton.jit
def _token_offsets(tokens, T, strides):
    return (tokens // T).to(tl.int64) * strides[0] + (tokens % T).to(tl.int64) * strides[1]


@triton.jit
def _load_halves(ptr, offs, pairs, strides, HALF: tl.constexpr, mask):
    """Channels [0, D/2) and [D/2, D) of a head of each token  # [TOKENS, BLOCK] float32"""
    ptrs = ptr + offs[:, None] + pairs[None, :] * strides[3]
    a = tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(ptrs + HALF * strides[3], mask=mask, other=0.0).to(tl.float32)
    return a, b


@triton.jit
def _store_halves(ptr, offs, pairs, HALF: tl.constexpr, a, b, mask):
    ptrs = ptr + offs[:, None] + pairs[None, :]
    tl.store(ptrs, a.to(ptr.dtype.element_ty), mask=mask)
    tl.store(ptrs + HALF, b.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _forward_heads(
    x_ptr, y_ptr, strides, tokens, T, cos, sin, eps, mask, pairs, H: tl.constexpr, HALF: tl.constexpr
):  # fmt: skip
    offs = _token_offsets(tokens, T, strides)
    for h in range(H):
        a, b = _load_halves(x_ptr, offs, pairs, strides, HALF, mask)
        offs += strides[2]  # a sum in 64 bits, where h * strides[2] is a product in 32
        rstd = 1.0 / tl.sqrt(tl.sum(a * a + b * b, axis=1) / (2 * HALF) + eps)
        a, b = a * rstd[:, None], b * rstd[:, None]
        to = (tokens.to(tl.int64) * H + h) * (2 * HALF)
        _store_halves(y_ptr, to, pairs, HALF, a * cos - b * sin, b * cos + a * sin, mask)


@triton.jit
def _backward_heads(
    dy_ptr, x_ptr, dx_ptr, dy_strides, strides, tokens, T, cos, sin, eps, mask, pairs, H: tl.constexpr, HALF: tl.constexpr
):  # fmt: skip
    offs, dy_offs = _token_offsets(tokens, T, strides), _token_offsets(tokens, T, dy_strides)
    for h in range(H):
        a, b = _load_halves(x_ptr, offs, pairs, strides, HALF, mask)
        da, db = _load_halves(dy_ptr, dy_offs, pairs, dy_strides, HALF, mask)
        offs += strides[2]
        dy_offs += dy_strides[2]
        ga, gb = da * cos + db * sin, db * cos - da * sin
        rstd = 1.0 / tl.sqrt(tl.sum(a * a + b * b, axis=1) / (2 * HALF) + eps)
        c = tl.sum(ga * a + gb * b, axis=1) * rstd * rstd / (2 * HALF)
        ga = rstd[:, None] * (ga - a * c[:, None])
        gb = rstd[:, None] * (gb - b * c[:, None])
        to = (tokens.to(tl.int64) * H + h) * (2 * HALF)
        _store_halves(dx_ptr, to, pairs, HALF, ga, gb, mask)


@triton.jit
def _load_turns(cos_ptr, sin_ptr, N, T, HALF: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """This program's tokens, its pairs of channels, their mask, and their cos and sin."""
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    pairs = tl.arange(0, BLOCK)
    mask = (tokens < N)[:, None] & (pairs < HALF)[None, :]
    at = (tokens % T)[:, None] * HALF + pairs[None, :]
    cos = tl.load(cos_ptr + at, mask=mask, other=0.0)
    sin = tl.load(sin_ptr + at, mask=mask, other=0.0)
    return tokens, pairs, mask, cos, sin


@triton.jit
def _qk_norm_rope_fwd_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr, q_strides, k_strides, N, T, eps,
    H: tl.constexpr, HK: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tokens, pairs, mask, cos, sin = _load_turns(cos_ptr, sin_ptr, N, T, HALF, TOKENS, BLOCK)
    _forward_heads(q_ptr, q_out_ptr, q_strides, tokens, T, cos, sin, eps, mask, pairs, H, HALF)
    _forward_heads(k_ptr, k_out_ptr, k_strides, tokens, T, cos, sin, eps, mask, pairs, HK, HALF)


@triton.jit
def _qk_norm_rope_bwd_kernel(
    dq_out_ptr, dk_out_ptr, q_ptr, k_ptr, cos_ptr, sin_ptr, dq_ptr, dk_ptr,
    dq_out_strides, dk_out_strides, q_strides, k_strides, N, T, eps,
    H: tl.constexpr, HK: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tokens, pairs, mask, cos, sin = _load_turns(cos_ptr, sin_ptr, N, T, HALF, TOKENS, BLOCK)
    _backward_heads(
        dq_out_ptr, q_ptr, dq_ptr, dq_out_strides, q_strides, tokens, T, cos, sin, eps, mask, pairs, H, HALF
    )  # fmt: skip
    _backward_heads(
        dk_out_ptr, k_ptr, dk_ptr, dk_out_strides, k_strides, tokens, T, cos, sin, eps, mask, pairs, HK, HALF
    )  # fmt: skip


# Pairs of channels that a program holds at a time. A thread takes 8 bfloat16 from each half of a head: a 16-byte load.
TILE = 1024  # tune: 512 1024 2048 4096


def _tile(D: int) -> dict[str, int]:
    """Constants of a launch that follow from D: tokens and pairs of a tile, and its warps (8 pairs a thread)."""
    block = triton.next_power_of_2(D // 2)
    tokens = max(TILE // block, 1)
    warps = min(max(tokens * block // 256, 1), 16)
    return {"HALF": D // 2, "TOKENS": tokens, "BLOCK": block, "num_warps": warps}


def _triton_forward(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    B, T, H, D = q.shape
    q_out, k_out = q.new_empty(q.shape), k.new_empty(k.shape)
    if B * T * D:
        tile = _tile(D)
        _qk_norm_rope_fwd_kernel[(triton.cdiv(B * T, tile["TOKENS"]),)](
            q, k, cos, sin, q_out, k_out, q.stride(), k.stride(), B * T, T, eps, H=H, HK=k.shape[2], **tile
        )  # fmt: skip
    return q_out, k_out


def _triton_backward(
    dq_out: Tensor, dk_out: Tensor, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    B, T, H, D = q.shape
    dq, dk = q.new_empty(q.shape), k.new_empty(k.shape)
    if B * T * D:
        tile = _tile(D)
        strides = [x.stride() for x in (dq_out, dk_out, q, k)]
        _qk_norm_rope_bwd_kernel[(triton.cdiv(B * T, tile["TOKENS"]),)](
            dq_out, dk_out, q, k, cos, sin, dq, dk, *strides, B * T, T, eps, H=H, HK=k.shape[2], **tile
        )  # fmt: skip
    return dq, dk


def _aot(kernel: triton.JITFunction):
    """An entry of AOT: the default model's bf16, 4 heads of 128 channels, contiguous rows."""
    types: dict[str, Any] = {"N": "i32", "T": "i32", "eps": "fp32"}
    constants: dict[Any, Any] = {"H": 4, "HK": 4, **_tile(128)}
    options = {"num_warps": constants.pop("num_warps")}
    for i, name in enumerate(kernel.arg_names):
        if name.endswith("_ptr"):
            types[name] = "*fp32" if name in ("cos_ptr", "sin_ptr") else "*bf16"
        elif name.endswith("_strides"):
            types[name] = ("i32", "i32", "i32", "constexpr")
            constants[i, 3] = 1  # the fourth stride
    return kernel, types, constants, options


# The specialisations of the default model on a GPU, for compiling ahead of time.
AOT = [_aot(_qk_norm_rope_fwd_kernel), _aot(_qk_norm_rope_bwd_kernel)]


# ---- custom op ----

FORWARD = {"cpp": _cpp_forward, "triton": _triton_forward}
BACKWARD = {"cpp": _cpp_backward, "triton": _triton_backward}


@custom_op("qk_norm_rope")
def _op(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, eps: float, impl: str
) -> tuple[Tensor, Tensor]:
    return FORWARD[impl](q, k, cos, sin, eps)


@_op.register_fake
def _(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, eps: float, impl: str
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


@custom_op("qk_norm_rope_backward")
def _op_backward(
    dq_out: Tensor, dk_out: Tensor, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, eps: float, impl: str
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return BACKWARD[impl](dq_out, dk_out, q, k, cos, sin, eps)


@_op_backward.register_fake
def _(
    dq_out: Tensor, dk_out: Tensor, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, eps: float, impl: str
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _save(ctx, inputs, output):
    *tensors, ctx.eps, ctx.impl = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx, dq_out: Tensor, dk_out: Tensor):
    dq, dk = _op_backward(dq_out, dk_out, *ctx.saved_tensors, ctx.eps, ctx.impl)
    return dq, dk, None, None, None, None


_op.register_autograd(_gradient, setup_context=_save)


def _kernel(impl: str):
    def run(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and (cos.requires_grad or sin.requires_grad):
            raise ValueError(
                f"qk_norm_rope: impl={impl!r} has no gradient of cos and sin; detach them, or use impl='torch'"
            )
        return _op(q, k, dense(cos, torch.float32), dense(sin, torch.float32), eps, impl)

    return run


IMPLEMENTATIONS = {"torch": _torch, "cpp": _kernel("cpp"), "triton": _kernel("triton")}
