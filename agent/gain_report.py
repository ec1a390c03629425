"""The gain of a run in lines: what the champion showed on the test split, what its keeps had claimed, and the difference, the winner's curse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent import claims, gains
from agent.claims import Again
from agent.figures import bits, count, pairs, ratio
from agent.ledger import Ledger
from agent.records import KEEP, Confirmation, Experiment, Run
from bench.interval import Figure, minus

_COLUMN = 9


def lines(ledger: Ledger, run: Run, experiments: Sequence[Experiment]) -> Iterator[str]:
    """Every figure with its interval (95 %; of times of ops, the timer's own) and the number of runs behind it."""
    keeps = claims.standing(experiments)
    if not keeps:
        kept = any(e.outcome.status == KEEP for e in experiments)
        yield f"gain: none; {'all that was kept was taken out again' if kept else 'nothing was kept'}"
        return
    champion = claims.of_champion(ledger, run)
    if champion is None:
        yield f"gain: not known; the champion was not run again on the test split (to do so: python -m agent report --rerun {run.id})"
        yield from _claimed(keeps)
    else:
        yield "gain, champion against start, on documents and seeds that chose nothing:"
        yield from _trained(champion, keeps)
    for confirmed in ledger.measured.confirmations(run.id, run.incumbent):
        yield from _timed(confirmed, keeps)
    for earlier in claims.again(ledger, run):
        if champion is None or earlier != champion:
            shown = f"{_bits(earlier.bpb)} BPB, {_ratio(earlier.rate)} tokens/s"
            yield f"after {count(earlier.keeps, 'keep')} it was {shown}, {pairs(earlier.bpb.runs)}"


def _trained(champion: Again, keeps: list[Experiment]) -> Iterator[str]:
    said = f"{champion.before_bpb:.4f} -> {champion.after_bpb:.4f}: {_bits(champion.bpb)}, {pairs(champion.bpb.runs)} of trials"
    yield f"{'test_bpb':{_COLUMN}}{said}"
    claimed = claims.bpb(keeps)
    yield _curse(keeps, _bits(claimed), pairs(claimed.runs), _bits(minus(champion.bpb, claimed)))
    said = f"{champion.before_rate:,.0f} -> {champion.after_rate:,.0f}: {_ratio(champion.rate)}, {pairs(champion.rate.runs)} of trials"
    yield f"{'tokens/s':{_COLUMN}}{said}"
    claimed = claims.rate(keeps)
    yield _curse(keeps, _ratio(claimed), pairs(claimed.runs), _ratio(minus(champion.rate, claimed)))  # fmt: skip


def _timed(confirmed: Confirmation, keeps: list[Experiment]) -> Iterator[str]:
    word = "confirmed" if confirmed.faster else "not confirmed"
    shown = ratio(confirmed.ratio, confirmed.low, confirmed.high)
    yield f"{word}: {confirmed.op} takes {shown} the time of the start, {confirmed.blocks} blocks of calls, fresh inputs"
    timed = [keep for keep in keeps if confirmed.op in gains.comparisons(keep.gates)]
    claimed, found = claims.op_time(timed, confirmed.op), claims.confirmed(confirmed)
    yield _curse(timed, _ratio(claimed), f"{claimed.runs} blocks", _ratio(minus(found, claimed)))


def _claimed(keeps: list[Experiment]) -> Iterator[str]:
    claimed, rate = claims.bpb(keeps), claims.rate(keeps)
    yield f"{'':{_COLUMN}}claimed by {_keeps(keeps)}, too good by being chosen: {_bits(claimed)} BPB, {_ratio(rate)} tokens/s, {pairs(claimed.runs)}"


def _curse(keeps: list[Experiment], claimed: str, behind: str, gap: str) -> str:
    return f"{'':{_COLUMN}}{_keeps(keeps)} claimed {claimed}, {behind}; winner's curse {gap}"


def _keeps(keeps: list[Experiment]) -> str:
    return count(len(keeps), "keep")


def _bits(figure: Figure) -> str:
    return bits(figure.value, figure.low, figure.high)


def _ratio(logs: Figure) -> str:
    found = logs.exp()
    return ratio(found.value, found.low, found.high)
