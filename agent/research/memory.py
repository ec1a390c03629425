"""What a researcher is told about earlier experiments: a page whose length does not grow with their number.

The most useful comes first: what is under way, what was kept and what it gained, near misses worth combining, what failed and why (reasons that
differ only in figures count as one), what was tried for each op. Each section has its share of the page; what does not fit is counted, and the `history`
tool has it. Hypotheses and reasons come from models and candidates: they are cut to one line here, and agent/research/prompt.py quotes the page.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from agent import surface
from agent.figures import bits_in_short, count, rate_in_short, time_in_short
from agent.records import CRASH, DROP, KEEP, OPEN, REFUSE, Past
from agent.research.archive import gain, is_kernel, is_near_miss
from agent.research.search import since_keep

MAX_MEMORY = 7_000  # characters, about 2,000 tokens
# Characters of a section; what was tried gets the rest of the page.
UNDER_WAY, KEPT, NEAR, FAILED = 1_000, 2_000, 1_300, 2_000
REASONS = 4  # per gate
LAST = range(12, 1, -1)  # ideas per op: the most that fit for all ops
IDEA, REASON = 130, 170  # characters of a hypothesis, of a reason
WHOLE = 400  # of a hypothesis that must not be proposed twice

UNMEASURED = "dropped unmeasured, so the idea is free"

_NUMBERS = re.compile(r"\d[\d.,e+x%-]*")


def digest(
    history: Sequence[Past], target: str, op: str | None, run: str, at_hand: str = ""
) -> str:
    """At most MAX_MEMORY characters about the judged experiments of all runs that touch the surface of `target` (and `op`).

    at_hand: the op, or "model", whose ideas come first.
    """
    judged = [past for past in history if past.outcome.judged]
    relevant = [past for past in judged if _concerns(past, target, op)]
    ours = [past for past in judged if past.run == run]
    kept = [past for past in relevant if past.outcome.status == KEEP]
    kept.sort(key=lambda past: (past.run != run, -gain(past)))
    near = sorted(filter(is_near_miss, relevant), key=gain, reverse=True)
    open_ = [p for p in history if p.run == run and p.outcome.status in OPEN and _concerns(p, target, op)]  # fmt: skip
    about = op or f"target {target}"
    head = (
        f"This run: {_counted(ours)}, {since_keep(ours)} since the last keep. "
        f"All runs, {about}: {_counted(relevant)}."
    )
    sections = [
        _section(
            "Under way in this run, outcome open; the sources shown lack it. Do not propose it again, and leave the lines that it changes alone: what "
            "meets a keep in the same lines is dropped",
            (_under_way(past) for past in open_),
            len(open_),
            UNDER_WAY,
        ),
        _section(
            "Kept (this run's are in the incumbent, unless they were taken out since)",
            (_line(past, run) for past in kept),
            len(kept),
            KEPT,
        ),
        _section(
            "Near misses: better, but not beyond the noise; worth combining or finishing",
            (_line(past, run) for past in near),
            len(near),
            NEAR,
        ),
        _failed(relevant),
    ]
    page = "\n\n".join([head, *filter(None, sections)])
    tried = _tried(relevant, MAX_MEMORY - len(page) - 2, at_hand)
    return f"{page}\n\n{tried}" if tried else page


def _concerns(past: Past, target: str, op: str | None) -> bool:
    """Whether an experiment touches the surface; one without files, of which no proposal came, counts everywhere."""
    if op is not None:
        return op in past.ops or (not past.paths and past.notes.get("op") in (op, None))
    if target == "all" or not past.paths:
        return True
    return any(surface.is_kernel(path) == (target == "kernels") for path in past.paths)


def _counted(rows: Sequence[Past]) -> str:
    kept = sum(past.outcome.status == KEEP for past in rows)
    return f"{count(len(rows), 'experiment')}, {kept} kept"


def _section(title: str, lines: Iterable[str], total: int, limit: int) -> str:
    """As many lines as fit, and how many are left out; "" if there are none."""
    if not total:
        return ""
    shown = [f"{title}:"]
    room = limit - len(title) - 60
    for line in lines:
        room -= len(line) + 1
        if room < 0:
            shown.append(f"  ... {total - len(shown) + 1} more, for which there is no room here")
            break
        shown.append(line)
    return "\n".join(shown)


def _line(past: Past, run: str) -> str:
    where = f"{past.number}" if past.run == run else f"{past.number} of {past.run}"
    what = ", ".join(past.ops) if is_kernel(past) else "model"
    return f"  {where} [{what}] {_figures(past)}: {_short(past.hypothesis, IDEA)}"


def _under_way(past: Past) -> str:
    return f"  {past.number} [{', '.join(past.paths)}]: {_short(past.hypothesis, WHOLE)}"


def _figures(past: Past) -> str:
    known = (time_in_short(past.outcome), bits_in_short(past.outcome), rate_in_short(past.outcome))
    return ", ".join(filter(None, known)) or "no figure"


def _failed(rows: Sequence[Past]) -> str:
    """By gate, the most frequent reasons, each with its latest wording."""
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    wording: dict[tuple[str, str], str] = {}
    for past in rows:
        if past.outcome.status == KEEP:
            continue
        gate, reason = _ending(past), past.outcome.reason[: 2 * REASON]
        kind = _NUMBERS.sub("#", reason[:REASON])
        reasons[gate][kind] += 1
        wording[gate, kind] = reason
    gates = sorted(reasons, key=lambda gate: -reasons[gate].total())
    return _section("Failed, and why", _grouped(gates, reasons, wording), len(gates), FAILED)


def _grouped(
    gates: Sequence[str],
    reasons: dict[str, Counter[str]],
    wording: dict[tuple[str, str], str],
) -> Iterator[str]:
    """A block of lines per gate, so that one gate's reasons do not push another's off the page."""
    for gate in gates:
        total, each = reasons[gate].total(), max(1, REASONS - (len(gates) > 3) - (len(gates) > 5))
        lines = [f"  {gate}: {total}"]
        for kind, times in reasons[gate].most_common(each):
            words = _short(wording[gate, kind].removeprefix(f"{gate}: "), REASON)
            lines.append(f"    {times}x {words}")
        yield "\n".join(lines)


def _ending(past: Past) -> str:
    if past.refused_by:
        return past.refused_by
    if past.outcome.status == DROP:
        return UNMEASURED if _unmeasured(past) else "trial, dropped"
    return "crashed" if past.paths else "no proposal"


def _unmeasured(past: Past) -> bool:
    """Whether it met a keep in the same lines (agent/preparing.py): nothing is known against its idea."""
    outcome = past.outcome
    return outcome.status == DROP and outcome.speed is None and outcome.bpb_change is None


def _tried(rows: Sequence[Past], room: int, at_hand: str) -> str:
    """For each op, the most worked on first: how often, how it ended, the last ideas."""
    by_paths: dict[tuple[str, ...], list[Past]] = defaultdict(list)
    for past in rows:
        by_paths[past.paths].append(past)
    by_op: dict[str, list[Past]] = defaultdict(list)
    for paths, group in by_paths.items():
        model = ["model"] if paths and not is_kernel(group[0]) else []
        for op in (*group[0].ops, *model):
            by_op[op] += group
    ordered = sorted(by_op.items(), key=lambda each: (each[0] != at_hand, -len(each[1]), each[0]))
    heads = [_counted_by_end(op, group) for op, group in ordered]
    latest = [sorted(group, key=lambda past: -past.id)[: LAST[0]] for _, group in ordered]
    ideas = [[f"    {_end(p)}: {_short(p.hypothesis, IDEA)}" for p in g] for g in latest]
    for last in LAST:
        most = [LAST[0] if op == at_hand else last for op, _ in ordered]
        blocks = ["\n".join([head, *i[:n]]) for head, i, n in zip(heads, ideas, most, strict=True)]
        if sum(len(block) + 1 for block in blocks) < room - 80:
            break
    return _section("Tried", blocks, len(blocks), room)


def _end(past: Past) -> str:
    if _unmeasured(past):
        return UNMEASURED
    outcome = past.outcome
    if outcome.status == KEEP:  # its figures stand above
        return KEEP
    figures = [
        f"{outcome.speed:.3f}x time" if outcome.speed else "",
        f"{outcome.bpb_change:+.4f} BPB" if outcome.bpb_change is not None else "",
        rate_in_short(outcome),
    ]
    told = ", ".join(filter(None, figures))
    return f"{outcome.status} ({told})" if told else outcome.status


def _counted_by_end(op: str, rows: Sequence[Past]) -> str:
    ends = Counter(past.outcome.status for past in rows)
    counted = ", ".join(f"{ends[s]} {s}" for s in (KEEP, DROP, REFUSE, CRASH) if ends[s])
    return f"  {op}: {len(rows)} ({counted}); the last:"


def _short(text: str, width: int) -> str:
    line = " ".join(text[: 2 * width].split())
    return line if len(line) <= width else f"{line[: width - 3]}..."
