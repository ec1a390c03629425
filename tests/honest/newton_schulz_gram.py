"""Iterates on the Gram matrix A = X X^T and touches X only at the end: O = Q X with Q a polynomial of A.

Odd: no product with X inside the loop, and other rounding. Right: polynomials of one matrix commute, so A and Q together follow the quintic
exactly; A's rounding error grows with a^2 a step, so the loop is in float64.
"""

import torch

A0, B0, C0 = 3.4445, -4.7750, 2.0315


def newton_schulz(G, steps=5):
    X = G.double()
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-12)
    A = X @ X.mT
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    Q = eye.expand_as(A)
    for _ in range(steps):
        P = A0 * eye + B0 * A + C0 * (A @ A)
        A, Q = P @ A @ P, P @ Q
    X = Q @ X
    return (X.mT if tall else X).to(G.dtype)
