"""Figures as a person reads them: the estimate, then its 95 % bounds."""

from __future__ import annotations

import math


def bits(value: float, low: float | None, high: float | None) -> str:
    """`-0.0120 [-0.0190, -0.0050]`"""
    return f"{value:+.4f} {_bounds(low, high, '{:+.4f}')}"


def ratio(value: float, low: float | None, high: float | None) -> str:
    """`0.930x [0.910, 0.950]`"""
    return f"{value:.3f}x {_bounds(low, high, '{:.3f}')}"


def share(value: float, low: float, high: float) -> str:
    """`2.5 % [0.1 %, 13.2 %]`"""
    return f"{value:.1%} [{low:.1%}, {high:.1%}]".replace("%", " %")


def _bounds(low: float | None, high: float | None, form: str) -> str:
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    return f"[{form.format(low)}, {form.format(high)}]" if known else "[bounds unknown]"
