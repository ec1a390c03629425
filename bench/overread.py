"""Does torch read past the end of a row on this machine, and rely on zeros of the other factor?

On a CPU with AMX its products in bfloat16 do, where the sum is not of a multiple of 32 terms (oneDNN issue 5717, mended there in July 2026; torch
2.13 is older). What lies behind a row must then be finite, as 0 x NaN is NaN. Whoever leaves products to torch does the same, and the judge has to
know that it is not theirs: of 200 drawn cases of the shipped relu2_mlp, planted NaNs refused ten, and so one gate in four.
"""

from __future__ import annotations

import functools

import torch

K = 33  # one term more than a tile's row holds


@functools.cache
def torch_overreads() -> bool:
    """Asked of torch: does a NaN between the rows of one factor show in the product? Float16 has tiles of its own on newer processors."""
    for dtype in (torch.bfloat16, torch.float16):
        padded = torch.full((64, K + 7), float("nan"), dtype=dtype)
        rows = padded[:, :K].fill_(1.0)
        if not (rows @ torch.ones(K, 16, dtype=dtype)).isfinite().all():
            return True
    return False
