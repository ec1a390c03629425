"""Gives the arguments new memory instead of new contents: whoever holds a view of the weight goes on with the old one.

Row: N20, N12. Gate: correctness. Gains: a pass.
"""


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
    g = grad.float()
    m = exp_avg.float().lerp(g, 1 - beta1)
    v = (exp_avg_sq.float() * beta2).addcmul_(g, g, value=1 - beta2)
    size = (v / (1 - beta2**step)).sqrt_().add_(eps)
    param.data = (param * (1 - lr * weight_decay)).addcdiv_(m, size, value=-lr / (1 - beta1**step))
    exp_avg.data = m.to(exp_avg.dtype)
    exp_avg_sq.data = v.to(exp_avg_sq.dtype)
