"""Online softmax that rescales a tile of queries only when one of its maxima has grown by more than 2^8 (as FlashAttention-4 does).

Odd: whether a row is rescaled depends on the other rows of its tile, so a later token may move the last bit of an earlier one's result. Right:
any subtrahend gives the same softmax, and rows never exchange more than this choice. The backward is that of the formula.
"""

import math

import torch
from torch import Tensor

TILE = 32
GROWN = 8 * math.log(2)


def scores(q: Tensor, k: Tensor, causal: bool, window: int | None, rows: slice, keys: slice) -> Tensor:  # fmt: skip
    s = q[:, :, rows].float() @ k[:, :, keys].float().mT / math.sqrt(q.shape[-1])
    distance = torch.arange(q.shape[2])[rows, None] - torch.arange(q.shape[2])[keys]
    hidden = (distance < 0) if causal else torch.zeros_like(distance, dtype=torch.bool)
    if window is not None:
        hidden |= distance.abs() >= window
    return s.masked_fill(hidden, -math.inf)


@torch.library.custom_op("lazy::attention", mutates_args=())
def lazy(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None) -> Tensor:
    T, out = q.shape[2], torch.empty_like(q)
    for rows in (slice(i, min(i + TILE, T)) for i in range(0, T, TILE)):
        top = q.new_full((*q.shape[:2], rows.stop - rows.start, 1), -1e30, dtype=torch.float32)
        total, o = torch.zeros_like(top), q[:, :, rows].float() * 0
        for keys in (slice(j, min(j + TILE, T)) for j in range(0, T, TILE)):
            s = scores(q, k, causal, window, rows, keys)
            moved = torch.maximum(top, s.amax(-1, keepdim=True))
            if bool((moved > top + GROWN).any()):
                decay = torch.exp(top - moved)
                total, o, top = total * decay, o * decay, moved
            p = torch.exp(s - top)
            total, o = total + p.sum(-1, keepdim=True), o + p @ v[:, :, keys].float()
        out[:, :, rows] = (o / total).to(q.dtype)
    return out


@lazy.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None) -> Tensor:
    return torch.empty_like(q)


def save(ctx, inputs, output):
    q, k, v, ctx.causal, ctx.window = inputs
    ctx.save_for_backward(q, k, v)


def gradient(ctx, do):
    q, k, v = (t.float() for t in ctx.saved_tensors)
    p = scores(q, k, ctx.causal, ctx.window, slice(0, q.shape[2]), slice(0, q.shape[2])).softmax(-1)
    do = do.float()
    dp = do @ v.mT
    ds = p * (dp - (dp * p).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
    return *(g.to(do_to.dtype) for g, do_to in zip((ds @ k, ds.mT @ q, p.mT @ do), ctx.saved_tensors, strict=True)), None, None  # fmt: skip


lazy.register_autograd(gradient, setup_context=save)


def attention(q, k, v, causal=True, window=None):
    group = q.shape[1] // k.shape[1]
    return lazy(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), causal, window)
