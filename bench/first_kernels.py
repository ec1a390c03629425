"""What runs in a runner on this machine's device: our own kernel of an op, and the one that torch.compile makes of it. Really tried.

Each begins with nothing compiled, as a trial of a new tree does: a compiler, its headers, CUDA and the sandbox have to go together.
"""

from __future__ import annotations

from bench import ROOT
from bench.contracts import Case, Input, contract
from bench.implementations import OURS
from bench.judge import Judge, Refused, error_line

OP = "rms_norm"
LIMIT_S = 300.0


def why_not(device: str) -> dict[str, str]:
    """For each kind of kernel why it does not run here, or ""."""
    kinds = {OURS[device][0]: (OURS[device][0], "eager"), "torch.compile": ("torch", "inductor")}
    return {kind: _why_not(impl, mode, device) for kind, (impl, mode) in kinds.items()}


def _why_not(impl: str, mode: str, device: str) -> str:
    asked, case = contract(OP), Case({"x": Input((64, 64), "float32")})
    try:
        with Judge(ROOT, device=device) as judge:
            judge.ask("load", op=OP, tree=str(judge.tree))
            call = asked.described(case)
            judge.ask("warm", timeout=LIMIT_S, op=OP, impl=impl, mode=mode, call=call)
    except Refused as refused:
        return error_line(refused)
    return ""
