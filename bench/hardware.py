"""The hardware on which a setting is found: a GPU by its model; a processor by its model, the instructions that torch uses on it, and the threads.

A constant that is best for one may be worst for another. The host's name is no part of it: equal machines share what they have found.
"""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def name(device: str) -> str:
    """As `AMD EPYC 9654, AVX512, 16 threads`, or `..., AVX512 and AMX, ...`; the threads are those that a runner will have, $OMP_NUM_THREADS included."""
    import torch

    if device == "cuda":
        return str(torch.cuda.get_device_name())
    threads = torch.get_num_threads()
    plural = "" if threads == 1 else "s"
    return f"{processor()}, {vectors()}, {threads} thread{plural}"


def vectors() -> str:
    """The widest vector instructions that torch uses here, and whether the processor has matrix registers."""
    import torch

    tiles = " and AMX" if torch.cpu._is_amx_tile_supported() else ""
    return f"{torch.backends.cpu.get_cpu_capability()}{tiles}"


def processor() -> str:
    """The processor's model; its architecture where the kernel names none, as on ARM."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.is_file() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.machine()


def trains_in(device: str) -> str:
    """The dtype in which a model is fastest: bfloat16, or float32 on a processor that has no products of bfloat16."""
    import torch

    half = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if device == "cuda" or half else "float32"


def toolkit(program: str) -> str | None:
    """Where a program of the CUDA toolkit is: on the PATH, or where torch, which builds with it, looks as well; None if it is not here."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    return shutil.which(program, path=os.pathsep.join(folders))


def no_device(device: str) -> str:
    """Why nothing can be measured here, or ""."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return "no GPU: torch sees no CUDA device; with `--device cpu` it runs on a CPU"
    return ""
