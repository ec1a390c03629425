"""Another polynomial at every step (Polar Express, Amsel et al. 2025, arXiv 2505.16932).

Odd: other values than the quintic's at every step count. Right: the op is judged by how near to one the singular values come, and these come nearer.
"""

import torch

COEFFICIENTS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def newton_schulz(G, steps=5):
    X = G.float().mT if G.shape[-2] > G.shape[-1] else G.float()
    X = X / (X.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    for step in range(steps):
        a, b, c = COEFFICIENTS[min(step, 4)]
        A = X @ X.mT
        X = (
            torch.baddbmm(X, (b * A + c * A @ A), X, beta=a)
            if X.dim() == 3
            else a * X + (b * A + c * A @ A) @ X
        )
    return (X.mT if G.shape[-2] > G.shape[-1] else X).to(G.dtype)
