"""What a GPU did beside its work while it was timed: clocks, temperature, power, and what held the clocks down, as its driver says.

Read once before and once after a measurement (20 ms each, outside of every timed block) and kept with it: arms are interleaved, so that a
falling clock slows both, but a figure in milliseconds means nothing without the clock at which it was taken.
"""

from __future__ import annotations

import shutil
import subprocess

from bench.sandbox import devices

TIMEOUT_S = 20.0
# Bits of clocks_event_reasons.active (NVML, nvmlClocksEventReasons). An idle GPU and one with clocks set by its owner hold nothing down.
REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}
_ASKED = {
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "celsius": "temperature.gpu",
    "watts": "power.draw",
}
_REASONS = "clocks_event_reasons.active"

Reading = dict[str, float | str]


def read(device: str, tool: str = "nvidia-smi") -> Reading:
    """{"sm_mhz", "memory_mhz", "celsius", "watts", "held_down"} of the first GPU that torch sees; empty on a CPU.

    Where the driver's `tool` is missing or fails, {"unknown": why}.
    """
    if device != "cuda":
        return {}
    found = shutil.which(tool)
    if found is None:
        return {"unknown": f"no {tool} on the path"}
    fields = [*_ASKED.values(), _REASONS]
    command = [found, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", f"--id={devices.first_uuid()}"]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return {"unknown": f"{tool}: {error}"}
    return parse(done.stdout)


def parse(line: str) -> Reading:
    """One line of the tool's answer, as asked above."""
    *figures, reasons = (word.strip() for word in line.strip().split(","))
    try:
        held = int(reasons, 16)
        reading: Reading = {n: float(x) for n, x in zip(_ASKED, figures, strict=True)}
    except ValueError:  # "[N/A]", where a GPU has no such sensor
        return {"unknown": f"expected {len(_ASKED)} numbers and a hexadecimal one, got {line.strip()!r}"}  # fmt: skip
    return reading | {"held_down": ", ".join(word for bit, word in REASONS.items() if held & bit)}
