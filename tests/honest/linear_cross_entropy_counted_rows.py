"""Leaves ignored rows out before the product, and scatters the losses of the others into zeros.

Odd: how many rows are multiplied depends on the data. Right: an ignored row has loss 0 and gradient 0 whatever it holds; in a custom op, so that
torch.compile never sees the odd shape.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def counted_rows(targets: Tensor) -> Tensor:
    return (targets != IGNORED).nonzero()[:, 0]


def capped(z: Tensor, softcap: float | None) -> Tensor:
    return z if softcap is None else softcap * torch.tanh(z / softcap)


@torch.library.custom_op("counted_rows::loss", mutates_args=())
def loss(h: Tensor, W: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    counted = counted_rows(targets)
    y = capped((h[counted] @ W.T).float(), softcap)
    found = F.cross_entropy(y, targets[counted], reduction="none")
    return torch.zeros(len(targets), device=h.device).index_add(0, counted, found)


@loss.register_fake
def _(h: Tensor, W: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    return h.new_empty(targets.shape, dtype=torch.float32)


@torch.library.custom_op("counted_rows::gradients", mutates_args=())
def gradients(g: Tensor, h: Tensor, W: Tensor, targets: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:  # fmt: skip
    counted = counted_rows(targets)
    y = capped((h[counted] @ W.T).float(), softcap)
    dz = (y.softmax(-1) - F.one_hot(targets[counted], len(W))) * g[counted, None]
    if softcap is not None:
        dz *= 1 - (y / softcap).square()
    dh = h.new_zeros(h.shape).index_add(0, counted, (dz @ W).to(h.dtype))
    return dh, (dz.T @ h[counted]).to(W.dtype).contiguous()


@gradients.register_fake
def _(g: Tensor, h: Tensor, W: Tensor, targets: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:  # fmt: skip
    return h.new_empty(h.shape), W.new_empty(W.shape)


def save(ctx, inputs, output):
    *saved, ctx.softcap = inputs
    ctx.save_for_backward(*saved)


def backward(ctx, g):
    return *gradients(g, *ctx.saved_tensors, ctx.softcap), None, None


loss.register_autograd(backward, setup_context=save)


def linear_cross_entropy(h, W, targets, softcap=None):
    rows = h.reshape(-1, h.shape[-1]).float()
    return loss(rows, W.float(), targets.reshape(-1), softcap).view(targets.shape)
