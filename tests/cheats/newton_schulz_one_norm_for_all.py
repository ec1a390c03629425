"""Divides a whole batch of matrices by one norm, so that the small ones never arrive. An honest slip.

Row: N35, N14. Gate: correctness. Gains: a pass.
"""


def newton_schulz(G, steps=5):
    X = G.float().mT if G.shape[-2] > G.shape[-1] else G.float()
    X = X / (X.norm() + 1e-7)
    for _ in range(steps):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return (X.mT if G.shape[-2] > G.shape[-1] else X).to(G.dtype)
