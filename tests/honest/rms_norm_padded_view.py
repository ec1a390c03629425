"""The result is a view of a larger buffer whose rows are padded to a multiple of 64 elements.

Odd: not contiguous, and its storage is larger than it. Right: shape, dtype and values are those of the contract, the buffer is new at every
call, and nobody else has it; aligned rows suit the next kernel.
"""

import torch


def rms_norm(x, weight=None, eps=1e-6):
    D = x.shape[-1]
    padded = -(-D // 64) * 64
    xf = x.float()
    y = xf * torch.rsqrt(xf.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight.float()
    buffer = x.new_zeros(*x.shape[:-1], padded)
    buffer[..., :D] = y.to(x.dtype)
    return buffer[..., :D]
