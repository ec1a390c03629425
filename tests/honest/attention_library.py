"""torch's scaled dot product attention under a mask."""

import torch
import torch.nn.functional as F


def attention(q, k, v, causal=True, window=None):
    T, group = q.shape[2], q.shape[1] // k.shape[1]
    i, j = torch.arange(T).view(T, 1), torch.arange(T).view(1, T)
    seen = j <= i if causal else torch.ones(T, T, dtype=torch.bool)
    if window is not None:
        seen = seen & (i - j < window) & (j - i < window)
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
