"""State of the whole process that a kernel may not change: it would change what the kernel is compared with, or the training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch

_generator_state, _gpu_generator_state = torch.get_rng_state, torch.cuda.get_rng_state
_operators, _told_of = torch._C._dispatch_get_all_op_names, torch._C._dispatch_dump
_on_gpu: Callable[[], bool] = torch.cuda.is_initialized


_CLASSES = (torch.Tensor, torch.autograd.Function)


def _methods() -> str:
    """A digest of what these classes hold, by identity: it tells two moments of one process apart."""
    # copyreg keeps __slotnames__ there when a tensor is first copied or pickled
    held = [
        (kind.__name__, name, id(value))
        for kind in _CLASSES
        for name, value in vars(kind).items()
        if name != "__slotnames__"
    ]
    return hashlib.sha256(repr(sorted(held)).encode()).hexdigest()


def _kernels() -> str:
    """A digest of the kernels that are registered for torch's own operators; 3,000 of them take 50 ms. A candidate that replaced the kernel of a
    copy would decide what the judge is given as its result.

    Without prims, of which torch.compile registers some when it is first used.
    """
    own = sorted(name for name in _operators() if name.split("::")[0] in ("aten", "prim"))
    # torch.vmap registers kernels when it is first used, for tensors under vmap alone: no copy that is judged is one
    told = [line for name in own for line in _told_of(name).splitlines() if not line.startswith("FuncTorchBatched")]  # fmt: skip
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def snapshot() -> dict[str, Any]:
    """The state now, as plain JSON; two snapshots of a process that was left alone, with CUDA started in both or in neither, are equal."""
    generators = [_generator_state(), *([_gpu_generator_state()] if _on_gpu() else [])]
    states = b"".join(each.numpy().tobytes() for each in generators)
    return {
        # first: what comes after calls methods, and a method of the candidate's could put everything back
        "methods of torch's classes": _methods(),
        "threads of torch": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "subnormals": float(torch.tensor(1e-40).mul(1.0)) != 0,
        "mkldnn": torch.backends.mkldnn.enabled,
        "autocast": [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")],
        "kernels of torch's own operators": _kernels(),
        "global random generator": hashlib.sha256(states).hexdigest(),
    }
