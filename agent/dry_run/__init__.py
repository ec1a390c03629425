"""What a night will cost, before it is begun: experiments per hour, tokens and money per proposal, and which limit ends it first.

Figures come from the ledger where it has enough of the same kind, and are assumptions where it has not; each says which. Low, expected
and high are three kinds of night: with a proposer that is quick and brief, as usual, or slow and talkative. Nothing is sent anywhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from agent import proposers, standard
from agent.dry_run.pace import CLOSING, Pace, pace
from agent.dry_run.talk import Talk, talk
from agent.lab import Lab, Unusable
from agent.ledger import Ledger
from agent.records import Run, Settings
from agent.screen import duration
from bench.plan import BASELINES

CASES = ("low", "expected", "high")


@dataclass(frozen=True)
class End:
    """Where a limit would end the night."""

    limit: str
    experiments: float
    hours: float


def estimate(lab: Lab, settings: Settings) -> str:
    """The table of a night with these settings. Raises Unusable if a model or its price is not known."""
    name, why = proposers.choose(settings)
    ledger = lab.ledger()
    runs = [run for run in ledger.runs() if _alike(run.settings, settings)]
    asked = standard.of(name)
    known = (
        e for run in runs for e in ledger.experiments(run.id) if standard.of(e.proposer) == asked
    )
    tempo = pace(settings, name, known)
    talks = [talk(lab, ledger, model, settings) for model in _models(name, settings)]
    return "\n".join(
        [
            f"{settings.op or settings.target}, proposer {name} ({why}), trials of {settings.seconds:g} s on {settings.device}",
            "",
            *_pace_table(tempo),
            *[line for talk in talks for line in ("", *_talk_table(talk))],
            "",
            *_night_table(settings, name, tempo, talks),
        ]
    )


def what_is_left(ledger: Ledger, run: Run) -> Settings:
    """The settings of a run, its limits reduced by what it has used of them."""
    limits, spent = run.settings, ledger.accounts.spent(run.id)
    ended = ledger.finished(run.id)

    def rest(limit: float | None, used: float) -> float | None:
        return None if limit is None else max(0.0, limit - used)

    return replace(
        limits,
        experiments=None if limits.experiments is None else max(0, limits.experiments - ended),
        hours=rest(limits.hours, spent["hours"]),
        gpu_hours=rest(limits.gpu_hours, spent["device_seconds"] / 3600),
        usd=rest(limits.usd, spent["usd"]),
        tokens=None if limits.tokens is None else max(0, limits.tokens - int(spent["tokens"])),
    )


def _alike(past: Settings, settings: Settings) -> bool:
    """Whether an earlier run had the pace of this one, the judge's part of it."""
    same = ("target", "device", "seconds")
    return all(getattr(past, name) == getattr(settings, name) for name in same)


def _models(name: str, settings: Settings) -> Sequence[str]:
    """The models that would be asked; none if the proposer's requests are not counted."""
    if name not in proposers.MODELS:
        return ()
    if settings.models:
        return settings.models
    if settings.base_url:
        raise Unusable(
            "an estimate does not ask the endpoint which model it has: name it with --model"
        )
    return (importlib.import_module(f"agent.proposers.{name}").DEFAULT_MODEL,)


# ---- where it ends


def ends(settings: Settings, tempo: Pace, interval: float, usd: float, tokens: float) -> list[End]:
    """Where each limit that is set would end a night, the first one first.

    interval: seconds from one experiment to the next. usd, tokens: of a proposal.
    """
    once = (tempo.baseline + tempo.closing) / 3600
    spent: tuple[tuple[str, float | None, float, float], ...] = (
        # limit, its value, what start and end of the run take of it, what an experiment takes
        ("--experiments", settings.experiments, 0.0, 1.0),
        ("--hours", settings.hours, once, interval / 3600),
        ("--gpu-hours", settings.gpu_hours, once, tempo.device / 3600),
        ("--usd", settings.usd, 0.0, usd),
        ("--tokens", settings.tokens, 0.0, tokens),
    )
    found = []
    for flag, limit, before, each in spent:
        if limit is not None and each > 0:
            count = max(0.0, (limit - before) / each)
            shown = str(limit) if isinstance(limit, int) else f"{limit:g}"
            found.append(End(f"{flag} {shown}", count, once + count * interval / 3600))
    return sorted(found, key=lambda end: end.experiments)


# ---- in words


def _pace_table(tempo: Pace) -> list[str]:
    rows = [["an experiment", "reached by", "seconds", "from"]]
    rows += [
        [s.name, f"{s.reached:.0%}", f"{s.seconds:,.1f}", _source(s.known)] for s in tempo.stages
    ]
    rows.append(["all", "", f"{tempo.judged:,.1f}", f"{tempo.device:,.1f} of them on the device"])
    note = f"once, at the start: {duration(tempo.baseline)} for {BASELINES} trials of the incumbent"
    last = f"once, at the end, if anything was kept: {duration(tempo.closing)} for {CLOSING} trials, champion against start"
    return [*_table(rows, notes=True), note, last]


def _talk_table(of: Talk) -> list[str]:
    rows = [["a proposal of " + of.model, *CASES, f"from: {_source(of.known)}"]]

    def row(name: str, figures: Iterable[float], form: str, note: str = "") -> None:
        rows.append([name, *(format(figure, form) for figure in figures), note])

    every, price, used = range(len(CASES)), of.price, of.usage
    a_million = f"{price.cache_read:g} USD a million"
    row("tokens read from the cache", (u.cache_read for u in used), ",", a_million)
    row("tokens written to it", (u.cache_write for u in used), ",", f"{price.cache_write:g}")
    row("tokens in beside it", (u.input for u in used), ",", f"{price.input:g}")
    row("tokens out", (u.output for u in used), ",", f"{price.output:g}")
    row("USD", map(of.usd, every), ".3f")
    row("USD if nothing were cached", map(of.uncached, every), ".3f")
    return _table(rows, notes=True)


def _night_table(settings: Settings, name: str, tempo: Pace, talks: Sequence[Talk]) -> list[str]:
    columns = [_night(settings, tempo, talks, case) for case in range(len(CASES))]
    # a night that no limit ends has no end
    rows = [[n, *shown] for n in columns[0] if any(shown := [column[n] for column in columns])]
    lines = _table([["the night", *CASES], *rows])
    if said := proposers.about_money(name, settings):
        lines.append(said)
    if name == "command":
        lines.append(
            "what the command spends is not known before it says so, and is not in these figures"
        )
    if len(talks) > 1:
        lines.append(
            "several models: assumed to propose equally often; in a run, spending moves to the one whose proposals are kept"
        )
    return lines


def _night(settings: Settings, tempo: Pace, talks: Sequence[Talk], case: int) -> dict[str, str]:
    """One column of the last table, by the labels of its rows."""
    interval = tempo.interval(tempo.thinking[case])
    usd = sum(talk.usd(case) for talk in talks) / max(1, len(talks))
    tokens = sum(talk.tokens(case) for talk in talks) / max(1, len(talks))
    hourly = 3600 / interval
    end = next(iter(ends(settings, tempo, interval, usd, tokens)), None)
    return {
        "proposer at work, s": f"{tempo.thinking[case]:,.1f}",
        "experiments an hour": f"{hourly:.1f}",
        "USD an hour": f"{usd * hourly:.2f}",
        "ends first by": end.limit if end else "Ctrl-C",
        "experiments": f"{end.experiments:.0f}" if end else "",
        "hours": f"{end.hours:.1f}" if end else "",
        "USD in all": f"{end.experiments * usd:.2f}" if end else "",
    }


def _source(known: int) -> str:
    return f"{known:,} in the ledger" if known else "assumed"


def _table(rows: Sequence[Sequence[str]], notes: bool = False) -> list[str]:
    """Rows as lines, with aligned columns: figures to the right; the first column, and the last if it holds notes, to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = {0, len(widths) - 1} if notes else {0}
    return [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
