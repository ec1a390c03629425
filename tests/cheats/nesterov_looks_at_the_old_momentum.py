"""Looks ahead from the momentum before it has moved, so that both tensors are written from what was read once.

Row: N02. Gate: correctness. Gains: a pass.
"""


def nesterov(momentum, grad, beta=0.95):
    g = grad.float()
    ahead = g.lerp(momentum, beta)
    momentum.lerp_(g, 1 - beta)
    grad.copy_(ahead)
