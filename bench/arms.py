"""Who is measured beside whom: an op's own implementations, plain torch, and what others have written, each under a name.

What others have written stands in `LIBRARIES` of a kernel file or in bench/peers.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench import ROOT as ROOT
from bench.contracts import Case, contract
from bench.examination import Examination
from bench.implementations import OURS, names_in
from bench.judge import Judge, Refused, error_line
from bench.peers import PEERS
from bench.timing import Arm

FUSED = "fused"  # the implementation that is a single call of torch's, where an op has one
# Run on CUDA tensors, where they are installed; each does a part of an op.
LIBRARIES = ("cudnn", "flex", "fa4")


def arms(op: str, device: str, *, compiled: bool) -> list[Arm]:
    """Plain torch first, then what the device runs of the op's file, and its libraries. `compiled`: torch.compile too, which takes 10 s.

    Raises ValueError where the names in the op's file cannot be read.
    """
    found = [Arm("torch eager", ROOT, "torch")]
    if compiled:
        found.append(Arm("torch.compile", ROOT, "torch", "inductor"))
    written = names_in(ROOT / "kernels" / f"{op}.py")
    return found + [Arm(name, ROOT, name) for name in (FUSED, *OURS[device], *LIBRARIES) if name in written]  # fmt: skip


def peers(op: str, device: str, folder: Path) -> tuple[list[Arm], dict[str, str]]:
    """What others have written for an op, as trees in `folder`; and for each that is left out, by name, why."""
    found, absent = [], {}
    for peer in (peer for peer in PEERS if peer.op == op):
        reason = peer.why_not()
        if device != peer.device:
            reason = f"runs on {peer.device}, and what is measured is {device}"
        if reason:
            absent[peer.name] = reason
        else:
            found.append(Arm(peer.name, peer.tree(folder)))
    return found, absent


def why_not(op: str, case: Case, arm: Arm, device: str) -> str:
    """Why a library or a peer cannot run this case here, or computes it wrongly; "" where it is right, and for what is ours.

    To be asked before it is timed: a wrong answer in the audit (bench/audit.py) would refuse the figures of all arms.
    """
    if is_ours(arm):
        return ""
    if arm.impl in LIBRARIES and device != "cuda":
        return f"{arm.impl} runs on CUDA tensors, and here is no GPU"
    with Judge(arm.tree, device=device) as judge:
        try:
            judge.ask("load", op=op, tree=str(judge.tree))
            examination = Examination(contract(op), judge, 0, arm.impl)
            examination.right(examination.lay(one_row(case)))
        except Refused as refused:
            return error_line(refused)
    return ""


def is_ours(arm: Arm) -> bool:
    """Whether it is one of this tree's own implementations, plain torch included, and nothing that others have written."""
    return arm.tree == ROOT and arm.impl not in LIBRARIES


def one_row(case: Case) -> Case:
    """The case with a single row (or sequence, or matrix) in every tensor that has as many as the first: as quick as it can be."""
    rows = next(iter(case.inputs.values())).shape[0]
    inputs = {
        name: replace(i, shape=(1, *i.shape[1:])) if i.shape[:1] == (rows,) else i
        for name, i in case.inputs.items()
    }
    return replace(case, inputs=inputs)
