"""What more tokens explain: a faster kernel that computes the same thing may win bits by the text that it leaves time for, and by nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bench.trial_result import TrialResult

# Of the later half of a curve; with fewer, nothing is explained and nothing is flagged.
LEAST_POINTS = 8


def explained(incumbent: Sequence[TrialResult], candidate: Sequence[TrialResult]) -> float | None:
    """BPB that the candidates' tokens would have brought the incumbents, pair by pair, on average (below zero: a gain); None if no curve tells.

    A line through the later half of the incumbent's loss, against the logarithm of its tokens, is extrapolated. In that half the learning rate
    falls, which makes the line steeper than more text alone would: what the line does not explain, more text does not explain either.
    """
    gains = [_gain(i, c) for i, c in zip(incumbent, candidate, strict=True)]
    known = [gain for gain in gains if gain is not None]
    return math.fsum(known) / len(known) if len(known) == len(gains) else None


def _gain(incumbent: TrialResult, candidate: TrialResult) -> float | None:
    later = [(t, loss) for t, loss in incumbent.losses if t >= 0.5 * incumbent.losses[-1][0] > 0]
    if len(later) < LEAST_POINTS or not min(incumbent.total_tokens_M, candidate.total_tokens_M) > 0:
        return None
    tokens, losses = np.array(later).T
    slope, _ = np.polyfit(np.log(tokens), losses, 1)
    # a share of the loss is the same share of the bits
    share = min(0.0, float(slope)) / float(losses.mean())
    more = math.log(candidate.total_tokens_M / incumbent.total_tokens_M)
    return incumbent.val_bpb * share * more
