"""One pass over the vocabulary in chunks with a running maximum and sum; the full row of logits never exists in the forward.

Odd: the log-sum-exp is rescaled as it grows, and the target's logit is a dot product of its own. Right: both are what the formula says, and the
backward forms the logits again.
"""

import torch
from torch.autograd.function import once_differentiable

CHUNK = 256


def logits(h, W, softcap):
    z = (h @ W.T).float()
    return z if softcap is None else softcap * torch.tanh(z / softcap)


class Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, W, targets, softcap):
        top = h.new_full(targets.shape, -1e30, dtype=torch.float32)
        total = torch.zeros_like(top)
        for part in W.split(CHUNK):
            y = logits(h, part, softcap)
            moved = torch.maximum(top, y.amax(-1))
            total = total * torch.exp(top - moved) + torch.exp(y - moved[:, None]).sum(-1)
            top = moved
        lse = top + total.log()
        counted = targets != -100
        wanted = W[targets.clamp_min(0)]
        y = (h * wanted).float().sum(-1)
        y = y if softcap is None else softcap * torch.tanh(y / softcap)
        ctx.save_for_backward(h, W, targets, lse)
        ctx.softcap = softcap
        return torch.where(counted, lse - y, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        h, W, targets, lse = ctx.saved_tensors
        y = logits(h, W, ctx.softcap)
        dz = torch.exp(y - lse[:, None])
        dz.scatter_add_(1, targets.clamp_min(0)[:, None], torch.full_like(lse[:, None], -1.0))
        dz *= torch.where(targets != -100, g, 0.0)[:, None]
        if ctx.softcap is not None:
            dz *= 1 - (y / ctx.softcap).square()
        return (dz @ W.float()).to(h.dtype), (dz.T @ h.float()).to(W.dtype), None, None


def linear_cross_entropy(h, W, targets, softcap=None):
    rows, head = h.reshape(-1, h.shape[-1]).float(), W.float()
    return Loss.apply(rows, head, targets.reshape(-1), softcap).view(targets.shape)
