"""Turns the raw row and divides by its root mean square afterwards, queries and keys in one tensor.

Odd: the order of the two steps is not the formula's, and the division reaches what is already turned. Right: turning is linear, so a factor of
the whole row may come before it or after; the root mean square is still that of the row as it came, whatever scale cos and sin hold.
"""

import torch


def qk_norm_rope(q, k, cos, sin, eps=1e-6):
    x = torch.cat((q, k), dim=2).float()
    c, s = cos.float().unsqueeze(1), sin.float().unsqueeze(1)
    a, b = x.chunk(2, dim=-1)
    turned = torch.cat((a * c - b * s, b * c + a * s), dim=-1)
    y = (turned * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)).to(q.dtype)
    left, right = y.split((q.shape[2], k.shape[2]), dim=2)
    return left.contiguous(), right.contiguous()
