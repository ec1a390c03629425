"""Is the machine what it was? The incumbent is run again, and what differs beyond noise makes every figure from before void."""

from __future__ import annotations

from bench.interval import Spread
from bench.paired import Paired
from bench.trial import TrialResult

ALARM = 0.01  # chance of an alarm on a machine that has not changed; it costs a few trials
# Of tokens/s, whatever it does to the bits: two trials of one tree on a shared machine of two cores differed by 6 %.
SPEED = 0.10


def drifted(before: TrialResult, now: TrialResult, noise: Spread) -> str:
    """In words, how two trials of one tree and seed differ by more than they should; "" if they do not."""
    if not now.ok:
        return f"the incumbent no longer trains ({now.failure}: {now.detail})"
    speed = now.tokens_per_second / before.tokens_per_second - 1
    if abs(speed) > SPEED:
        return f"the incumbent makes {speed:+.0%} tokens/s"
    again = Paired([now.val_bpb - before.val_bpb], noise)
    if min(again.p_below(), again.p_above()) < ALARM / 2:
        return f"the incumbent scores {again.mean:+.4f} BPB, {again.spread:.4f} are noise"
    return ""
