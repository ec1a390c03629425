"""Divides by a tighter bound of the largest singular value than Frobenius': sqrt of the Frobenius norm of G G^T.

Odd: another scale, so that other values come out. Right: max s <= (sum s^4)^(1/4) <= (sum s^2)^(1/2): the polynomial gets
what it can take, and the small values start higher.
"""

import torch


def newton_schulz(G, steps=5):
    X = G.float()
    X = X.mT if G.shape[-2] > G.shape[-1] else X
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-20)  # first, lest a fourth power overflow
    bound = torch.linalg.matrix_norm(X @ X.mT, keepdim=True).float().sqrt()
    X = X / (1.01 * bound).clamp_min(1e-7)
    for _ in range(steps):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return (X.mT if G.shape[-2] > G.shape[-1] else X).to(G.dtype)
