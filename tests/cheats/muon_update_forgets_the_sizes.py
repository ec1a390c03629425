"""Moves a copy of the neurons' sizes: this step is right, and every later one starts from sizes that have never moved.

Row: N25. Gate: correctness. Gains: a pass.
"""


def muon_update(weight, update, size, lr=0.02, decay=0.0, beta=0.95):
    axis = -1 if size.shape[-2:] == (weight.shape[-2], 1) else -2
    square = update.float().square().mean(axis, keepdim=True)
    size = size.lerp(square, 1 - beta)
    scale = size.clamp_min(1e-10).rsqrt()
    before = square.sum((-2, -1), keepdim=True)
    after = (square * scale.square()).sum((-2, -1), keepdim=True).clamp_min(1e-10)
    step = update * (scale * (lr * (before / after).sqrt()))
    weight.sub_(decay * weight * (step * weight >= 0)).sub_(step)
