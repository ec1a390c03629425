"""`python -m agent trial --profile`: where one step of the training loop spends its time, as a table that a person reads in a minute.

The lab's ops come first, then torch's operators and Python, in each group the longest first; what takes less than LEAST of a step is
summed up in one line. Forward is everything but the backward pass, the optimizer included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent.figures import count

LEAST = 0.002  # of a step
NAME = 36  # characters
_ENGINE = "autograd::engine::evaluate_function: "  # its own time, without what it calls


def table(profile: Mapping[str, Any]) -> str:
    """What bench/step_profile.py found of a step, as a table."""
    rows: Sequence[Mapping[str, Any]] = profile["rows"]
    return "\n".join(
        [
            *_head(profile),
            "",
            f"{'':{NAME}} {'share':>6} {'ms':>9} {'forward':>9} {'backward':>9} {'calls':>6} {'% of limit':>11}",
            *(_line(row) for row in rows if row["op"] and row["calls"]),
            "torch, and Python",
            *_torch(profile, [row for row in rows if not row["op"]]),
        ]
    )


def _head(profile: Mapping[str, Any]) -> Iterator[str]:
    step, threads = profile["step_ms"], profile["threads"]
    where = f"{profile['device']}, {count(threads, 'thread')}"
    yield f"{'step:':<17}{step:.1f} ms under the profiler, {profile['plain_ms']:.1f} without ({where})"
    if profile["python_ms"] is not None:
        yield f"{'Python:':<17}{_of_step(profile['python_ms'], step)}, the profiler's own included"
    waited = profile["data_ms"]
    said = "waited for " + _of_step(waited, step) if waited is not None else "unknown: the loop draws no batch with next()"  # fmt: skip
    yield f"{'data loader:':<17}{said}"
    chosen = ", ".join(f"{op}={name}" for op, name in profile["implementations"].items())
    yield f"{'implementations:':<17}{chosen}"


def _of_step(ms: float, step_ms: float) -> str:
    return f"{ms:.2f} ms, {ms / step_ms:.2%} of the step"


def _torch(profile: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    long = [row for row in rows if row["share"] >= LEAST]
    yield from map(_line, long)
    shown = [row for row in profile["rows"] if row["op"] or row in long]
    rest_ms = max(0.0, profile["step_ms"] - sum(row["ms"] for row in shown))
    rest = {"name": f"all else, each under {LEAST:.1%}", "ms": rest_ms}
    yield _line(rest | {"share": rest_ms / profile["step_ms"]})


def _line(row: Mapping[str, Any]) -> str:
    name = row["name"].replace(_ENGINE, "autograd: ").removeprefix("aten::")[: NAME - 2]
    line = f"  {name:{NAME - 2}} {row['share']:6.1%} {row['ms']:9.2f}"
    if "backward_ms" in row:
        backward, percent = row["backward_ms"], row["percent_of_limit"]
        limit = "" if percent is None else f"{percent:.0f}"
        line += f" {row['ms'] - backward:9.2f} {backward:9.2f} {row['calls']:6,} {limit:>11}"
    return line.rstrip()
