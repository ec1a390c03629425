"""One file through the static gate, by the rules of tests/lab_tree.py."""

from __future__ import annotations

from pathlib import Path

from lab_tree import Rules

from agent import gates
from agent.records import Candidate, Change
from bench.finding import Finding

ROOT = Path(__file__).resolve().parent.parent


def judged(path: str, text: str, complete: bool = True) -> Finding:
    change = Change(path, "100644", "100644", b"", text.encode())
    return gates.static(
        Candidate("all", ROOT, ROOT, (change,)), gates.Context(Rules(), complete=complete)
    )
