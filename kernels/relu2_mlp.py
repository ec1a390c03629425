"""ReLU^2 MLP: y = relu(x w_up^T)^2 w_down^T  (So et al. 2021, arXiv 2109.08668).

    torch    the formula; autograd keeps two hidden tensors and passes over them some dozen times between the products
    cpp      torch's products; csrc/relu2_mlp.cpp squares in place forward, and in place makes dh of ds backward
    triton   the product up with the square, and the product down's gradient with the slope, in one kernel each: no pass of their own

With h = x w_up^T and s = relu(h)^2 the gradients are

    ds = dy w_down     dh = ds * 2 relu(h)     dx = dh w_up     dw_up = dh^T x     dw_down = dy^T s

Of the hidden tensors (R, M) only s is kept: the last product wants it as it is, and relu(h) is its root. Keeping h as well, or instead,
costs a pass that writes one more of them.

Bound: arithmetic, 4 R D M flops forward and 8 backward. On a CPU the products are what is left: 11.5 of 12.6 ms on a Xeon in float32. Beside
torch.compile: in bfloat16 the op is level on a Zen 5, where both call the same products (1.04 at R = 2048, D = 192, 0.99 at 4096, 512), and 3.8
times as fast on the Xeon, which has no fast bfloat16 products, so that ours are made in float32. In float32 it is 2.0 times as fast on the Zen 5,
by another product, and 1.03 times on the Xeon, by the same one.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import (
    INTERPRETED,
    MKL_KNOWS_CPU,
    choose,
    custom_op,
    dense,
    jit,
    product_dtype,
    rows_of,
)


def relu2_mlp(x: Tensor, w_up: Tensor, w_down: Tensor, *, impl: str | None = None) -> Tensor:
    """relu(x w_up^T)^2 w_down^T (..., E) for x (..., D), w_up (M, D), w_down (E, M); any strides; result in x's dtype.

    Weights are taken in x's dtype; their gradients come in their own. Raises ValueError if the shapes do not fit together.
    """
    if w_up.ndim != 2 or w_down.ndim != 2 or (x.shape[-1], w_up.shape[0]) != (w_up.shape[1], w_down.shape[1]):  # fmt: skip
        raise ValueError(
            "relu2_mlp: expected x (..., D), w_up (M, D), w_down (E, M), "
            f"got {tuple(x.shape)}, {tuple(w_up.shape)}, {tuple(w_down.shape)}"
        )
    call = IMPLEMENTATIONS[choose(IMPLEMENTATIONS, impl, x.device)]
    if not torch.is_autocast_enabled(x.device.type):
        return call(x, w_up, w_down)
    # It would change the dtype of our own products.
    with torch.autocast(x.device.type, enabled=False):
        return call(x.to(torch.get_autocast_dtype(x.device.type)), w_up, w_down)


# ---- torch ----


def _torch(x: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    h = torch.nn.functional.linear(x, w_up.to(x.dtype))
    return torch.nn.functional.linear(h.relu().square(), w_down.to(x.dtype))


# ---- cpp ----


def _times(a: Tensor, b: Tensor) -> Tensor:
    """a b^T of matrices a (m, k) and b (n, k), either of which may be transposed in memory.

    Where MKL, torch's float32 library, has no AVX-512 code for the processor, oneDNN, its bfloat16 library, is called: 150 to 210 GFLOP/s on one
    Zen 5 core instead of 93. On two cores of a Xeon the op takes 12.6 ms by MKL and 14.1 by oneDNN.
    """
    onednn = not MKL_KNOWS_CPU and torch.backends.mkldnn.is_available()
    if a.dtype == torch.float32 and onednn and 0 not in (*a.shape, *b.shape):
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return torch.mm(a, b.t())


def _cpp_forward(x: Tensor, w_up: Tensor, w_down: Tensor) -> tuple[Tensor, Tensor]:
    s = _times(x, w_up)
    jit.load("relu2_mlp").forward(s)
    return _times(s, w_down), s


def _cpp_backward(
    dy: Tensor, x: Tensor, w_up: Tensor, w_down: Tensor, s: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dh = _times(dy, w_down.t())
    jit.load("relu2_mlp").backward(dh, s)
    return _times(dh, w_up.t()), *_weight_gradients(dy, x, dh, s)


def _weight_gradients(dy: Tensor, x: Tensor, dh: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """dw_up (M, D) and dw_down (E, M). dw_up is made as its transpose: products with the narrow matrix first are 10 to 20 % faster."""
    return _times(x.t(), dh.t()).t(), _times(dy.t(), s.t())


# ---- triton ----


@triton.jit
def _relu2_mlp_kernel(
    a_ptr, b_ptr, s_ptr, out_ptr, R, M, K, a_strides, b_strides,
    BACKWARD: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out (R, M) = f(a b), a (R, K), b (K, M): forward f = relu(.)^2, backward f = . * 2 sqrt(s).

    WHOLE: R, M and K are multiples of the blocks. Else each copy of 16 bytes makes its mask anew: 37 of the 138 instructions of a round (sm_90).
    """
    # GROUP rows of tiles at a time: their part of a, and the tiles of b that they share, stay in L2.
    program, down, across = tl.program_id(0), tl.cdiv(R, BLOCK_R), tl.cdiv(M, BLOCK_M)
    first = program // (GROUP * across) * GROUP
    tall = min(down - first, GROUP)
    row0 = (first + program % tall).to(tl.int64) * BLOCK_R
    col0 = program % (GROUP * across) // tall * BLOCK_M
    rows, cols, ks = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    # what is left: a tile counts in 32 bits, 64 spill
    height, width = (R - row0).to(tl.int32), M - col0
    a_ptrs = a_ptr + row0 * a_strides[0] + rows[:, None] * a_strides[0] + ks[None, :] * a_strides[1]
    b_ptrs = b_ptr + col0 * b_strides[1] + ks[:, None] * b_strides[0] + cols[None, :] * b_strides[1]
    acc = tl.zeros([BLOCK_R, BLOCK_M], tl.float32)
    for k in range(0, K, BLOCK_K):
        if WHOLE:
            a, b = tl.load(a_ptrs), tl.load(b_ptrs)
        else:
            a = tl.load(a_ptrs, mask=(rows[:, None] < height) & (ks[None, :] < K - k), other=0.0)
            b = tl.load(b_ptrs, mask=(ks[:, None] < K - k) & (cols[None, :] < width), other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        a_ptrs += BLOCK_K * a_strides[1]
        b_ptrs += BLOCK_K * b_strides[0]
    offs = rows[:, None] * M + cols[None, :]
    mask = (rows[:, None] < height) & (cols[None, :] < width)
    if BACKWARD:
        s = tl.load(s_ptr + row0 * M + col0 + offs, mask=mask, other=0.0).to(tl.float32)
        acc *= 2.0 * tl.sqrt(s)
    else:
        acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)
        acc *= acc
    tl.store(out_ptr + row0 * M + col0 + offs, acc.to(out_ptr.dtype.element_ty), mask=mask)


BLOCK_R = 128  # tune: 64 128 256
BLOCK_M = 128  # tune: 64 128 256
BLOCK_K = 64  # tune: 32 64
GROUP = 8  # tune: 4 8 16
WARPS = 8  # tune: 4 8
STAGES = 3  # tune: 2 3 4


def _launch(dtype: torch.dtype) -> dict[str, Any]:
    """Tiles and options: of float32 half as many terms, so that a stage has the same bytes; three TF32 products keep 21 of its 24 bits."""
    wide = dtype == torch.float32
    return {
        "PRECISION": "tf32x3" if wide else "tf32",
        "BLOCK_R": BLOCK_R // 2 if wide else BLOCK_R,
        "BLOCK_M": BLOCK_M // 2 if wide else BLOCK_M,
        "BLOCK_K": BLOCK_K // 2 if wide else BLOCK_K,
        "GROUP": GROUP,
        "num_warps": WARPS,
        "num_stages": STAGES,
    }


def _fused(a: Tensor, b: Tensor, s: Tensor | None) -> Tensor:
    """relu(a b)^2, or a b * 2 sqrt(s) where s is given, for a (R, K) and b (K, M)."""
    (R, K), M = a.shape, b.shape[1]
    out = a.new_empty(R, M)
    if out.numel():
        launch = _launch(a.dtype)
        tiles = triton.cdiv(R, launch["BLOCK_R"]) * triton.cdiv(M, launch["BLOCK_M"])
        whole = not (R % launch["BLOCK_R"] or M % launch["BLOCK_M"] or K % launch["BLOCK_K"])
        if INTERPRETED and a.dtype == torch.bfloat16:  # whose tl.dot takes bf16 for integers
            a, b = a.float(), b.float()
        _relu2_mlp_kernel[(tiles,)](
            a, b, s, out, R, M, K, a.stride(), b.stride(), BACKWARD=s is not None, WHOLE=whole, **launch
        )  # fmt: skip
    return out


def _triton_forward(x: Tensor, w_up: Tensor, w_down: Tensor) -> tuple[Tensor, Tensor]:
    s = _fused(x, w_up.t(), None)
    return s @ w_down.t(), s


def _triton_backward(
    dy: Tensor, x: Tensor, w_up: Tensor, w_down: Tensor, s: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dh = _fused(dy, w_down, s)
    return dh @ w_up, (x.t() @ dh).t(), dy.t() @ s


def _aot(backward: bool, whole: bool):
    """An entry of AOT: the default model's bf16; the second matrix is w_up transposed, or w_down."""
    types: dict[str, Any] = {
        "a_ptr": "*bf16",
        "b_ptr": "*bf16",
        "out_ptr": "*bf16",
        "R": "i32",
        "M": "i32",
        "K": "i32",
        "a_strides": ("i32", "constexpr"),
        "b_strides": ("i32", "constexpr") if backward else ("constexpr", "i32"),
    }
    names = _relu2_mlp_kernel.arg_names
    constants: dict[Any, Any] = {**_launch(torch.bfloat16), "BACKWARD": backward, "WHOLE": whole}
    constants[names.index("a_strides"), 1] = 1
    constants[names.index("b_strides"), 1 if backward else 0] = 1
    if backward:
        types["s_ptr"] = "*bf16"
    else:
        constants["s_ptr"] = None
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    return _relu2_mlp_kernel, types, constants, options


# The specialisations of the default model on a GPU, for compiling ahead of time.
AOT = [_aot(backward, whole) for backward in (False, True) for whole in (True, False)]


# ---- custom op ----

FORWARD = {"cpp": _cpp_forward, "triton": _triton_forward}
BACKWARD = {"cpp": _cpp_backward, "triton": _triton_backward}


@custom_op("relu2_mlp")
def _op(x: Tensor, w_up: Tensor, w_down: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    return FORWARD[impl](x, w_up, w_down)  # y (R, E), s (R, M)


@_op.register_fake
def _(x: Tensor, w_up: Tensor, w_down: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], w_down.shape[0]), x.new_empty(x.shape[0], w_up.shape[0])


@custom_op("relu2_mlp_backward")
def _op_backward(
    dy: Tensor, x: Tensor, w_up: Tensor, w_down: Tensor, s: Tensor, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    return BACKWARD[impl](dy, x, w_up, w_down, s)


@_op_backward.register_fake
def _(
    dy: Tensor, x: Tensor, w_up: Tensor, w_down: Tensor, s: Tensor, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    M, D = w_up.shape
    return x.new_empty(x.shape), w_up.new_empty(D, M).t(), w_down.new_empty(w_down.shape)


def _save(ctx, inputs, output):
    x, w_up, w_down, ctx.impl = inputs
    ctx.save_for_backward(x, w_up, w_down, output[1])
    ctx.set_materialize_grads(False)  # s has no gradient: None, not a hidden tensor of zeros


def _gradient(ctx, dy: Tensor | None, gradient_of_s: Tensor | None):
    if gradient_of_s is not None:
        raise RuntimeError("relu2_mlp has no second derivative: use impl='torch' for one")
    if not torch.is_autocast_enabled(dy.device.type):
        return *_op_backward(dy.contiguous(), *ctx.saved_tensors, ctx.impl), None
    with torch.autocast(dy.device.type, enabled=False):
        return *_op_backward(dy.contiguous(), *ctx.saved_tensors, ctx.impl), None


_op.register_autograd(_gradient, setup_context=_save)


def _kernel(impl: str):
    def run(x: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
        dtype = product_dtype(x)
        rows = dense(x.reshape(rows_of(x), x.shape[-1]), dtype)
        up, down = (dense(dense(w, x.dtype), dtype) for w in (w_up, w_down))
        y = _op(rows, up, down, impl)[0].view(*x.shape[:-1], w_down.shape[0])
        return y if y.dtype == x.dtype else y.to(x.dtype)

    return run


IMPLEMENTATIONS = {"torch": _torch, "cpp": _kernel("cpp"), "triton": _kernel("triton")}
