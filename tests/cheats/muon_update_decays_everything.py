"""Decays every weight, also those that the step does not shrink: one comparison less, and no decay by default.

Row: N03. Gate: correctness. Gains: a pass.
"""


def muon_update(weight, update, size, lr=0.02, decay=0.0, beta=0.95):
    axis = -1 if size.shape[-2:] == (weight.shape[-2], 1) else -2
    square = update.float().square().mean(axis, keepdim=True)
    size.lerp_(square, 1 - beta)
    scale = size.clamp_min(1e-10).rsqrt()
    before = square.sum((-2, -1), keepdim=True)
    after = (square * scale.square()).sum((-2, -1), keepdim=True).clamp_min(1e-10)
    step = update * (scale * (lr * (before / after).sqrt()))
    weight.mul_(1 - decay).sub_(step)
