"""Rows whose gradient and moments are all zero, words that have not occurred yet, are decayed and nothing else.

Odd: how much is computed depends on the values, and the host waits for them. Right: from zero moments a zero gradient makes a step of zero
over eps, which is zero.
"""

import torch


def rows_of(t):
    return t.flatten(1) if t.ndim > 1 else t[:, None]


def adamw(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    lr=1e-3,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    weight_decay=1e-2,
    step=1,
):
    still = torch.stack([(rows_of(t) == 0).all(1) for t in (grad, exp_avg, exp_avg_sq)]).all(0)
    moving = torch.nonzero(~still).flatten()
    param.mul_(1 - lr * weight_decay)
    g, m, v, w = (t.index_select(0, moving).float() for t in (grad, exp_avg, exp_avg_sq, param))
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    w.addcdiv_(m, (v / (1 - beta2**step)).sqrt_().add_(eps), value=-lr / (1 - beta1**step))
    for state, updated in ((param, w), (exp_avg, m), (exp_avg_sq, v)):
        state.index_copy_(0, moving, updated.to(state.dtype))
