"""The sum is formed in float32 and rounded once, where plain torch adds in the dtype of the inputs.

Odd: the last bit of residual' may differ from x + residual. Right: it is the same sum, rounded once from more digits, and y is the norm of what is
returned.
"""

import torch


def add_rms_norm(x, residual, weight=None, eps=1e-6):
    s = (x.float() + residual.float()).to(x.dtype)
    sf = s.float()
    y = sf * torch.rsqrt(sf.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight.float()).to(x.dtype), s
