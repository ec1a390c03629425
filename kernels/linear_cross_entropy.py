"""Linear head and cross-entropy in one op: z = h W^T, y = softcap * tanh(z / softcap), loss = logsumexp(y) - y[target], a token each.

    torch    the formula; autograd keeps the logits in float32 twice over and passes over them about twelve times
    cpp      torch.mm by chunks of rows; csrc/linear_cross_entropy.cpp reads a chunk's logits from the cache and leaves the loss and,
             in the logits' place, their gradient
    triton   the same, one program a row, which it holds in registers between loss and gradient

Forward keeps dz = (softmax(y) - onehot) * (1 - tanh^2), the gradient for an upstream gradient of one, in the dtype of the products. With g a
token's upstream gradient, backward is two products and nothing else of that size: dh = g * (dz W), dW = dz^T (g * h). A factor of a row, such as
one over the sum of its exponentials, may be left out of dz: it joins g. Keeping less was measured, and loses. If dz W is formed inside forward, dW
still needs g, and so a second pass over the logits whenever g differs from token to token. Recomputing z costs a third more arithmetic, and that
outweighs the two passes over memory that it saves.

Bound: 6 N D V flops for loss and gradients (2 N D V for the loss alone); dz is written once and read twice.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels import choose, custom_op, jit, product_dtype, rows_of

IGNORED = -100


def linear_cross_entropy(
    h: Tensor, W: Tensor, targets: Tensor, softcap: float | None = None, *, impl: str | None = None
) -> Tensor:
    """Loss (...) float32 of predicting targets (...) int64 from h (..., D) through the head W (V, D).

    A target of -100 is ignored: loss 0, gradient 0. W is taken in h's dtype; its gradient comes in its own. Any other target outside
    0..V-1 raises IndexError on the CPU. On a GPU a check would have to wait for the device. There 'triton' makes the loss and its gradients NaN,
    and 'torch' trips an assertion in torch's own kernel, after which the process can no longer use the device.
    """
    if h.shape[:-1] != targets.shape or W.ndim != 2 or h.shape[-1] != W.shape[1]:
        raise ValueError(
            f"linear_cross_entropy: expected h (..., D), W (V, D), targets (...), got {tuple(h.shape)}, {tuple(W.shape)}, {tuple(targets.shape)}"
        )
    if targets.dtype != torch.int64:
        raise TypeError(
            f"linear_cross_entropy: expected int64 targets, got {targets.dtype}; convert them with .long()"
        )
    if softcap is not None and not softcap > 0:
        raise ValueError(f"linear_cross_entropy: expected softcap > 0 or None, got {softcap}")
    if torch.is_autocast_enabled(h.device.type):
        h = h.to(torch.get_autocast_dtype(h.device.type))
    return IMPLEMENTATIONS[choose(IMPLEMENTATIONS, impl, h.device)](h, W, targets, softcap)


# ---- torch ----


def _torch(h: Tensor, W: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    z = F.linear(h, W.to(h.dtype)).float()
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    losses = F.cross_entropy(z.reshape(-1, z.shape[-1]), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


# ---- cpp ----

# Rows of logits made at a time on a CPU. Of fewer the fused pass (11 % of the whole) finds more in the cache, but each chunk is a product of its
# own, after which threads wait for each other: 256 rows take 10 % longer on one thread and, on a busy machine, up to twice as long on two.
CHUNK = 1024  # tune: 256 512 1024 2048 4096


def _check_targets(targets: Tensor, V: int) -> None:
    wrong = ((targets < 0) | (targets >= V)) & (targets != IGNORED)
    if wrong.any():
        at = int(wrong.nonzero()[0])
        raise IndexError(
            f"linear_cross_entropy: target {int(targets[at])} of token {at}: expected 0..{V - 1}, or {IGNORED} to ignore it"
        )


def _chunks(rows: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, which have one number of rows, by so many rows at a time. One call of torch makes all parts of a tensor. By slices, at 2 us
    each, the four of a chunk would take the host 8 us, where its product takes an H100 21."""
    if len(tensors[0]):
        yield from zip(*(t.split(rows) for t in tensors), strict=True)


def _cpp_loss(h: Tensor, W: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    _check_targets(targets, W.shape[0])
    N, V = h.shape[0], W.shape[0]
    ops, loss = jit.load("linear_cross_entropy"), h.new_empty(N, dtype=torch.float32)
    buffer = h.new_empty(min(N, CHUNK), V)
    for some, wanted, losses in _chunks(CHUNK, h, targets, loss):
        z = buffer[: len(some)]
        torch.mm(some, W.t(), out=z)
        ops.loss(z, wanted, softcap, losses)
    return loss


def _cpp_loss_and_gradient(
    h: Tensor, W: Tensor, targets: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    _check_targets(targets, W.shape[0])
    N, V = h.shape[0], W.shape[0]
    ops = jit.load("linear_cross_entropy")
    loss, scale = (h.new_empty(N, dtype=torch.float32) for _ in range(2))
    dz = ops.new_buffer(h, N, V)
    for some, z, wanted, losses, scales in _chunks(CHUNK, h, dz, targets, loss, scale):
        torch.mm(some, W.t(), out=z)
        ops.loss_and_gradient(z, wanted, softcap, losses, scales)
    return loss, dz, scale


# ---- triton ----


IGNORED_TARGET = tl.constexpr(IGNORED)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _capped(z, cap, rate, CAPPED: tl.constexpr):
    """log2(e) times the softcapped logit, so that one exp2 makes a probability of it, and its slope, from e = e^(-2 |z| / softcap) <= 1.

    cap = log2(e) softcap, rate = -2 log2(e) / softcap.
    """
    if CAPPED:
        e = tl.exp2(rate * tl.abs(z))
        # as a quotient it would be scaled for divisors beyond 2^126: four of a logit's 33 instructions on sm_90
        r = tl.rsqrt((1.0 + e) * (1.0 + e))
        t = (1.0 - e) * r
        y = cap * tl.where(z < 0, -t, t)
        slope = 4.0 * e * r * r  # 1 - t^2, without its cancellation
    else:
        y, slope = z * LOG2E, tl.full(z.shape, 1.0, tl.float32)  # 1 also where z is infinite
    return y, slope


@triton.jit
def _blocks_of_row(
    z_ptr, loss_ptr, offs, V, target, known, y_target, cap, rate, CAPPED: tl.constexpr, GRADIENT: tl.constexpr, BLOCK_V: tl.constexpr
):  # fmt: skip
    """A row of several blocks: read for its log-sum-exp, and again for its gradient."""
    # One running maximum and sum per lane; lanes meet once, after the row.
    tops = tl.full([BLOCK_V], -float("inf"), tl.float32)
    totals = tl.zeros([BLOCK_V], tl.float32)
    for start in range(0, V, BLOCK_V):
        z = tl.load(z_ptr + start + offs, mask=offs < V - start, other=0.0).to(tl.float32)
        y, slope = _capped(z, cap, rate, CAPPED)
        y = tl.where(offs < V - start, y, -float("inf"))
        higher = tl.maximum(tops, y)
        safe = tl.where(higher == -float("inf"), 0.0, higher)
        totals = totals * tl.exp2(tops - safe) + tl.exp2(y - safe)
        tops = higher
    top = tl.max(tops, axis=0)
    lse = top + tl.log2(tl.sum(totals * tl.exp2(tops - top), axis=0))
    lse = tl.where(known, lse, float("nan"))
    tl.store(loss_ptr, (lse - y_target) * LN2)
    if GRADIENT:
        for start in range(0, V, BLOCK_V):
            z = tl.load(z_ptr + start + offs, mask=offs < V - start, other=0.0).to(tl.float32)
            y, slope = _capped(z, cap, rate, CAPPED)
            hot = tl.where(start + offs == target.to(tl.int32), 1.0, 0.0)
            dz = (tl.exp2(y - lse) - hot) * slope
            tl.store(z_ptr + start + offs, dz, mask=offs < V - start)


@triton.jit
def _linear_cross_entropy_kernel(
    z_ptr, z_strides, targets_ptr, loss_ptr, V, cap, rate,
    CAPPED: tl.constexpr, GRADIENT: tl.constexpr, WHOLE: tl.constexpr, BOUNDED: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """The loss of one row of logits, and if GRADIENT their gradient in their place.

    WHOLE: V <= BLOCK_V, so that a row is read once and stays in registers: three special functions a logit, where rows of several
    blocks need seven and a second read. BOUNDED: no exponential can overflow, so that no maximum is looked for and one number a logit,
    p times its slope, is all that waits for the sum.
    """
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * z_strides[0]
    offs = tl.arange(0, BLOCK_V)
    if WHOLE:  # asked for beside the target: neither waits for the other
        logits = tl.load(z_ptr + offs, mask=offs < V, other=0.0)
    target = tl.load(targets_ptr + row)
    if target == IGNORED_TARGET:
        tl.store(loss_ptr + row, 0.0)
        if GRADIENT:
            for start in range(0, V, BLOCK_V):
                zeros = tl.zeros([BLOCK_V], z_ptr.dtype.element_ty)
                tl.store(z_ptr + start + offs, zeros, mask=offs < V - start)
    else:
        # Before anything is written: all threads read this logit, one of them overwrites it, and what keeps them apart are the barriers
        # of the reductions below.
        known = (target >= 0) & (target < V)
        z_target = tl.load(z_ptr + target, mask=known, other=float("nan")).to(tl.float32)
        y_target, slope_target = _capped(z_target, cap, rate, CAPPED)
        if WHOLE:
            y, slope = _capped(logits.to(tl.float32), cap, rate, CAPPED)
            y = tl.where(offs < V, y, -float("inf"))
            top = 0.0
            if not BOUNDED:
                top = tl.max(y, axis=0)
            p = tl.exp2(y - top)
            total = tl.where(known, tl.sum(p, axis=0), float("nan"))
            tl.store(loss_ptr + row, (top - y_target + tl.log2(total)) * LN2)
            if GRADIENT:
                dz = p * slope * (1.0 / total) - tl.where(
                    offs == target.to(tl.int32), slope_target, 0.0
                )
                tl.store(z_ptr + offs, dz, mask=offs < V)
        else:
            _blocks_of_row(
                z_ptr, loss_ptr + row, offs, V, target, known, y_target, cap, rate, CAPPED, GRADIENT, BLOCK_V
            )  # fmt: skip


# Logits a program holds at a time. The 5e8 logits of a step of 65,536 tokens at V = 8192 take, at 16 special functions a clock
# on each of 132 SMs, 0.4 ms where a row is held whole and 1.0 ms where it is not, beside 2.1 ms of products. Instructions take longer: some 30 a logit
# are 0.6 ms (reckoned from the code for sm_90).
BLOCK_V = 8192  # tune: 2048 4096 8192 16384
# At 16 a row of 8192 takes 16 warps of 60 registers (sm_90, Triton 3.7.1): two programs a multiprocessor.
LOGITS_A_THREAD = 16  # tune: 8 16 32
# Up to this softcap no maximum is needed: e^60, a million times, is within float32.
BOUND = 60.0
# Rows of logits made at a time on a GPU: 2048 rows of 8192 bfloat16 logits are 32 MB of an H100's 50 MB L2.
TRITON_CHUNK = 2048  # tune: 1024 2048 4096 8192


def _warps(block: int) -> int:
    return min(max(block // (32 * LOGITS_A_THREAD), 1), 32)


def _triton_rows(
    z: Tensor, targets: Tensor, loss: Tensor, softcap: float | None, gradient: bool
) -> None:
    V = z.shape[1]
    block = min(BLOCK_V, triton.next_power_of_2(max(V, 1)))
    cap, rate = (0.0, 0.0) if softcap is None else (LOG2E.value * softcap, -2 * LOG2E.value / softcap)  # fmt: skip
    bounded = softcap is not None and softcap <= BOUND
    _linear_cross_entropy_kernel[(z.shape[0],)](
        z, z.stride(), targets, loss, V, cap, rate, softcap is not None, gradient, block >= V, bounded, block,
        num_warps=_warps(block),
    )  # fmt: skip


def _triton_loss(h: Tensor, W: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    N = h.shape[0]
    loss = h.new_empty(N, dtype=torch.float32)
    for some, wanted, losses in _chunks(TRITON_CHUNK, h, targets, loss):
        _triton_rows(some @ W.t(), wanted, losses, softcap, gradient=False)
    return loss


def _triton_loss_and_gradient(
    h: Tensor, W: Tensor, targets: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    N, V = h.shape[0], W.shape[0]
    loss, dz = h.new_empty(N, dtype=torch.float32), h.new_empty(N, V)
    for some, z, wanted, losses in _chunks(TRITON_CHUNK, h, dz, targets, loss):
        torch.mm(some, W.t(), out=z)
        _triton_rows(z, wanted, losses, softcap, gradient=True)
    return loss, dz, (targets != IGNORED).to(loss.dtype)


# The specialisations of the default model (bfloat16, V = 8192, softcap), and what differs most from them, for compiling ahead of time.
_TYPES = {
    "z_ptr": "*bf16",
    "z_strides": ("i32", "constexpr"),
    "targets_ptr": "*i64",
    "loss_ptr": "*fp32",
    "V": "i32",
    "cap": "fp32",
    "rate": "fp32",
}
AOT = [
    (
        _linear_cross_entropy_kernel,
        _TYPES,
        {
            (1, 1): 1,
            "CAPPED": capped,
            "GRADIENT": gradient,
            "WHOLE": whole,
            "BOUNDED": capped,
            "BLOCK_V": BLOCK_V,
        },
        {"num_warps": _warps(BLOCK_V)},
    )
    for capped, gradient, whole in (
        (True, True, True),
        (True, False, True),
        (False, True, True),
        (True, True, False),  # of a vocabulary beyond BLOCK_V
    )
]


# ---- custom ops ----
#
# Two: one for when a gradient will be wanted, one that keeps a single chunk of logits.

LOSS = {"cpp": _cpp_loss, "triton": _triton_loss}
LOSS_AND_GRADIENT = {"cpp": _cpp_loss_and_gradient, "triton": _triton_loss_and_gradient}


@custom_op("linear_cross_entropy_loss")
def _op_loss(h: Tensor, W: Tensor, targets: Tensor, softcap: float | None, impl: str) -> Tensor:
    """Loss (N,) float32 of h (N, D) and W (V, D), both of one dtype, and targets (N,)."""
    return LOSS[impl](h, W, targets, softcap)


@custom_op("linear_cross_entropy")
def _op(
    h: Tensor, W: Tensor, targets: Tensor, softcap: float | None, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The same loss; dz (N, V), but for a factor of each row; these factors (N,) float32."""
    return LOSS_AND_GRADIENT[impl](h, W, targets, softcap)


@_op_loss.register_fake
def _(h: Tensor, W: Tensor, targets: Tensor, softcap: float | None, impl: str) -> Tensor:
    return h.new_empty(h.shape[0], dtype=torch.float32)


@_op.register_fake
def _(
    h: Tensor, W: Tensor, targets: Tensor, softcap: float | None, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    N, V = h.shape[0], W.shape[0]
    loss, scale = (h.new_empty(N, dtype=torch.float32) for _ in range(2))
    return loss, h.new_empty(N, V), scale


def _save(ctx, inputs, output):
    h, W, *_ = inputs
    # else every backward would fill an N x V tensor of zeros for dz
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(h, W, *output[1:])


def _gradient(ctx, g: Tensor | None, *second: Tensor | None):
    if any(each is not None for each in second):
        raise RuntimeError(
            "linear_cross_entropy has no second derivative: use impl='torch' for one"
        )
    h, W, dz, scale = ctx.saved_tensors
    dh = dW = None
    with torch.autocast(h.device.type, enabled=False):
        # that of an ignored token is zero, whatever comes down
        g = (g * scale).masked_fill_(scale == 0, 0.0)[:, None]
        if ctx.needs_input_grad[0]:
            # in place: on a GPU the product of two dtypes would be a float32 copy first
            dh = (dz @ W).mul_(g)
        if ctx.needs_input_grad[1]:
            dW = dz.t() @ torch.mul(h, g, out=torch.empty_like(h))
    return dh, dW, None, None, None


_op.register_autograd(_gradient, setup_context=_save)


def _kernel(impl: str):
    def run(h: Tensor, W: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
        dtype = product_dtype(h)
        rows = h.reshape(rows_of(h), h.shape[-1]).to(dtype)
        head, flat = W.to(h.dtype).to(dtype), targets.reshape(-1).contiguous()
        if torch.is_grad_enabled() and (h.requires_grad or W.requires_grad):
            return _op(rows, head, flat, softcap, impl)[0].view(targets.shape)
        return _op_loss(rows, head, flat, softcap, impl).view(targets.shape)

    return run


IMPLEMENTATIONS = {"torch": _torch, "cpp": _kernel("cpp"), "triton": _kernel("triton")}
