"""What a kernel is to reach: on a CPU so many times the speed of a peer that runs beside it, on one H100 so many milliseconds a call in bfloat16.

The H100's peers are the best public ones. Their figures are medians of `triton.testing.do_bench` (CUDA events around each call, L2 flushed
before it), torch 2.11, Triton 3.6; so a goal is held against a figure of that protocol (bench/runner/events.py) and not against the judge's
clock. `floor` is the least traffic or arithmetic at this GPU's measured ceilings: 3.02 TB/s copied, 799 TFLOP/s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bench.contracts import Case, Input, contract

EAGER, COMPILED = "torch eager", "torch.compile"
FORWARD, BACKWARD, BOTH = "forward", "backward", "both"
PASSES = (FORWARD, BACKWARD, BOTH)


@dataclass(frozen=True)
class Goal:
    """What a call of an op in bfloat16 is to take on an H100, beside the best public figure (`peer_ms`, by `peer`) and the least possible."""

    op: str
    case: Case
    passes: str  # FORWARD, BACKWARD or BOTH
    peer: str
    peer_ms: float
    floor_ms: float
    goal_ms: float


_NORM = Case({"x": Input((131072, 512), "bfloat16")})
_W = Input((8192, 512), "bfloat16", scale=4 / math.sqrt(512))
_TARGETS = Input((65536,), "int64", below=8192)
_LOSS = Case(
    {"h": Input((65536, 512), "bfloat16"), "W": _W, "targets": _TARGETS}, {"softcap": 15.0}
)


def _polar(*shape: int) -> Case:
    return Case({"G": Input(shape, "bfloat16")})


def _attention(window: int | None) -> Case:
    q = Input((16, 4, 2048, 128), "bfloat16", layout="transposed")
    return Case({"q": q, "k": q, "v": q}, {"causal": True, "window": window})


GOALS = (
    Goal("rms_norm", _NORM, FORWARD, "torch.compile, quack", 0.0940, 0.089, 0.092),
    Goal("rms_norm", _NORM, BACKWARD, "torch eager", 0.273, 0.133, 0.150),
    Goal("newton_schulz", _polar(32, 512, 512), FORWARD, "torch.compile", 0.473, 0.11, 0.24),
    Goal("newton_schulz", _polar(8, 2048, 512), FORWARD, "dion", 0.788, 0.06, 0.20),
    Goal("newton_schulz", _polar(8, 512, 2048), FORWARD, "gram, torch", 0.441, 0.06, 0.20),
    Goal("newton_schulz", _polar(48, 768, 768), FORWARD, "dion", 1.509, 0.55, 1.0),
    Goal("newton_schulz", _polar(12, 3072, 768), FORWARD, "gram, torch", 1.147, 0.26, 0.7),
    Goal("newton_schulz", _polar(16, 1024, 4096), FORWARD, "gram, torch", 2.848, 0.82, 1.9),
    Goal("attention", _attention(None), FORWARD, "fa4", 0.1355, 0.086, 0.135),
    Goal("attention", _attention(None), BACKWARD, "fa4", 0.416, 0.215, 0.41),
    Goal("attention", _attention(1024), FORWARD, "fa4", 0.119, 0.065, 0.115),
    Goal("attention", _attention(1024), BACKWARD, "fa4", 0.347, 0.16, 0.33),
    Goal("attention", _attention(256), FORWARD, "flex", 0.114, 0.02, 0.06),
    Goal("attention", _attention(256), BACKWARD, "fa4", 0.248, 0.05, 0.16),
    Goal("linear_cross_entropy", _LOSS, BOTH, "torch.compile", 4.34, 2.06, 3.0),
    Goal("relu2_mlp", replace(contract("relu2_mlp").trial["cuda"][0], calls=1), BOTH, "torch.compile", 3.33, 2.06, 2.7),
)  # fmt: skip


@dataclass(frozen=True)
class Lead:
    """On a CPU an op is to be `at_least` so many times as fast as the fastest of `peers`, forward and, where it is trained, backward."""

    peers: tuple[str, ...]
    at_least: float


LEADS = {
    "rms_norm": Lead((COMPILED,), 1.5),
    "add_rms_norm": Lead((COMPILED,), 1.5),
    "qk_norm_rope": Lead((COMPILED,), 1.5),
    "relu2_mlp": Lead((COMPILED,), 1.1),
    "linear_cross_entropy": Lead((COMPILED,), 3.0),
    "adamw": Lead(("fused",), 1.0),
}
# Attention over a longer context than the trial's, without a window and with one of an eighth.
LONG = Input((4, 3, 1024, 64), layout="transposed")


def lead(op: str, case: Case) -> Lead | None:
    """The goal of an op in this case on a CPU; None if there is none."""
    if op == "newton_schulz":
        M, N = case.inputs["G"].shape[-2:]
        return Lead((EAGER, COMPILED), 1.2 if M == N else 2.0)
    if op == "attention":
        return Lead(("sdpa",), 1.0 if case.scalars["window"] is None else 4.0)
    return LEADS.get(op)


def cases(op: str, device: str) -> list[Case]:
    """What is timed of an op: the shapes of goals and those of the trial, each once."""
    wanted = [goal.case for goal in GOALS if goal.op == op and device == "cuda"]
    if op == "attention" and device == "cpu":
        qkv = dict.fromkeys(("q", "k", "v"), LONG)
        wanted = [Case(qkv, {"causal": True, "window": window}) for window in (128, None)]
    found = {case.label(): case for case in (*wanted, *contract(op).trial[device])}
    return list(found.values())
