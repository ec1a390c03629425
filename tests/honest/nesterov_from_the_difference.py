"""Both results come from one difference, g - m: the gradient becomes m + (1 - beta) (1 + beta) (g - m).

Odd: the new momentum is never read. Right: g + beta (m' - g) with m' = m + (1 - beta) (g - m) is m + (1 - beta^2) (g - m).
"""


def nesterov(momentum, grad, beta=0.95):
    difference = grad.float() - momentum
    grad.copy_(momentum + (1 - beta * beta) * difference)
    momentum.add_(difference, alpha=1 - beta)
