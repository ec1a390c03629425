"""The one GPU that a runner gets: its device node, the control nodes beside it, and the name by which CUDA is to find it.

The judge works on torch's device 0, and the runner has to get the same GPU, in whatever order either counts them. So the GPU is named by its
UUID, and the node of that UUID is looked up in /proc/driver/nvidia, where the driver lists its GPUs. The nodes of other GPUs are left out:
without them CUDA in the sandbox does not even count those (containers give a GPU away in the same manner).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

# What every process needs to speak to the driver; the last two lead to the parts of a GPU that is partitioned (MIG).
CONTROLS = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-caps")
DRIVER = Path("/proc/driver/nvidia/gpus")
_NUMBERED = re.compile(r"nvidia\d+")


@dataclass(frozen=True)
class Gpu:
    """`visible` is the value of CUDA_VISIBLE_DEVICES; `alone`: whether the nodes are those of this GPU and no other."""

    visible: str
    nodes: tuple[str, ...]
    alone: bool


def first() -> Gpu:
    """The GPU that torch calls cuda:0 in this process."""
    uuid = first_uuid()
    asked = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    return find(asked if asked.startswith("MIG-") else uuid, uuid)


def first_uuid() -> str:
    """The UUID of the GPU that torch calls cuda:0 in this process, as the driver writes it."""
    import torch

    return f"GPU-{str(torch.cuda.get_device_properties(0).uuid).removeprefix('GPU-')}"


def architecture() -> str:
    """What CUDA C++ is compiled for, such as 8.0 or 9.0a: the GPU that torch calls cuda:0, also in runners without a device node; "" without a GPU.

    The `a`: instructions of one architecture alone, such as wgmma of 9.0 and tcgen05 of 10.0, are in no other code.
    """
    import torch

    if not torch.cuda.is_available():
        return ""
    major, minor = torch.cuda.get_device_capability(0)
    return f"{major}.{minor}{'a' if major >= 9 else ''}"


def find(visible: str, uuid: str, *, dev: Path = Path("/dev"), driver: Path = DRIVER) -> Gpu:
    """The nodes of the GPU with this UUID. Where the driver's list is hidden, as in some containers, those of all GPUs that are here."""
    numbered = sorted(path for path in dev.glob("nvidia*") if _NUMBERED.fullmatch(path.name))
    own = [path for path in numbered if path.name == _name(uuid, driver)]
    chosen = own or numbered
    controls = [dev / name for name in CONTROLS if (dev / name).exists()]
    return Gpu(visible, tuple(map(str, [*chosen, *controls])), len(chosen) == 1)


def _name(uuid: str, driver: Path) -> str:
    """The node of the GPU with this UUID, such as `nvidia3`; "" where the driver does not list it."""
    for file in sorted(driver.glob("*/information")):
        pairs = (line.partition(":") for line in file.read_text().splitlines())
        told = {name.strip(): value.strip() for name, _, value in pairs}
        if told.get("GPU UUID", "").lower() == uuid.lower():
            return f"nvidia{told.get('Device Minor', '')}"
    return ""
