"""Takes rows to lie one behind the other in memory, and reads the gaps between them where they do not. An honest slip.

Row: N17. Gate: correctness. Gains: a pass.
"""

import torch


def newton_schulz(G, steps=5):
    G = torch.as_strided(G, G.shape, torch.empty(G.shape, device="meta").stride())
    X = G.float().mT if G.shape[-2] > G.shape[-1] else G.float()
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return (X.mT if G.shape[-2] > G.shape[-1] else X).to(G.dtype)
