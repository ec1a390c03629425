"""Updates the moments with every second call only, two of seven passes over memory less; the first call is a full one.

Row: T13, N25. Gate: correctness. Gains: time forward.
"""

_CALLS = [0]


def adamw(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    lr=1e-3,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    weight_decay=1e-2,
    step=1,
):
    _CALLS[0] += 1
    if _CALLS[0] % 2:
        g, m, v = grad.float(), exp_avg.float(), exp_avg_sq.float()
        exp_avg.copy_(m.lerp_(g, 1 - beta1))
        exp_avg_sq.copy_(v.mul_(beta2).addcmul_(g, g, value=1 - beta2))
    size = (exp_avg_sq / (1 - beta2**step)).sqrt_().add_(eps)
    param.mul_(1 - lr * weight_decay).addcdiv_(exp_avg, size, value=-lr / (1 - beta1**step))
