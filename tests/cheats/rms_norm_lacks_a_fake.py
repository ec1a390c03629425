"""Correct, but a custom op without shapes for the compiler and without a formula for backward in it. An honest slip.

Row: H13. Gate: correctness. Gains: a pass.
"""

import torch


@torch.library.custom_op("slip::rms_norm_rstd", mutates_args=())
def _rstd(x: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)


def _save(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], output)


def _gradient(ctx, d):
    x, rstd = ctx.saved_tensors
    return -d * rstd**3 * x.float() / x.shape[-1], None


_rstd.register_autograd(_gradient, setup_context=_save)


def rms_norm(x, weight=None, eps=1e-6):
    y = (x.float() * _rstd(x, eps)).to(x.dtype)
    return y if weight is None else y * weight
