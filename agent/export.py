"""The ledger for other tools: results.tsv as autoresearch writes it, with more columns after its five; JSON with everything; and a
recording that agent/proposers/replay.py proposes again.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from agent.git import GitError, Repository
from agent.ledger import Ledger
from agent.records import Past

COLUMNS = ("commit", "val_bpb", "memory_gb", "status", "description")
FIGURES = (
    "speed", "speed_low", "speed_high", "blocks", "bpb_change", "bpb_low", "bpb_high", "rate", "rate_low", "rate_high", "pairs",
)  # fmt: skip
MORE = ("run", "number", "proposer", *FIGURES, "cost_usd", "device_seconds", "reason")


def tsv(ledger: Ledger, run: str | None = None) -> str:
    """One line per experiment. A figure that was not measured is 0.000000 or 0.0 in autoresearch's columns, and empty in ours."""
    lines = ["\t".join((*COLUMNS, *MORE))]
    lines += ["\t".join(_cells(experiment)) for experiment in ledger.history(run)]
    return "\n".join(lines) + "\n"


def _cells(experiment: Past) -> list[str]:
    outcome = experiment.outcome
    bpb, memory = outcome.val_bpb or 0.0, (outcome.peak_memory_mb or 0.0) / 1024
    ours = (
        experiment.run,
        experiment.number,
        experiment.proposer,
        *(getattr(outcome, name) for name in FIGURES),
        experiment.cost_usd,
    )
    cells = [
        experiment.commit[:7],
        f"{bpb:.6f}",
        f"{memory:.1f}",
        outcome.status,
        experiment.hypothesis,
    ]
    cells += [
        "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
        for value in ours
    ]
    cells += [f"{outcome.device_seconds:.1f}", outcome.reason]
    # A tab or a newline inside a cell would break the table.
    return [" ".join(cell.split()) for cell in cells]


def as_json(ledger: Ledger, run: str | None = None) -> str:
    """Runs with experiments, gates, evidence and patches, and what was run or timed again."""
    runs: list[dict[str, Any]] = []
    for each in ledger.runs():
        if run in (None, each.id):
            experiments = [asdict(experiment) for experiment in ledger.experiments(each.id)]
            again = ledger.measured.confirmations(each.id, each.incumbent)
            more = {
                "spent": ledger.accounts.spent(each.id),
                "pairs": [asdict(pair) for pair in ledger.measured.pairs(each.id)],
                "confirmations": [asdict(found) for found in again],
                "experiments": experiments,
            }
            runs.append(asdict(each) | more)
    return json.dumps({"runs": runs}, indent=2)


def recording(ledger: Ledger, repository: Repository, run: str) -> str:
    """JSON lines, one per experiment of the run, with the whole text of each file that it proposed. What was lost in flight is left out.

    Raises GitError if git has deleted a commit that nothing points to, as it may after two weeks.
    """
    ended = [past for past in ledger.history(run) if past.outcome.judged]
    return "".join(json.dumps(_line(past, repository)) + "\n" for past in ended)


def _line(past: Past, repository: Repository) -> dict[str, Any]:
    row = {
        "hypothesis": past.hypothesis,
        "expected": past.expected,
        "proposer": past.proposer,
        "model": past.model,
    }
    if past.commit == past.parent:
        reason = past.outcome.reason.removeprefix("no proposal: ")
        return row | {"gave_up": reason or "no reason given"}
    try:
        changes = repository.changes(past.parent, past.commit)
    except GitError as error:
        raise GitError(
            f"experiment {past.number} of run {past.run}: {error}; git may have deleted a commit that nothing points to: "
            "its patch is in export --json"
        ) from None
    paths = past.paths or tuple(change.path for change in changes)
    if not paths:  # a repair had taken everything back
        return row | {"gave_up": past.outcome.reason or "no reason given"}
    present = set(repository.files(past.commit, paths))
    texts = {p: repository.read(past.commit, p) if p in present else None for p in paths}
    return row | {"files": texts}
