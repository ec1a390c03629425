"""What the keeps of a run claimed together, and what the champion showed when it was run again: the difference is the winner's curse.

A claim holds truth and luck, and a keep is chosen for both; so the sum of the claims is too good, and the excess says how far the keeps
of this campaign can be believed. The claims of changes that `prune` has taken out are left out, and so are those of their removals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from agent import gains, standard
from agent.ledger import Ledger
from agent.records import KEEP, Confirmation, Experiment, Pair, Past, Run
from bench.interval import Figure, Spread, mean, total

Kept = TypeVar("Kept", bound=Past)


@dataclass(frozen=True)
class Again:
    """Start and champion, from the pairs of one incumbent that one judge scored.

    `bpb` is the change of BPB, `rate` the logarithm of the ratio of tokens/s.
    """

    incumbent: str
    keeps: int
    before_bpb: float
    after_bpb: float
    before_rate: float
    after_rate: float
    bpb: Figure
    rate: Figure


def again(ledger: Ledger, run: Run) -> list[Again]:
    """Every re-run of a run, oldest first; their spread is pooled, since each has only a few pairs."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in ledger.measured.pairs(run.id):
        groups.setdefault((pair.incumbent, pair.judge), []).append(pair)
    bpb = [[p.after_bpb - p.before_bpb for p in group] for group in groups.values()]
    rate = [[math.log(p.after_rate / p.before_rate) for p in group] for group in groups.values()]
    bpb_spread, rate_spread = Spread.pooled(bpb), Spread.pooled(rate)
    return [
        Again(
            incumbent, pairs[-1].keeps,
            fmean(p.before_bpb for p in pairs), fmean(p.after_bpb for p in pairs),
            fmean(p.before_rate for p in pairs), fmean(p.after_rate for p in pairs),
            mean(bpbs, bpb_spread), mean(rates, rate_spread),
        )
        for ((incumbent, _), pairs), bpbs, rates in zip(groups.items(), bpb, rate, strict=True)
    ]  # fmt: skip


def of_champion(ledger: Ledger, run: Run) -> Again | None:
    """The latest re-run of the current incumbent; None if it was not run again."""
    return next((e for e in reversed(again(ledger, run)) if e.incumbent == run.incumbent), None)


def standing(experiments: Sequence[Kept]) -> list[Kept]:
    """The keeps that are in the champion: not those taken out again, and no removals."""
    kept = [e for e in experiments if e.outcome.status == KEEP]
    gone = {e.notes["without"] for e in kept if e.proposer == standard.PRUNE}
    return [e for e in kept if e.proposer != standard.PRUNE and e.number not in gone]


def bpb(keeps: Iterable[Experiment]) -> Figure:
    """The change of BPB that keeps claim together."""
    outcomes = [e.outcome for e in keeps if e.outcome.bpb_change is not None]
    return total([_figure(o.bpb_change, o.bpb_low, o.bpb_high, o.pairs) for o in outcomes])


def rate(keeps: Iterable[Experiment]) -> Figure:
    """The logarithm of the ratio of tokens/s that keeps claim together."""
    outcomes = [e.outcome for e in keeps if e.outcome.rate is not None]
    return total([_logs(o.rate, o.rate_low, o.rate_high, o.pairs) for o in outcomes])


def op_time(keeps: Iterable[Experiment], op: str) -> Figure:
    """The logarithm of the ratio of times of an op that keeps claim together."""
    timed = (gains.comparisons(e.gates) for e in keeps)
    return total([gains.log_ratio(found[op]) for found in timed if op in found])


def confirmed(found: Confirmation) -> Figure:
    """The logarithm of the ratio of times of an op of the champion, timed once more."""
    return _logs(found.ratio, found.low, found.high, found.blocks)


def _figure(value: float | None, low: float | None, high: float | None, runs: int | None) -> Figure:
    """A row of the ledger as a figure; unknown bounds are infinite."""
    return Figure(
        value or 0.0, -math.inf if low is None else low, math.inf if high is None else high, runs or 0
    )  # fmt: skip


def _logs(value: float | None, low: float | None, high: float | None, runs: int | None) -> Figure:
    value, low, high = (None if x is None else math.log(x) for x in (value, low, high))
    return _figure(value, low, high, runs)
