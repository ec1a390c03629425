"""`python -m agent aa`: how often this lab keeps what changes nothing, counted over the placebos of a run.

A placebo goes the way of every proposal, with one difference: where the microbench would refuse it as not faster, this is recorded and
the placebo goes on, so that each one reaches trial and verdict (standard.py). It is kept if the verdict keeps it and the microbench
would have passed it, as a proposal would be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from agent import gains
from agent.figures import share
from agent.records import CRASH, KEEP, LOST, OPEN, REFUSE, Experiment


def rates(experiments: Sequence[Experiment]) -> list[str]:
    """The false-keep rate of a placebo run, and the timer's own, with their 95 % intervals."""
    return [*_kept(experiments), *_timed(experiments), *_stopped(experiments)]


def _kept(experiments: Sequence[Experiment]) -> Iterator[str]:
    from bench.interval import rate

    judged = [e for e in experiments if e.outcome.val_bpb is not None]
    if not judged:
        yield "false keeps: not known; no placebo has reached its verdict yet"
        return
    kept = sum(e.outcome.status == KEEP for e in judged)
    found = rate(kept, len(judged))
    pairs = sum(e.outcome.pairs or 0 for e in judged) / len(judged)
    shown = share(found.value, found.low, found.high)
    yield f"false keeps: {kept} of {found.runs} placebos that reached their verdict, {shown}; {pairs:.2f} pairs of trials each"


def _timed(experiments: Sequence[Experiment]) -> Iterator[str]:
    from bench.interval import rate

    found = [c for e in experiments for c in gains.comparisons(e.gates).values()]
    if not found:
        return
    for word, wrong in (
        ("faster", sum(gains.faster(c) for c in found)),
        ("slower", sum(c["low"] > 1 for c in found)),
    ):
        counted = rate(wrong, len(found))
        shown = share(counted.value, counted.low, counted.high)
        yield f"the timer called {wrong} of {counted.runs} ops of placebos {word}, {shown}"


def _stopped(experiments: Sequence[Experiment]) -> Iterator[str]:
    """Placebos that never came to a verdict: a gate that refuses one refuses an honest change."""
    for each in experiments:
        if each.outcome.status in (REFUSE, CRASH) and each.outcome.val_bpb is None:
            yield f"not judged: {each.number} {each.outcome.status}: {each.outcome.reason[:150]}"
    counts = Counter(each.outcome.status for each in experiments)
    if unfinished := sum(counts[status] for status in (LOST, *OPEN)):
        yield f"not judged: {unfinished} without a verdict: the run was stopped, or the machine failed"
