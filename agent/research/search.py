"""What to try next: improve the incumbent, explore away from it, or combine gains that were won apart.

Beside the incumbent there is the archive (agent/research/archive.py): near misses, and what other runs kept and this incumbent lacks.

    combine   a quarter of the proposals, while there is a merge that this run has not tried: of two members of the archive that touch the
              same op (or the model), or of one that another run kept. Needs no language model.
    explore   a share of the rest: 0.15 after a keep, rising as 0.15 + 0.45 (1 - 2^(-d / 10)) with the d experiments since, to 0.60. Goes
              where little was tried: an op is drawn with weight sqrt(share of the step) / (1 + tries).
    improve   the others: an op is drawn with weight share / sqrt(1 + tries). One in three starts from a member of the archive, drawn with
              weight 1 / ((1 + rank by gain) (1 + times used)), the others from the incumbent.

Everything is drawn from the seed and the ledger, so that a resumed run plans what the killed one would have planned.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from agent.figures import bits_in_short, count, time_in_short
from agent.git import Repository
from agent.records import CRASH, DROP, KEEP, LOST, REFUSE, Past
from agent.research import archive
from agent.research.archive import gain, is_kernel

IMPROVE, EXPLORE, COMBINE = "improve", "explore", "combine"

COMBINE_SHARE = 0.25
EXPLORE_LEAST, EXPLORE_MOST, HALF_WAY = 0.15, 0.60, 10  # experiments without a keep
PARENT_SHARE = 1 / 3  # of improvements that start from the archive
MERGES = 6  # tried for one plan; each costs about 50 ms of git
LEAST_SHARE = 0.02  # of the step, for an op that the profile does not show
MODEL_SHARE = 0.5  # what the model counts for among the ops, where both may change


@dataclass(frozen=True)
class Plan:
    """What the next proposal is to be. `files` go over the incumbent's: as the start of the draft, or with COMBINE as the whole proposal."""

    kind: str
    op: str | None  # None: the model, or several ops
    parents: tuple[int, ...] = ()  # ids of the experiments that `files` come from
    files: Mapping[str, str | None] = field(default_factory=dict)
    why: str = ""

    @property
    def notes(self) -> dict[str, Any]:
        """What a proposal that follows the plan remembers of it."""
        return {"kind": self.kind, "op": self.op, "parents": list(self.parents)}


def plan(
    history: Sequence[Past],
    run: str,
    incumbent: str,
    ops: Sequence[str],
    seed: int,
    repository: Repository,
    *,
    target: str,
    op: str | None = None,
    shares: Mapping[str, float] | None = None,
) -> Plan:
    """The next plan of a run. `shares`: an op's part of the training step, 0 to 1, where it was measured."""
    ours = [past for past in history if past.run == run]
    rng = random.Random(f"{seed} {run} {len(ours)}")
    members = archive.members(history, run, incumbent, repository, target, op)
    if rng.random() < COMBINE_SHARE:
        found = _combination(members, ours, incumbent, repository, rng)
        if found is not None:
            return found
    dry = since_keep(ours)
    kind = EXPLORE if rng.random() < explore_share(dry) else IMPROVE
    tries = _tries(ours)
    # with --op only its kernel may be edited, whatever the target
    chosen = _choose_op(kind, target if op is None else "kernels", ops, shares or {}, tries, rng)
    reasons = [_about(chosen, shares or {}, tries)]
    if kind == EXPLORE:
        reasons.append(f"{dry} experiments since the last keep: something unlike what was tried")
    elif rng.random() < PARENT_SHARE:
        start = _start([m for m in members if _fits(m, chosen)], ours, incumbent, repository, rng)
        if start is not None:
            past, files = start
            return Plan(kind, chosen, (past.id,), files, "; ".join([*reasons, f"goes on from {_called(past)}"]))  # fmt: skip
    return Plan(kind, chosen, why="; ".join(reasons))


def explore_share(dry: int) -> float:
    """The part of the proposals that explores after `dry` experiments without a keep."""
    return EXPLORE_LEAST + (EXPLORE_MOST - EXPLORE_LEAST) * (1 - 2 ** (-dry / HALF_WAY))


def since_keep(ours: Sequence[Past]) -> int:
    """How many experiments were judged since the last keep."""
    dry = 0
    for past in reversed(ours):
        if past.outcome.status == KEEP:
            break
        dry += past.outcome.status in (DROP, REFUSE, CRASH)
    return dry


# ---- combine ----


def _combination(
    members: Sequence[Past],
    ours: Sequence[Past],
    incumbent: str,
    repository: Repository,
    rng: random.Random,
) -> Plan | None:
    """A combination that merges and that this run has not tried, of the most promising ones and some that are drawn."""
    tried = {
        _parents(past)
        for past in ours
        if past.notes.get("kind") == COMBINE and past.outcome.status != LOST
    }
    groups: list[tuple[Past, ...]] = [(past,) for past in members if past.outcome.status == KEEP]
    groups += [pair for pair in combinations(members, 2) if _meet(*pair)]
    fresh = [group for group in groups if frozenset(p.id for p in group) not in tried]
    fresh.sort(key=lambda group: -sum(map(gain, group)))
    # Half are drawn from the others: the best may be such as never merge.
    best, others = fresh[: MERGES // 2], fresh[MERGES // 2 :]
    for group in [*best, *rng.sample(others, min(len(others), MERGES - len(best)))]:
        if files := archive.merged(group, incumbent, repository):
            named = " with ".join(_called(past) for past in group)
            found = {op for past in group for op in past.ops}
            op = found.pop() if len(found) == 1 else None
            why = f"{named}, brought to this incumbent by a merge"
            return Plan(COMBINE, op, tuple(p.id for p in group), files, why)
    return None


def _meet(one: Past, other: Past) -> bool:
    """Whether two changes can win together what each could not show alone: the same op, or both of the model."""
    if is_kernel(one) and is_kernel(other):
        return bool({*one.ops} & {*other.ops})
    return not is_kernel(one) and not is_kernel(other)


def _parents(past: Past) -> frozenset[int]:
    return frozenset(past.notes.get("parents") or ())


# ---- improve and explore ----


def _start(
    members: Sequence[Past],
    ours: Sequence[Past],
    incumbent: str,
    repository: Repository,
    rng: random.Random,
) -> tuple[Past, dict[str, str | None]] | None:
    """A member of the archive to go on from, and its files merged into the incumbent; None if none merges."""
    uses = Counter(parent for past in ours for parent in _parents(past))
    left = {rank: 1 / ((1 + rank) * (1 + uses[p.id])) for rank, p in enumerate(members)}
    for _ in range(min(MERGES, len(left))):
        (rank,) = rng.choices([*left], [*left.values()])
        if files := archive.merged([members[rank]], incumbent, repository):
            return members[rank], files
        del left[rank]
    return None


def _fits(past: Past, op: str | None) -> bool:
    return op in past.ops if op is not None else not is_kernel(past)


def _tries(ours: Iterable[Past]) -> Counter[str | None]:
    """How often this run has worked on each op, and on the model (None)."""
    tries: Counter[str | None] = Counter()
    for past in ours:
        if past.paths:
            tries.update(past.ops)
            tries[None] += not is_kernel(past)
        elif "op" in past.notes:
            tries[past.notes["op"]] += 1
    return tries


def _choose_op(
    kind: str,
    target: str,
    ops: Sequence[str],
    shares: Mapping[str, float],
    tries: Mapping[str | None, int],
    rng: random.Random,
) -> str | None:
    choices: list[str | None] = [] if target == "model" else [*ops]
    if target != "kernels" or not choices:
        choices.append(None)
    unknown = 0.0 if shares else (1 - MODEL_SHARE) / max(1, len(ops))
    weights = []
    for op in choices:
        share = MODEL_SHARE if op is None else max(shares.get(op, unknown), LEAST_SHARE)
        tried = 1 + tries.get(op, 0)
        weights.append(math.sqrt(share) / tried if kind == EXPLORE else share / math.sqrt(tried))
    return rng.choices(choices, weights)[0]


# ---- in words ----


def _about(op: str | None, shares: Mapping[str, float], tries: Mapping[str | None, int]) -> str:
    takes = f" takes {shares[op]:.0%} of the step and" if op and op in shares else ""
    times = tries.get(op, 0)
    return f"{op or 'the model'}{takes} was tried {count(times, 'time')} in this run"


def _called(past: Past) -> str:
    """An experiment by number and run, with its figure; its own words are left out, since they are the proposer's."""
    figure = time_in_short(past.outcome) if is_kernel(past) else bits_in_short(past.outcome)
    kind = "kept" if past.outcome.status == KEEP else "a near miss"
    return f"experiment {past.number} of run {past.run} ({kind}, {figure})"
