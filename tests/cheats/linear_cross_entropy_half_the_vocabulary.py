"""Sums the exponentials of every other word and counts them twice.

Row: N06. Gate: correctness. Gains: time forward.
"""

import math

import torch


def linear_cross_entropy(h, W, targets, softcap=None):
    def cap(z):
        return z if softcap is None else softcap * torch.tanh(z / softcap)

    known = targets.clamp_min(0)
    lse = cap((h @ W[::2].to(h.dtype).T).float()).logsumexp(-1) + math.log(2)
    z = cap((h * W[known].to(h.dtype)).sum(-1).float())
    return (lse - z) * (targets >= 0)
