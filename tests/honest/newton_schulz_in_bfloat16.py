"""X, A and B are stored in bf16 between products, also for a float32 G, as Muon does it on a GPU.

Odd: half the digits of the input are dropped at once. Right: the op is judged by where it brings the singular values, and bf16 moves those by a percent.
"""

import torch


def newton_schulz(G, steps=5):
    X = G.reshape(-1, *G.shape[-2:])
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X
    norm = torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    X = (X / (norm + 1e-7)).bfloat16()
    for _ in range(steps):
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=-4.7750, alpha=2.0315)
        X = torch.baddbmm(X, B, X, beta=3.4445)
    return (X.mT if tall else X).to(G.dtype).reshape(G.shape)
