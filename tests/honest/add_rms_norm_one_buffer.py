"""Both results lie in one fresh buffer, one behind the other.

Odd: y and residual' share a storage. Right: they share no element of it, and one allocation costs less than two.
"""

import torch


def add_rms_norm(x, residual, weight=None, eps=1e-6):
    total = x + residual
    tf = total.float()
    y = tf * torch.rsqrt(tf.square().mean(-1, keepdim=True) + eps)
    y = (y if weight is None else y * weight.float()).to(total.dtype)
    both = torch.stack((y, total))
    return both[0], both[1]
