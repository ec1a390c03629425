"""What the keeps of a night are worth together: of a hundred tries without effect, at 1 % false keeps each, one is kept.

This is reported, and nothing is taken back for it. Only a proposal that claims bits has evidence against chance in its trials
(bench/e_bh.py); a kernel claims time, which has the microbench's interval and is timed again at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent import standard
from agent.records import KEEP, Experiment
from bench import e_bh


def false_discoveries(experiments: Sequence[Experiment]) -> Iterator[str]:
    """The false-discovery rate at which each keep that claims bits stands, among all that came to a verdict; nothing if there is no such keep."""
    judged = [(e, found) for e in experiments if (found := _verdict(e))]
    rates = e_bh.rates([float(found["e_value"]) for _, found in judged])
    kept = [
        (e, q)
        for (e, _), q in zip(judged, rates, strict=True)
        # a tie (bench/verdict.py) claims no bits
        if e.outcome.status == KEEP and not e.outcome.reason.startswith("no worse, and ")
    ]
    if not kept:
        return
    stand = sum(q <= e_bh.FALSE_DISCOVERY for _, q in kept)
    limit = f"{e_bh.FALSE_DISCOVERY:.0%}".replace("%", " %")
    yield (
        f"the whole night (e-BH; reported, not enforced): {stand} of {len(kept)} keeps that claim bits stand "
        f"at a false-discovery rate of {limit}, among {len(judged)} verdicts"
    )
    at = ", ".join(f"{e.number} at {_percent(q)}" for e, q in kept)
    yield f"{'':9}experiment {at}"


def _verdict(experiment: Experiment) -> Mapping[str, Any] | None:
    """The evidence of its verdict, if that was about bits, and not about the removal of a keep."""
    if experiment.proposer == standard.PRUNE:
        return None
    said = [gate.evidence for gate in experiment.gates if gate.name == "verdict"]
    return said[-1] if said and "e_value" in said[-1] and "ratio" not in said[-1] else None


def _percent(rate: float) -> str:
    return "none" if rate >= 1 else f"{rate:.2%}".replace("%", " %")
