"""State of the whole process that a kernel may not change: it would change what the kernel is compared with, or the training."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

_generator_state = torch.get_rng_state


def snapshot() -> dict[str, Any]:
    """The state now, as plain JSON; two snapshots of a process that was left alone are equal."""
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
        "autocast": torch.is_autocast_enabled("cpu"),
        "global random generator": hashlib.sha256(_generator_state().numpy().tobytes()).hexdigest(),
    }
