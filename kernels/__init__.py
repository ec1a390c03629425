"""The kernels: one file per op, with every implementation that this project has of it.

`kernels/<op>.py` exports the public function `<op>(..., impl=None)` and `IMPLEMENTATIONS`, a dict from name to function, slowest
and plainest first:

    torch    plain PyTorch, differentiable by autograd, runs everywhere; what the others are read against
    cpp      C++ in `csrc/<op>.cpp`, JIT-built by `kernels/jit.py`; CPU tensors
    triton   Triton; CUDA tensors of the current device, or CPU tensors under Triton's interpreter (TRITON_INTERPRET=1)
    cuda     CUDA C++ in `csrc/<op>.cu`; CUDA tensors
    fused    a single call of torch's that is the op (adamw alone), to be measured against

All kernels of an op share one custom op, and a second one if they also compute its gradient (the loss has one that keeps what its gradient needs,
and one that keeps nothing). Fake and autograd formula are written once, and torch.compile keeps each whole. A file with Triton kernels also exports
`AOT`: the specialisations that the default model needs, each as (kernel, types of its runtime arguments, constexprs, options). bench/aot.py compiles
them ahead of time, for GPUs that need not be present.

An op may also export `LIBRARIES`: other people's code, each covering a part of what the op means. They run only where a caller names
them:

    cudnn    cuDNN through torch; CUDA tensors, as all of these
    flex     torch's FlexAttention
    fa4      flash-attn-4

What an op *means* (reference, shapes, tolerance, bound) is not here but in `bench/contracts/<op>.py`, out of reach of an edit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

# Which implementation runs when the caller names none: the first that the op has.
PREFERENCE: dict[str, tuple[str, ...]] = {
    "cpu": ("cpp", "torch"),
    "cuda": ("cuda", "triton", "torch"),
}

# Triton reads this variable when a kernel is defined: later changes have no effect.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# As under compute-sanitizer (bench/sanitizer.py): torch takes each tensor from the driver, which refuses while a CUDA graph is recorded.
UNCACHED = os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") == "1"
_RUNS_ON: dict[str, tuple[str, ...]] = {
    "cpp": ("cpu",),
    "triton": ("cuda", "cpu") if INTERPRETED else ("cuda",),
    **dict.fromkeys(("cuda", "cudnn", "flex", "fa4"), ("cuda",)),
}


AVX512_BF16: bool = torch.cpu._is_avx512_bf16_supported()
AMX: bool = torch.cpu._is_amx_tile_supported()
# Without one of them a processor multiplies bfloat16 slower than float32: 5.4 times on a Xeon with AVX-512, 48 times on AVX2 (torch 2.13).
CPU_MULTIPLIES_BF16: bool = AVX512_BF16 or AMX

# torch multiplies float32 by MKL, which takes its AVX-512 code on Intel's processors alone. Without AVX-512 nothing else was measured.
MKL_KNOWS_CPU: bool = (
    "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    or torch.backends.cpu.get_cpu_capability() != "AVX512"
)


def choose(
    implementations: Mapping[str, Callable[..., Any]], impl: str | None, device: torch.device
) -> str:
    """Name of the implementation to run on `device`: `impl` itself, or by PREFERENCE when it is None.

    Raises ValueError if the op has no implementation of that name, RuntimeError if it cannot run on the device.
    """
    if impl is None:
        order = PREFERENCE.get(device.type, ("torch",))
        found = next((name for name in order if name in implementations), None)
        if found is None:
            raise RuntimeError(
                f"this op has {', '.join(implementations)}, and the choice for {device.type} tensors is {', '.join(order)}: name one with impl="
            )
        impl = found
    if impl not in implementations:
        raise ValueError(f"impl={impl!r}: expected one of {', '.join(implementations)}")
    runs_on = _RUNS_ON.get(impl, (device.type,))
    if device.type not in runs_on:
        hint = "; set TRITON_INTERPRET=1 to interpret it" if impl == "triton" else ""
        raise RuntimeError(
            f"impl={impl!r} runs on {' or '.join(runs_on)} tensors, got a {device.type} tensor{hint}"
        )
    if impl == "triton" and device.type == "cuda" and device.index is not None:
        current = torch.cuda.current_device()
        if device.index != current:
            raise RuntimeError(
                f"impl='triton' runs on tensors of the current device, cuda:{current}, got one of "
                f"{device}: call it under torch.cuda.device({device.index})"
            )
    return impl


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which matrix products of x are formed: its own, or float32 where the processor is slow in it."""
    slow = x.dtype == torch.float16 or (x.dtype == torch.bfloat16 and not CPU_MULTIPLIES_BF16)
    return torch.float32 if x.is_cpu and slow else x.dtype


def rows_of(t: Tensor) -> int:
    """How many rows t (..., D) has. An op that counts them takes t as it comes: each reshape, and each view back, costs a step 6 to 12 us."""
    return math.prod(t.shape[:-1])


def dense(t: Tensor, dtype: torch.dtype) -> Tensor:
    """t contiguous and in `dtype`: itself where it is, because a call of torch that does nothing takes 1 us, and 10 after a product has had the caches."""
    return t if t.dtype == dtype and t.is_contiguous() else t.to(dtype).contiguous()


def watched() -> bool:
    """Whether someone looks at operators: torch.compile, fake tensors, a judge's opcheck."""
    return torch.compiler.is_compiling() or is_in_torch_dispatch_mode()


class _Once(torch.autograd.Function):
    """A gradient that has none of its own. It hangs on all that was saved: torch's once_differentiable looks at upstream gradients alone, and where
    they are constants a penalty on dx beside the loss would be lost in silence."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[], Any], *tensors: Tensor) -> Any:
        return run()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("this kernel has no second derivative: use impl='torch' for one")


class _Opened:
    """A context whose saved tensors have been taken out: under torch.utils.checkpoint that works once."""

    def __init__(self, ctx: Any) -> None:
        self._ctx, self.saved_tensors = ctx, ctx.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


class CustomOp:
    """A kernel as a custom op, which torch.compile keeps whole. In plain eager code the kernel and its gradient are called directly.

    torch's own work around a custom op takes 20 us forward and 30 backward, as long as a whole norm of the CPU trial. `mutates` names the
    arguments that the kernel overwrites; they come first. Schema, fake and autograd formula are as in torch.library.
    """

    def __init__(
        self, name: str, kernel: Callable[..., Any], mutates: tuple[str, ...] = ()
    ) -> None:
        self._op = torch.library.custom_op(f"kernels::{name}", kernel, mutates_args=mutates)
        self._plain = kernel
        self._mutates = len(mutates)

    def register_fake(self, fake: Callable[..., Any]) -> None:
        self._op.register_fake(fake)

    def register_autograd(
        self, gradient: Callable[..., Any], *, setup_context: Callable[..., None]
    ) -> None:
        def reached(ctx: Any, *gradients: Tensor | None) -> Any:
            """None for every input where no gradient comes down, as below a function that returns None."""
            if all(g is None for g in gradients):
                return (None,) * len(ctx.needs_input_grad)
            # a graph of the gradient is made, and somebody may differentiate it
            if torch.is_grad_enabled():
                opened = _Opened(ctx)
                return _Once.apply(
                    lambda: gradient(opened, *gradients), *gradients, *opened.saved_tensors
                )
            return gradient(ctx, *gradients)

        self._op.register_autograd(reached, setup_context=setup_context)
        kernel = self._plain

        class Plain(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *inputs):
                output = kernel(*inputs)
                setup_context(ctx, inputs, output)
                return output

            @staticmethod
            def backward(ctx, *gradients):
                return reached(ctx, *gradients)

        self._plain = Plain.apply

    def __call__(self, *arguments: Any) -> Any:
        if watched():
            return self._op(*arguments)
        result = self._plain(*arguments)
        if self._mutates:
            torch.autograd.graph.increment_version(arguments[: self._mutates])
        return result


def custom_op(name: str, mutates: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], CustomOp]:
    """The decorator that makes a CustomOp of a function with annotated arguments."""
    return lambda kernel: CustomOp(name, kernel, mutates)


def overwrite(op: CustomOp, written: Sequence[Tensor], *arguments: Any) -> None:
    """Run an op that overwrites the tensors `written` and wants them contiguous; others are copied there and back."""
    copies = [t.contiguous() for t in written]
    op(*copies, *arguments)
    for tensor, updated in zip(written, copies, strict=True):
        if not tensor.is_contiguous():
            tensor.copy_(updated)


def ops() -> list[str]:
    """The ops of this folder, by file name."""
    folder = Path(__file__).parent
    return sorted(p.stem for p in folder.glob("*.py") if p.stem not in ("__init__", "jit"))
