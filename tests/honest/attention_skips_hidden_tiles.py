"""Tiles of queries look only at the keys that one of them may see; other keys are never read.

Odd: a NaN in a hidden key or value reaches the queries of its tile at most, where the plain formula (0 * NaN) spreads it over all.
Right: whoever sees it has it, and nothing is asked about what is hidden.
"""

import math

import torch

TILE = 32


def attention(q, k, v, causal=True, window=None):
    T, D = q.shape[2:]
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    reach = T if window is None else window - 1
    tiles = []
    for begin in range(0, T, TILE):
        end = min(begin + TILE, T)
        first, last = max(0, begin - reach), end if causal else min(T, end + reach)
        i = torch.arange(begin, end, device=q.device)[:, None]
        j = torch.arange(first, last, device=q.device)
        seen = (i - j <= reach) & (j - i <= (0 if causal else reach))
        s = q[:, :, begin:end].float() @ k[:, :, first:last].float().mT / math.sqrt(D)
        p = s.masked_fill(~seen, -math.inf).softmax(-1)
        tiles.append((p @ v[:, :, first:last].float()).to(q.dtype))
    return torch.cat(tiles, 2)
