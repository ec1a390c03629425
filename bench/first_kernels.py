"""What runs in a runner on this machine's device: our own kernel of an op, and the one that torch.compile makes of it. Really tried.

Each begins with nothing compiled, as a trial of a new tree does: a compiler, its headers, CUDA and the sandbox have to go together.
"""

from __future__ import annotations

from bench import ROOT
from bench.contracts import Case, Input, contract
from bench.judge import Judge, Refused, error_line

OP = "nesterov"  # no gradient, which would be a second program to compile
LIMIT_S = 300.0
COMPILED = "torch.compile"


def why_not(kind: str, device: str) -> str:
    """Why COMPILED, or an implementation of ours, does not run here, or ""."""
    impl, mode = ("torch", "inductor") if kind == COMPILED else (kind, "eager")
    asked = contract(OP)
    case = Case({"momentum": Input((64, 64)), "grad": Input((64, 64))}, {"beta": 0.95})
    try:
        with Judge(ROOT, device=device) as judge:
            judge.ask("load", op=OP, tree=str(judge.tree))
            call = asked.described(case)
            judge.ask("warm", timeout=LIMIT_S, op=OP, impl=impl, mode=mode, call=call)
    except Refused as refused:
        return error_line(refused)
    return ""
