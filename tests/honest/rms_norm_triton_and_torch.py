"""A Triton kernel, and plain torch for the rest of the world.

Odd: on a CPU the file's own kernel never runs, and the gradient comes from the plain formula. Right: the choice is by device, in sight, and named in IMPLEMENTATIONS.
"""

import torch
import triton
import triton.language as tl

from kernels import choose


@triton.jit
def _norm_kernel(x_ptr, weight_ptr, y_ptr, D, eps, BLOCK_D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_D)
    x = tl.load(x_ptr + row * D + cols, mask=cols < D, other=0.0).to(tl.float32)
    y = x / tl.sqrt(tl.sum(x * x, axis=0) / D + eps)
    y *= tl.load(weight_ptr + cols, mask=cols < D, other=0.0)
    tl.store(y_ptr + row * D + cols, y, mask=cols < D)


def _torch(x, weight, eps):
    xf = x.float()
    y = xf * torch.rsqrt(xf.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight.float()).to(x.dtype)


class _Triton(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        rows = x.contiguous()
        scale = torch.ones_like(rows[0]) if weight is None else weight.float().contiguous()
        y, D = torch.empty_like(rows), x.shape[-1]
        _norm_kernel[(rows.numel() // D,)](rows, scale, y, D, eps, triton.next_power_of_2(D))
        return y

    @staticmethod
    def backward(ctx, dy):
        wanted = [t.detach().requires_grad_() for t in ctx.saved_tensors if t is not None]
        with torch.enable_grad():
            y = _torch(wanted[0], wanted[1] if len(wanted) > 1 else None, ctx.eps)
        found = torch.autograd.grad(y, wanted, dy)
        return found[0], found[1] if len(found) > 1 else None, None


IMPLEMENTATIONS = {"torch": _torch, "triton": _Triton.apply}


def rms_norm(x, weight=None, eps=1e-6, *, impl=None):
    return IMPLEMENTATIONS[choose(IMPLEMENTATIONS, impl, x.device)](x, weight, eps)
