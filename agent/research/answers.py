"""What the lab knows, in words for a researcher: gate results, profiles, what compilers made of an op, past experiments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent.figures import bits_in_short, pairs, rate_in_short, ratio, time_in_short
from agent.records import CRASH, Experiment, GateResult, Past
from agent.research import amdahl

MAX_REASON = 3_000  # characters of a gate's reason
MAX_ADVICE = 6  # lines
MAX_SHAPES = 12
MAX_LINE = 300


def gates(results: Sequence[GateResult]) -> str:
    """What each gate said, what the static gate advises, and the times by shape that the microbench found."""
    lines = []
    for result in results:
        said = "passed" if result.passed else "REFUSED"
        more = " [cut]" if len(result.reason) > MAX_REASON else ""
        lines.append(
            f"{result.name} {said} ({result.seconds:.1f} s): {result.reason[:MAX_REASON]}{more}"
        )
        advice: Sequence[str] = result.evidence.get("advice", ())
        lines += [f"  advice: {_line(text)}" for text in advice[:MAX_ADVICE]]
        ops = [found for found in result.evidence.values() if isinstance(found, Mapping)]
        shapes = [shape for found in ops for shape in found.get("shapes", ())]
        lines += [f"  {_shape(shape)}" for shape in shapes[:MAX_SHAPES]]
    return "\n".join(lines)


def _shape(row: Mapping[str, Any]) -> str:
    times = f"{row['incumbent_ms']:.4g} to {row['candidate_ms']:.4g} ms"
    if "candidate_forward_ms" in row:
        times += (
            f" (forward {row['incumbent_forward_ms']:.4g} to {row['candidate_forward_ms']:.4g})"
        )
    return f"{ratio(row['ratio'], row['low'], row['high'])}, {times}: {_line(row['case'])}"


def profile(found: Mapping[str, Any]) -> str:
    """A table of what bench/step_profile.py found of an op or of a step."""
    rows = found["rows"]
    if "step_ms" in found:
        lines = [f"{found['of']}: {found['step_ms']} ms", "ms / share / calls / % of limit / name"]
        lines += [
            f"{row['ms']:.3f} / {row['share']:.1%} / {row['calls']} / {_percent(row)} / {_line(row['name'])}"
            for row in rows
        ]
        return "\n".join(lines)
    lines = [
        f"{found['of']}: one call, forward and backward (median, and the quartiles around it){amdahl.machine(found)}"
    ]
    for case in dict.fromkeys(row["case"] for row in rows):
        lines.append(f"{_line(case)}")
        for row in rows:
            if row["case"] == case:
                lines.append(f"  {_timed(row)}")
        ours = {row["tree"]: row["ms"] for row in rows if row["case"] == case and row["default"]}
        if len(ours) == 2:
            lines.append(f"  the draft takes {ours['draft'] / ours['incumbent']:.3f} of the incumbent's time")  # fmt: skip
    if inside := found.get("inside"):
        lines.append(f"inside one call of the draft on {_line(found['inside_case'])}: ms forward / backward / calls / operator, each by its own time")  # fmt: skip
        lines += [
            f"  {row['ms'] - row['backward_ms']:.4f} / {row['backward_ms']:.4f} / {row['calls']} / {_line(row['name'])}"
            for row in inside
        ]
    return "\n".join(lines)


def _timed(row: Mapping[str, Any]) -> str:
    low, high = row["quartiles_ms"]
    choice = ", which the trial runs" if row["default"] else ""
    return (
        f"{row['ms']:.4f} ms [{low:.4f}, {high:.4f}], {_percent(row)} of the limit: "
        f"{row['tree']}'s {_line(row['name'])}{choice}"
    )


def _percent(row: Mapping[str, Any]) -> str:
    percent = row["percent_of_limit"]
    return "?" if percent is None else f"{percent:.0f} %"


def inspection(found: Mapping[str, Any], device: str) -> str:
    """The C++ loops and the Triton kernels of an op, as bench/inspection.py found them: first what the device runs, since an answer may be cut."""
    kernels = [_kernel(row) for row in found["kernels"]]
    if not kernels:
        kernels = [f"kernels/{found['op']}.py names no Triton kernel in AOT"]
    loops = [_loop(row) for row in found["loops"] if row["outcomes"]]
    if loops:
        loops.insert(0, "C++ loops, by g++ (x: how often, once for each instance of a template)")
    return "\n".join([*loops, *kernels] if device == "cpu" else [*kernels, *loops])


def _kernel(row: Mapping[str, Any]) -> str:
    constants = " ".join(f"{name}={value}" for name, value in row["constants"].items())
    mix = " ".join(f"{name}:{count}" for name, count in row["mix"].items())
    lines = [
        f"{row['kernel']} for sm_{row['arch']} ({constants})",
        f"  {row['registers']} registers, {row['stack_bytes']} bytes of stack (spills), {row['shared_bytes']} bytes shared",
        f"  hot loop, or the whole kernel if it has none: {row['loop_instructions']} instructions: {mix}",
    ]
    lines += [f"    {_line(text)}" for text in (*row["sass"], *row["ptx"])]
    return "\n".join(lines)


def _loop(row: Mapping[str, Any]) -> str:
    outcomes = "; ".join(f"{_line(text)} x{count}" for text, count in row["outcomes"].items())
    return f"{row['file']}:{row['line']}: {_line(row['text'])}\n    {outcomes}"


def listed(found: Iterable[Past], run: str) -> str:
    """A line per experiment."""
    return "\n".join(_short(past, run) for past in found)


def experiment(found: Experiment, run: str) -> str:
    """One experiment: what was expected, how it ended, what each gate said, and its patch."""
    parts = [_short(found, run), f"expected: {_line(found.expected) or 'not said'}"]
    if found.outcome.bpb_change is not None:
        words = [
            bits_in_short(found.outcome),
            pairs(found.outcome.pairs),
            rate_in_short(found.outcome),
        ]
        parts.append(f"change of val_bpb: {', '.join(filter(None, words))}")
    if found.outcome.status == CRASH and len(found.outcome.reason) > MAX_LINE:
        parts.append(f"its last words: {found.outcome.reason[-MAX_REASON:]}")
    return "\n".join([*parts, gates(found.gates), found.patch])


def _short(past: Past, run: str) -> str:
    where = f"{past.number}" if past.run == run else f"{past.number} of run {past.run}"
    outcome = past.outcome
    speed = "" if outcome.speed is None else f", {time_in_short(outcome)}"
    gate = f" by {past.refused_by}" if past.refused_by else ""
    about = ", ".join(past.ops) or ", ".join(past.paths) or "no file"
    return f"{where} [{about}] {outcome.status}{gate}{speed}: {_line(past.hypothesis)} | {_line(outcome.reason)}"


def _line(text: Any) -> str:
    """The text on one line of bounded length."""
    return " ".join(str(text).split())[:MAX_LINE]
