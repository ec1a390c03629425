"""Figures as a person reads them: the estimate, then its bounds."""

from __future__ import annotations

import math

from agent.records import Outcome


def bits(value: float, low: float | None, high: float | None) -> str:
    """`-0.0120 [-0.0190, -0.0050]`"""
    return f"{value:+.4f} {_bounds(low, high, '{:+.4f}')}"


def ratio(value: float, low: float | None, high: float | None) -> str:
    """`0.930x [0.910, 0.950]`"""
    return f"{value:.3f}x {_bounds(low, high, '{:.3f}')}"


def count(number: float, noun: str) -> str:
    """`1 file`, `3 files`, `0.5 hours`"""
    shown = f"{number:g}" if isinstance(number, float) else number
    return f"{shown} {noun}{'' if number == 1 else 's'}"


def pairs(runs: int | None) -> str:
    return "unknown pairs" if runs is None else count(runs, "pair")


def time_in_short(outcome: Outcome) -> str:
    """`0.930x [0.910, 0.950] time`, bounds where they are known; "" if no op was timed."""
    if outcome.speed is None:
        return ""
    known = outcome.speed_low is not None
    return f"{ratio(outcome.speed, outcome.speed_low, outcome.speed_high) if known else f'{outcome.speed:.3f}x'} time"


def bits_in_short(outcome: Outcome) -> str:
    """`-0.0120 [-0.0190, -0.0050] BPB`, bounds where they are known; "" if nothing was trained."""
    if outcome.bpb_change is None:
        return ""
    known = outcome.bpb_low is not None
    return f"{bits(outcome.bpb_change, outcome.bpb_low, outcome.bpb_high) if known else f'{outcome.bpb_change:+.4f}'} BPB"


def rate_in_short(outcome: Outcome) -> str:
    """`0.930x tokens/s`; "" if nothing was trained."""
    return "" if outcome.rate is None else f"{outcome.rate:.3f}x tokens/s"


def share(value: float, low: float, high: float) -> str:
    """`2.5 % [0.1 %, 13.2 %]`"""
    return f"{value:.1%} [{low:.1%}, {high:.1%}]".replace("%", " %")


def _bounds(low: float | None, high: float | None, form: str) -> str:
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    return f"[{form.format(low)}, {form.format(high)}]" if known else "[bounds unknown]"
