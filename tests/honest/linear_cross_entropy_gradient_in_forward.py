"""Forms the gradient of the logits in the forward and scales it in place in the backward (as Liger does).

Odd: the forward does the backward's work, and one graph can be walked through once only: a second time torch itself raises, because a saved tensor
was written. Right: values and gradients are those of the formula. Without gradients only the loss is formed.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def capped(z, softcap):
    return z if softcap is None else softcap * torch.tanh(z / softcap)


class Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, W, targets, softcap):
        y = capped((h @ W.T).float(), softcap)
        loss = F.cross_entropy(y, targets, reduction="none", ignore_index=-100)
        counted = (targets != -100)[:, None]
        dz = y.softmax(-1)
        dz -= F.one_hot(targets.clamp_min(0), W.shape[0])
        if softcap is not None:
            dz *= 1 - (y / softcap).square()
        ctx.save_for_backward(h, W, torch.where(counted, dz, 0.0))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        h, W, dz = ctx.saved_tensors
        dz.mul_(g[:, None])
        return (dz @ W.float()).to(h.dtype), (dz.T @ h.float()).to(W.dtype), None, None


def linear_cross_entropy(h, W, targets, softcap=None):
    rows, flat = h.flatten(0, -2).float(), targets.flatten()
    if torch.is_grad_enabled() and (h.requires_grad or W.requires_grad):
        return Loss.apply(rows, W.float(), flat, softcap).view(targets.shape)
    y = capped((rows @ W.float().T).float(), softcap)
    return F.cross_entropy(y, flat, reduction="none", ignore_index=-100).view(targets.shape)
