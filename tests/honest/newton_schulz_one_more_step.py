"""Does one step more than asked, a cubic one that settles the values near one.

Odd: more work than asked, and values that no other implementation has. Right: asked are singular values at least as near to one as the quintic's, and
3/2 s - 1/2 s^3 brings 0.68 .. 1.13 to 0.86 .. 1.
"""

import torch


def quintic(X, a, b, c):
    A = X @ X.mT
    return a * X + (b * A + c * A @ A) @ X


def newton_schulz(G, steps=5):
    X = G.float()
    X = X.mT if G.shape[-2] > G.shape[-1] else X
    X = X / (torch.linalg.matrix_norm(X, keepdim=True) + 1e-7)
    for _ in range(steps):
        X = quintic(X, 3.4445, -4.7750, 2.0315)
    X = quintic(X, 1.5, -0.5, 0.0)
    return (X.mT if G.shape[-2] > G.shape[-1] else X).to(G.dtype)
