"""Keep, drop, or run again: a lower number is not an improvement, a lower number beyond the measured noise is.

Candidate and incumbent are paired by seed; noise, and how well it is known, comes with every decision (bench/noise.py, bench/paired.py).

    model    must win BPB: a group-sequential t-test. After pair n it is kept if chance alone shows such a gain in less than SPEND[n - 1] of cases,
             and dropped as futile if in more than FUTILE[n - 1]. SPEND sums to ALPHA, so that no more null proposals than that are kept,
             however large the noise is. The candidate's is taken to be the incumbent's; of noisier ones more are kept (results/verdict.md).
    kernels  claim to compute the same: they must have won time (the microbench's interval), and show that they lose less than MARGIN sigma of
             BPB. A gain beyond what their extra tokens explain is flagged: the kernel has to go through the correctness gate again.
    a tie    goes to less code: a model that is SHORTER and loses less than TIE sigma is kept. It claims no gain; of shorter models that
             change nothing, more than half are kept.

A keep that gains more than PLAUSIBLE is more often a hole in the judge than a discovery: it is set aside for a person, and never kept in silence.
Every figure in `evidence` is about the mean difference in BPB, candidate minus incumbent; `e_value` is for the account of the night (bench/e_bh.py).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.curve import explained
from bench.interval import Spread
from bench.paired import Paired
from bench.plan import MAX_PAIRS, PLAUSIBLE
from bench.speed import Comparison
from bench.trial_result import TrialResult

ALPHA = 0.01  # chance that a null proposal is kept
SPEND = (0.002, 0.003, 0.005)  # of ALPHA, after each pair
FUTILE = (0.25, 0.10)  # above these a gain of three sigma has become unlikely
# Chance, at each look, that a loss of MARGIN passes for none; 10 % over three looks (results/verdict.md).
NOT_WORSE = 0.05
# Losses, in sigmas of a paired difference.
MARGIN, TIE = 3.0, 1.0
# Words of code (agent/added_code.py) that count as less: some four statements. A temporary that is written in place saves two.
SHORTER = 20
# A candidate that claims less than this share of the incumbent's tokens/s: by its tokens the judge bounds what scoring may cost.
FEWER = 0.25


@dataclass(frozen=True)
class Verdict:
    """What is decided, why in words, and the figures behind it, as plain JSON."""

    decision: str  # keep, drop, again, quarantine
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)
    flag: str = ""  # what makes a keep suspicious: ask the correctness gate again before it counts


def decide(
    target: str,
    comparison: Comparison | None,
    incumbent: Sequence[TrialResult],
    candidate: Sequence[TrialResult],
    noise: Spread,
    *,
    words: int = 0,
) -> Verdict:
    """Decide on trials paired by position. `kernels` with a comparison claim time, all others BPB. `words`: how many of code the candidate adds."""
    failed = next((t for t in candidate if not t.ok), None)
    if failed is not None:
        said = f"the trial failed ({failed.failure}): {failed.detail[-300:]}"
        return Verdict("drop", said, {"failure": failed.failure})
    paired = Paired([c.val_bpb - i.val_bpb for c, i in zip(candidate, incumbent, strict=True)], noise)  # fmt: skip
    evidence, shown = _evidence(paired), _shown(paired)
    if target == "kernels" and comparison is not None:
        evidence["ratio"] = [round(x, 4) for x in (comparison.ratio, comparison.low, comparison.high)]  # fmt: skip
        verdict = _same_mathematics(comparison, paired, shown, explained(incumbent, candidate))
    else:
        verdict = _better(paired, shown, words)
    if verdict.decision == "again" and paired.pairs >= MAX_PAIRS:
        verdict = Verdict("drop", f"undecided after {MAX_PAIRS} pairs: {shown}")
    both = zip(incumbent, candidate, strict=True)
    fewer = any(0 < c.tokens_per_second < FEWER * i.tokens_per_second for i, c in both)
    if verdict.decision == "keep" and fewer:
        said = f"quarantined: better ({shown}) on less than {FEWER:.0%} of the incumbent's tokens/s. Not kept: read the patch"
        verdict = Verdict("quarantine", said, verdict.evidence)
    share = -paired.mean / statistics.fmean(i.val_bpb for i in incumbent)
    if verdict.decision == "keep" and share > PLAUSIBLE:
        verdict = Verdict(
            "quarantine",
            f"quarantined: {share:.0%} fewer bits ({shown}) is more than one change wins. Not kept: read the patch, score its trial by hand, "
            "and commit it yourself if the gain is real",
            verdict.evidence,
        )
    return Verdict(verdict.decision, verdict.reason, evidence | verdict.evidence, verdict.flag)


def _better(paired: Paired, shown: str, words: int) -> Verdict:
    look = paired.pairs - 1
    p = paired.p_below()
    if look < len(SPEND) and p <= SPEND[look]:
        return Verdict("keep", f"better beyond the noise: {shown}")
    if words <= -SHORTER:
        if paired.p_below(TIE * paired.spread) <= NOT_WORSE:
            return Verdict("keep", f"no worse, and {-words} words shorter: {shown}")
        futile = paired.p_above() <= NOT_WORSE
    else:
        futile = look < len(FUTILE) and p > FUTILE[look]
    if futile and paired.degrees:
        return Verdict("drop", f"no better: {shown}")
    return Verdict("again", f"undecided: {shown}")


def _same_mathematics(
    comparison: Comparison, paired: Paired, shown: str, explained_bpb: float | None
) -> Verdict:
    took = f"{comparison.ratio:.3f} of the incumbent's time [{comparison.low:.3f}, {comparison.high:.3f}] over {comparison.blocks} blocks"
    if not comparison.faster:
        return Verdict("drop", f"not faster: {took}")
    look = min(paired.pairs, len(SPEND)) - 1
    if paired.p_above() <= SPEND[look]:
        return Verdict("drop", f"faster kernel, worse model: {shown}")
    if paired.p_below(MARGIN * paired.spread) > NOT_WORSE:
        return Verdict("again", f"undecided: {took}; BPB may be worse: {shown}")
    evidence: dict[str, Any] = {}
    flag = ""
    if explained_bpb is not None:
        evidence["explained_by_tokens_bpb"] = round(explained_bpb, 5)
        if paired.p_below(explained_bpb) <= SPEND[look]:
            flag = f"{_figure(paired)}, where its tokens explain {explained_bpb:+.4f}: the same mathematics learns no faster"
    return Verdict("keep", f"{took}; BPB not worse: {shown}", evidence, flag)


def _evidence(paired: Paired) -> dict[str, Any]:
    figure = paired.figure()
    known = math.isfinite(figure.half)
    return {
        "differences_bpb": [round(d, 5) for d in paired.differences],
        "pairs": paired.pairs,
        "mean_bpb": round(paired.mean, 5),
        "interval_bpb": [round(figure.low, 5), round(figure.high, 5)] if known else None,
        "spread_bpb": round(paired.spread, 5),
        "noise_bpb": round(paired.noise.deviation, 5),
        "degrees": paired.degrees,
        "p_value": paired.p_below(),
        "e_value": paired.e_value(),
    }


def _shown(paired: Paired) -> str:
    return f"{_figure(paired)}, noise {paired.spread:.4f} a pair (degrees of freedom: {paired.degrees})"


def _figure(paired: Paired) -> str:
    found = paired.figure()
    pairs = f"{found.runs} pair{'s' if found.runs > 1 else ''}"
    return f"{found.value:+.4f} BPB [{found.low:+.4f}, {found.high:+.4f}] over {pairs}"
