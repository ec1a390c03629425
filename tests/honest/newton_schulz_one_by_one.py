"""A Python loop over the stack, one matrix at a time, from the side on which it is shorter.

Odd: no batched product, and tall matrices are never transposed: X (a I + b X^T X + ...) works from the right. Right: it is the same polynomial.
"""

import torch


def one(X, steps):
    X = X / (X.norm() + 1e-7)
    tall = X.shape[0] > X.shape[1]
    for _ in range(steps):
        S = X.T @ X if tall else X @ X.T
        B = torch.addmm(S, S, S, beta=-4.7750, alpha=2.0315)
        X = torch.addmm(X, X, B, beta=3.4445) if tall else torch.addmm(X, B, X, beta=3.4445)
    return X


def newton_schulz(G, steps=5):
    stack = G.float().reshape(-1, *G.shape[-2:])
    return torch.stack([one(X, steps) for X in stack]).reshape(G.shape).to(G.dtype)
