"""Is the machine what it was? The incumbent is run again; if it differs beyond noise, every figure from before is void."""

from __future__ import annotations

from bench.interval import Spread
from bench.paired import Paired
from bench.trial_result import TrialResult

# Chance of an alarm on a machine that has not changed; an alarm costs a few trials.
ALARM = 0.01
# Change of tokens/s that counts, whatever it does to the bits: two trials of one tree on a shared machine of two cores differed by 6 %.
SPEED = 0.10


def drifted(before: TrialResult, now: TrialResult, noise: Spread) -> str:
    """In words, how two trials of one tree and seed differ by more than they should; "" if they do not."""
    if not now.ok:
        return f"the incumbent no longer trains ({now.failure}: {now.detail})"
    speed = now.tokens_per_second / before.tokens_per_second - 1
    if abs(speed) > SPEED:
        return f"the incumbent's tokens/s changed by {speed:+.0%}"
    again = Paired([now.val_bpb - before.val_bpb], noise)
    if min(again.p_below(), again.p_above()) < ALARM / 2:
        return (
            f"the incumbent's BPB changed by {again.mean:+.4f}, where noise is {again.spread:.4f}"
        )
    return ""
