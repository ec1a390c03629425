"""Copies whatever comes to contiguous rows first, and computes in float64.

Odd: twice the traffic and twice the width. Right: strides are honoured by the copy, and the contract has no upper limit on care.
"""

import torch


def add_rms_norm(x, residual, weight=None, eps=1e-6):
    total = x.contiguous() + residual.contiguous()
    rows = total.reshape(-1, x.shape[-1]).contiguous().double()
    y = rows / torch.sqrt((rows * rows).sum(-1, keepdim=True) / x.shape[-1] + eps)
    if weight is not None:
        y = y * weight.contiguous().double()
    return y.to(total.dtype).view(x.shape), total
