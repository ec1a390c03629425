"""The quintic in float64, whatever comes.

Odd: eight times the width of bf16 for a result that is rounded to it. Right: more precise than asked.
"""


def newton_schulz(G, steps=5):
    X = G.double()
    X = X.mT if G.shape[-2] > G.shape[-1] else X
    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-30)
    for _ in range(steps):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return (X.mT if G.shape[-2] > G.shape[-1] else X).to(G.dtype)
