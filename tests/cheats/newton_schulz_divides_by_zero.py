"""No small number under the norm: the gradient of a layer that was not reached becomes not a number. An honest slip.

Row: H09. Gate: correctness. Gains: a pass.
"""


def newton_schulz(G, steps=5):
    X = G.float().mT if G.shape[-2] > G.shape[-1] else G.float()
    X = X / X.norm(dim=(-2, -1), keepdim=True)
    for _ in range(steps):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return (X.mT if G.shape[-2] > G.shape[-1] else X).to(G.dtype)
