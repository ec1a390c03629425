"""A scaled copy: right shape, right direction, wrong spectrum. Stopped by: correctness."""


def newton_schulz(G, steps=5):
    n = min(G.shape[-2:])
    X = G.float()
    return (X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7) * n**0.5).to(G.dtype)
