"""Keep, drop, or run again: a lower number is not an improvement, a lower number beyond the measured noise is.

Candidate and incumbent are paired by seed. The spread of a paired difference is estimated from repeated trials of the baseline and from every pair of the
campaign. A mixture sequential probability ratio test (Robbins 1970; Johari et al. 2017) then says after each pair whether the evidence for
a gain reaches 1 / ALPHA: it may be looked at after every pair without the error rate growing.

A gain beyond PLAUSIBLE is more often a hole in the judge than a discovery: it is set aside for a person, and never kept in silence.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.timing import Comparison
from bench.trial import TrialResult

ALPHA = 0.01  # false keeps a proposal
MAX_PAIRS = 3  # then what is undecided is dropped
PLAUSIBLE = 0.15  # share of the incumbent's BPB that one change may win
MIXTURE = (
    2.0  # prior spread of true effects, in units of the noise: two sigma is what is worth finding
)
MIN_NOISE_BPB = (
    2e-4  # two equal runs say nothing about noise; no trial of this length repeats better than this
)


@dataclass(frozen=True)
class Verdict:
    decision: str  # keep, drop, again, quarantine
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)


def noise_of(groups: Sequence[Sequence[float]]) -> float:
    """Spread (one standard deviation) of val_bpb between trials that differ in seed alone, pooled over groups of such trials."""
    squares, degrees = 0.0, 0
    for group in groups:
        if len(group) > 1:
            squares += statistics.variance(group) * (len(group) - 1)
            degrees += len(group) - 1
    return max(MIN_NOISE_BPB, math.sqrt(squares / degrees)) if degrees else MIN_NOISE_BPB


def decide(
    target: str,
    comparison: Comparison | None,
    incumbent: Sequence[TrialResult],
    candidate: Sequence[TrialResult],
    noise: float,
) -> Verdict:
    """Decide on trials paired by position. `kernels`: must have won time (comparison) and may not lose BPB; else: must win BPB."""
    failed = next((t for t in candidate if not t.ok), None)
    if failed is not None:
        return Verdict(
            "drop",
            f"the trial failed ({failed.failure}): {failed.detail[-300:]}",
            {"failure": failed.failure},
        )
    differences = [c.val_bpb - i.val_bpb for c, i in zip(candidate, incumbent, strict=True)]
    spread = math.sqrt(2) * noise
    evidence: dict[str, Any] = {
        "differences_bpb": [round(d, 5) for d in differences],
        "noise_bpb": round(noise, 5),
        "pairs": len(differences),
    }
    mean = statistics.fmean(differences)
    share = -mean / statistics.fmean(i.val_bpb for i in incumbent)
    shown = f"{mean:+.4f} BPB over {len(differences)} pair(s), noise {spread:.4f} a pair"
    worse = evidence["e_worse"] = _e_value(differences, spread)
    better = evidence["e_better"] = _e_value([-d for d in differences], spread)
    if share > PLAUSIBLE:
        return Verdict(
            "quarantine",
            f"quarantined: {share:.0%} fewer bits ({shown}) is more than one change wins. Not kept: read the patch, score its trial by hand, "
            "and commit it yourself if the gain is real",
            evidence,
        )
    if target == "kernels" and comparison is not None:
        evidence["ratio"] = [
            round(x, 4) for x in (comparison.ratio, comparison.low, comparison.high)
        ]
        if worse >= 1 / ALPHA:
            return Verdict("drop", f"faster kernel, worse model: {shown}", evidence)
        if mean <= 2 * spread / math.sqrt(len(differences)):
            time_shown = f"{comparison.ratio:.3f} of the incumbent's time [{comparison.low:.3f}, {comparison.high:.3f}]"
            return Verdict("keep", f"{time_shown}; BPB not worse: {shown}", evidence)
    else:
        if better >= 1 / ALPHA:
            return Verdict("keep", f"better beyond the noise: {shown}", evidence)
        if worse >= 1 or mean >= 0:
            return Verdict("drop", f"no better: {shown}", evidence)
    if len(differences) >= MAX_PAIRS:
        return Verdict("drop", f"undecided after {MAX_PAIRS} pairs: {shown}", evidence)
    return Verdict("again", f"undecided: {shown}", evidence)


def _e_value(values: Sequence[float], spread: float) -> float:
    """Evidence against "the mean is zero or less" for one that is above: one-sided normal mixture, known spread."""
    n, total = len(values), sum(values) / spread
    precision = n + 1 / MIXTURE**2
    log_e = total**2 / (2 * precision) - 0.5 * math.log(MIXTURE**2 * precision)
    tail = 0.5 * math.erfc(-total / math.sqrt(2 * precision))  # posterior mass above zero
    return 2 * math.exp(min(log_e, 700.0)) * tail
