"""The profile of a training step as a table that says what is to be won.

By Amdahl's law (1967) a part with share p of the step that runs at fraction f of its limit can make the step 1 / (1 - p (1 - f)) times as
fast and no faster. Where no limit is known, f is 0: the bound says what a part that takes no time would win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MAX_ROWS = 20
NAME = 40  # characters


def table(profile: Mapping[str, Any] | None) -> str:
    """A line per row of a step's profile (bench/step_profile.py), first where most can be won; without a profile, a line that says so."""
    if profile is None:
        return "no profile of the training step: it could not be measured here"
    rows = sorted(profile["rows"], key=lambda row: -most(row))
    lines = [
        f"{profile['of']} on {profile['device']}, {profile['step_ms']:,.0f} ms{machine(profile)}",
        f"{'':{NAME}} {'ms':>10} {'share':>6} {'calls':>6} {'% of limit':>10}  the step, at most",
        *(_line(row) for row in rows[:MAX_ROWS]),
    ]
    if rest := rows[MAX_ROWS:]:
        ms, share = (sum(float(row[key]) for row in rest) for key in ("ms", "share"))
        lines.append(f"{f'the other {len(rest)}':{NAME}} {ms:10,.2f} {share:6.1%}")
    return "\n".join(lines)


def most(row: Mapping[str, Any]) -> float:
    """How many times as fast the step would be if this row ran at its limit; inf if the row is the whole step and has no limit."""
    percent = row["percent_of_limit"]
    reached = 0.0 if percent is None else min(max(float(percent) / 100, 0.0), 1.0)
    left = 1 - min(max(float(row["share"]), 0.0), 1.0) * (1 - reached)
    return 1 / left if left > 0 else float("inf")


def machine(profile: Mapping[str, Any]) -> str:
    """What limits are counted by, as bench/roofline.py measured it here; "" where that is not told."""
    if not (found := profile.get("ceilings")):
        return ""
    moved, single, half = (
        found[name] / 1e9 for name in ("bytes_per_s", "flops_float32", "flops_bfloat16")
    )
    return f"; limits by {moved:,.0f} GB/s and {single:,.0f} GFLOP/s in float32, {half:,.0f} in bfloat16"


def shares(profile: Mapping[str, Any] | None) -> dict[str, float]:
    """Each op's part of the step, 0 to 1."""
    rows: Sequence[Mapping[str, Any]] = profile["rows"] if profile else []
    return {str(row["op"]): float(row["share"]) for row in rows if row["op"]}


def _line(row: Mapping[str, Any]) -> str:
    name, percent = " ".join(str(row["name"]).split())[:NAME], row["percent_of_limit"]
    limit = "unknown" if percent is None else f"{percent:.0f}"
    word = " if it took no time" if percent is None else ""
    figures = f"{float(row['ms']):10,.2f} {float(row['share']):6.1%} {row['calls']:6,}"
    return f"{name:{NAME}} {figures} {limit:>10}  {most(row):.3f}x{word}"
