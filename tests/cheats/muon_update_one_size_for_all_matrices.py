"""Brings the step of a whole stack back to the length of its updates, where each matrix has a length of its own.

Row: N06. Gate: correctness. Gains: a pass.
"""


def muon_update(weight, update, size, lr=0.02, decay=0.0, beta=0.95):
    axis = -1 if size.shape[-2:] == (weight.shape[-2], 1) else -2
    square = update.float().square().mean(axis, keepdim=True)
    size.lerp_(square, 1 - beta)
    scale = size.clamp_min(1e-10).rsqrt()
    after = (square * scale.square()).sum().clamp_min(1e-10)
    step = update * (scale * (lr * (square.sum() / after).sqrt()))
    weight.sub_(decay * weight * (step * weight >= 0)).sub_(step)
