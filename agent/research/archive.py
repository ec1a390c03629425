"""What a proposal may start from beside the incumbent: near misses, and what other runs kept and this incumbent lacks.

A near miss was measured better than its incumbent, and not kept for want of certainty. Members are put on the incumbent by a three-way
merge; the caller passes over those that do not merge or bring nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from agent import merging, surface
from agent.git import GitError, Repository
from agent.records import DROP, KEEP, REFUSE, Past
from bench.plan import PLAUSIBLE

SIZE = 16  # members, the best ones
# Ranks the two kinds: a model better by 0.005 is as good as an op faster by a tenth.
BPB_WORTH = 20.0
QUARANTINED = (
    "quarantined"  # so begins the judge's reason for what waits for a person (bench/verdict.py)
)


def gain(past: Past) -> float:
    """What was measured: the logarithm of the speed-up for kernels, BPB times BPB_WORTH for the model; 0 where nothing was."""
    outcome = past.outcome
    if not is_kernel(past):
        return -BPB_WORTH * (outcome.bpb_change or 0.0)
    return -math.log(outcome.speed) if outcome.speed else 0.0


def is_kernel(past: Past) -> bool:
    return all(surface.is_kernel(path) for path in past.paths)


def is_near_miss(past: Past) -> bool:
    """Measured better than its incumbent and not kept, for want of certainty alone."""
    outcome = past.outcome
    judged = outcome.status == DROP or (
        outcome.status == REFUSE and past.refused_by == "microbench"
    )
    if not judged or not past.paths or gain(past) <= 0:
        return False
    if outcome.reason.startswith(QUARANTINED):
        return False
    change = outcome.bpb_change or 0.0
    before = (outcome.val_bpb or 0.0) - change
    return change <= 0 and (not before or -change / before <= PLAUSIBLE)


def members(
    history: Iterable[Past],
    run: str,
    incumbent: str,
    repository: Repository,
    target: str,
    op: str | None,
) -> list[Past]:
    """Near misses of all runs and keeps of others that the incumbent lacks (half of SIZE at most), within the surface, the best first."""
    allowed = [past for past in history if past.paths and _editable(past, target, op)]
    keeps = [past for past in allowed if past.outcome.status == KEEP and past.run != run]
    lacking = _lacking(keeps, incumbent, repository) if keeps else set()
    found = [past for past in keeps if past.commit in lacking]
    found += [past for past in allowed if is_near_miss(past)]
    unique = {past.commit: past for past in sorted(found, key=gain)}
    ranked = sorted(unique.values(), key=lambda past: (-gain(past), past.id))
    # Keeps that a person has squashed into HEAD look as if they were lacking: they get half of the places at most.
    kept = [past.id for past in ranked if past.outcome.status == KEEP]
    surplus = {*kept[SIZE // 2 :]}
    return [past for past in ranked if past.id not in surplus][:SIZE]


def _editable(past: Past, target: str, op: str | None) -> bool:
    return all(surface.editable(path, target, op) for path in past.paths)


def _lacking(keeps: Sequence[Past], incumbent: str, repository: Repository) -> set[str]:
    """Commits of the keeps that are no ancestors of the incumbent, without those that git has pruned since."""
    asked = "\n".join([*(past.commit for past in keeps), f"^{incumbent}"])
    return set(repository.text("rev-list", "--ignore-missing", "--stdin", stdin=asked.encode()).split())  # fmt: skip


def merged(
    chosen: Sequence[Past], incumbent: str, repository: Repository
) -> dict[str, str | None] | None:
    """The files that put all the chosen changes on the incumbent; None if they overlap or one brings nothing."""
    files: dict[str, str | None] = {}
    target = incumbent
    for place, past in enumerate(chosen):
        try:
            if place:
                target = repository.commit(incumbent, files, "lab: half of a combination\n")
            found = merging.onto(repository, past.parent, past.commit, target) or {}
        except (GitError, UnicodeDecodeError):  # pruned by git, or no text
            return None
        found = {
            path: text for path, text in found.items() if text != _there(repository, target, path)
        }
        if not found:
            return None
        files |= found
    return files


def _there(repository: Repository, commit: str, path: str) -> str | None:
    return repository.read(commit, path) if repository.files(commit, [path]) else None
