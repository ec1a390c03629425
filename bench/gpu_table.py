"""The Markdown of bench/gpu_report.py, from the lines of its journal alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.goals import BACKWARD, BOTH, FORWARD, GOALS, PASSES, Goal
from bench.implementations import OURS
from bench.paragraphs import spaced

Line = dict[str, Any]
NOT_YET = "not measured"
GOALS_OF, OTHER_GPU = "H100", "another GPU"
OWN = tuple(name for names in OURS.values() for name in names)
STEP_ROWS = 15


@dataclass(frozen=True)
class Measured:
    """A goal, and the fastest of ours and of the peers (name, milliseconds) where any was measured. `here`: on the GPU that goals are of."""

    goal: Goal
    ours: tuple[str, float] | None
    peer: tuple[str, float] | None
    here: bool = True

    @property
    def met(self) -> str:
        """Not slower than the goal, nor than any peer that stood beside it."""
        if self.ours is None:
            return NOT_YET
        if not self.here:
            return OTHER_GPU
        beaten = self.peer is not None and self.peer[1] < self.ours[1]
        return "yes" if self.ours[1] <= self.goal.goal_ms and not beaten else "no"


def measured(lines: Sequence[Line]) -> list[Measured]:
    """Every goal beside the figures that were taken by its protocol."""
    rows = []
    named = [str(n["device"]) for n in lines if n.get("part") == "facts" and "device" in n]
    here = not named or GOALS_OF in named[-1]
    for goal in GOALS:
        arms = {
            line["arm"]: line["events"][goal.passes]
            for line in lines
            if line.get("op") == goal.op
            and line.get("case") == goal.case.label()
            and goal.passes in line.get("events", {})
        }
        rows.append(Measured(goal, _fastest(arms, own=True), _fastest(arms, own=False), here))
    return rows


def _fastest(arms: dict[str, float], *, own: bool) -> tuple[str, float] | None:
    found = [(ms, name) for name, ms in arms.items() if (name in OWN) == own]
    return (min(found)[1], min(found)[0]) if found else None


def summary(lines: Sequence[Line]) -> str:
    """One line: how many goals are met, and what was refused."""
    met = [row.met for row in measured(lines)]
    refused = [line["part"] for line in lines if line.get("ended") == "refused"]
    stopped = [line["part"] for line in lines if line.get("ended") == "stopped"]
    words = [f"{met.count('yes')} of {len(met)} goals met, {met.count(NOT_YET)} not measured"]
    if elsewhere := met.count(OTHER_GPU):
        words.append(f"{elsewhere} measured on a GPU that no goal is of")
    words += [f"refused: {', '.join(refused)}"] if refused else []
    words += [f"stopped: {', '.join(stopped)}"] if stopped else []
    return "; ".join(words)


def render(lines: Sequence[Line]) -> str:
    """The whole report, of whatever has been measured."""
    parts = ["# A GPU", "Written by `python -m bench.gpu_report` from raw.jsonl."]
    parts += [*_facts(lines), *_goals(lines), *_arms(lines), *_ends(lines), *_step(lines)]
    return "\n".join(spaced(parts)) + "\n"


def _facts(lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        if line["part"] in ("facts", "ceilings"):
            told = {k: v for k, v in line.items() if k not in ("part", "begun", "ended", "why", "seconds", "at_s")}  # fmt: skip
            if told:
                yield f"- {line['part']}: {', '.join(f'{k} {_shown(v)}' for k, v in told.items())}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"({', '.join(f'{k} {_shown(v)}' for k, v in value.items())})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _goals(lines: Sequence[Line]) -> Iterator[str]:
    yield "## Goals"
    yield (
        "Milliseconds by the protocol of the public figures (triton.testing.do_bench); met: within the goal, and no slower than a peer beside it. "
        f"Floors, goals and public figures are an {GOALS_OF}'s: on another GPU none is called met."
    )
    yield "| op | shape | pass | ours | best peer here | best public | floor | goal | met? |"
    yield "|---|---|---|--:|--:|--:|--:|--:|---|"
    for row in measured(lines):
        goal = row.goal
        yield (
            f"| {goal.op} | {goal.case.label()} | {goal.passes} | {_named(row.ours)} | {_named(row.peer)} | "
            f"{goal.peer_ms:g} ({goal.peer}) | {goal.floor_ms:g} | {goal.goal_ms:g} | {row.met} |"
        )


def _named(arm: tuple[str, float] | None) -> str:
    return f"{arm[1]:.4f} ({arm[0]})" if arm else NOT_YET


def _arms(lines: Sequence[Line]) -> Iterator[str]:
    yield "## Every arm"
    yield (
        "do_bench as above, by the runner's word; judge: interleaved and audited, with the request's share; limit: least traffic or arithmetic "
        "here, all passes."
    )
    yield f"| op | shape | arm | {FORWARD} | {BACKWARD} | {BOTH} | judge | limit |"
    yield "|---|---|---|--:|--:|--:|--:|--:|"
    judged = {_key(line): line["judge"] for line in lines if "judge" in line}
    limits = {_key(line): line["limit_ms"] for line in lines if "limit_ms" in line}
    for line in lines:
        if "events" in line:
            key, arm = _key(line), line["arm"]
            figures = [_ms(line["events"].get(name)) for name in PASSES]
            figures += [_ms(judged.get(key, {}).get(arm)), _ms(limits.get(key))]
            yield f"| {key[0]} | {key[1]} | {arm} | {' | '.join(figures)} |"
    for line in lines:
        if "absent" in line:
            yield f"- {line['op']}, {line['arm']}: {line['absent']}"
        elif "refused" in line:
            arm = f"{line['arm']} " if "arm" in line else ""
            yield f"- {line['op']} {line['case']}: {arm}refused: {line['refused']}"
        if "without" in line:
            yield f"- {line['op']} {line['case']}: judged without what others have written: {line['without']}"


def _key(line: Line) -> tuple[str, str]:
    return line["op"], line["case"]


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _ends(lines: Sequence[Line]) -> Iterator[str]:
    yield "## Parts"
    yield "| part | end | s | |"
    yield "|---|---|--:|---|"
    reasons = {line["part"]: line["reason"] for line in lines if "reason" in line}
    for line in lines:
        if "ended" in line:
            why = (line["why"] or reasons.get(line["part"], "")).replace("|", "/")
            yield f"| {line['part']} | {line['ended']} | {line['seconds']:.0f} | {why} |"


def _step(lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        if "step_ms" in line:
            plain = line.get("plain_ms", line["step_ms"])
            yield f"## A training step: {plain:.1f} ms, {line['step_ms']:.1f} under the profiler"
            yield "| where | ms | share | calls | % of limit |"
            yield "|---|--:|--:|--:|--:|"
            for row in line["rows"][:STEP_ROWS]:
                limit, name = row["percent_of_limit"], str(row["name"]).replace("|", "/")
                percent = "" if limit is None else f"{limit:.0f}"
                yield f"| {name} | {row['ms']:.2f} | {row['share']:.1%} | {row['calls']} | {percent} |"
