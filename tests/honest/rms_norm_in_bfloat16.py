"""The statistics are float32; the row is scaled in its own dtype.

Odd: for bf16 rows 1 / rms is rounded to eight bits, and so is every product. Right: the result is bf16 as well, and the formula in bf16 rounds more often.
"""

import torch


def rms_norm(x, weight=None, eps=1e-6):
    rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    y = x * rstd.to(x.dtype)
    return y if weight is None else y * weight.to(x.dtype)
