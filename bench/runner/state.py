"""State of the whole process that a kernel may not change: it would change what the kernel is compared with, or the training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch

_generator_state, _gpu_generator_state = torch.get_rng_state, torch.cuda.get_rng_state
_is_replaced = torch._C._dispatch_has_kernel_for_dispatch_key
_on_gpu: Callable[[], bool] = torch.cuda.is_initialized


def snapshot() -> dict[str, Any]:
    """The state now, as plain JSON; two snapshots of a process that was left alone, with CUDA started in both or in neither, are equal."""
    generators = [_generator_state(), *([_gpu_generator_state()] if _on_gpu() else [])]
    states = b"".join(each.numpy().tobytes() for each in generators)
    return {
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
        "kernels of torch's copies": [
            _is_replaced(f"aten::{op}", key)
            for op in ("clone", "copy_", "detach")
            for key in ("CPU", "CUDA", "AutogradCPU", "AutogradCUDA")
        ],
        "global random generator": hashlib.sha256(states).hexdigest(),
    }
