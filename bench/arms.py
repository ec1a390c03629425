"""Who is measured beside whom: an op's own implementations, torch, and by name what others have written (`LIBRARIES` of a kernel file; bench/peers.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.contracts import Case, contract
from bench.examination import Examination
from bench.implementations import OURS
from bench.judge import Judge, Refused, last_line
from bench.peers import PEERS
from bench.timing import Arm

ROOT = Path(__file__).resolve().parent.parent
FUSED = "fused"  # a single call of torch's, of an op that has one
LIBRARIES = ("cudnn", "flex", "fa4")  # of CUDA tensors, where installed; each does a part of an op


def arms(op: str, device: str, *, compiled: bool) -> list[Arm]:
    """Plain torch first, then what the device runs of the op's file, and its libraries. `compiled`: torch.compile too, which takes 10 s."""
    found = [Arm("torch eager", ROOT, "torch")]
    if compiled:
        found.append(Arm("torch.compile", ROOT, "torch", "inductor"))
    written = (ROOT / "kernels" / f"{op}.py").read_text()
    named = (FUSED, *OURS[device], *LIBRARIES)
    return found + [Arm(name, ROOT, name) for name in named if f'"{name}":' in written]


def peers(op: str, device: str, folder: Path) -> tuple[list[Arm], dict[str, str]]:
    """What others have written of an op, as trees in `folder`; and by name, why one is not among them."""
    found, absent = [], {}
    for peer in (peer for peer in PEERS if peer.op == op):
        reason = peer.missing()
        if device != peer.device:
            reason = f"runs on {peer.device}, and what is measured is {device}"
        if reason:
            absent[peer.name] = reason
        else:
            found.append(Arm(peer.name, peer.tree(folder)))
    return found, absent


def missing(op: str, case: Case, arm: Arm, device: str) -> str:
    """Why what others have written does not do a case here, in its own words, or does it wrong, in the comparer's; "" where it is right, and of ours.

    Audited beside ours (bench/audit.py), one that is wrong would take the figures of all with it.
    """
    if arm.impl not in LIBRARIES and arm.tree == ROOT:
        return ""
    if arm.impl in LIBRARIES and device != "cuda":
        return f"{arm.impl} runs on CUDA tensors, and here is no GPU"
    with Judge(arm.tree, device=device) as judge:
        try:
            judge.ask("load", op=op, tree=str(judge.tree))
            examination = Examination(contract(op), judge, 0)
            laid = examination.lay(one_row(case))
            examination.verify(laid, examination.ask(laid, arm.impl), arm.impl)
        except Refused as refused:
            return last_line(refused)
    return ""


def one_row(case: Case) -> Case:
    """The case with one row, or one sequence, or one matrix, of each tensor that has as many of them as the first: as quick as it can be."""
    rows = next(iter(case.inputs.values())).shape[0]
    inputs = {
        name: replace(i, shape=(1, *i.shape[1:])) if i.shape[:1] == (rows,) else i
        for name, i in case.inputs.items()
    }
    return replace(case, inputs=inputs)
