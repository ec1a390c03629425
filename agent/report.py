"""What a run came to, in words and figures for a person.

The gain of a run is what the champion showed when it was run again; what the keeps claimed stands beside it, never in its place.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent import gain_report, night_report, placebo_report, settings_found, standard
from agent.figures import bits, count, pairs, ratio
from agent.ledger import Ledger
from agent.records import CRASH, DROP, KEEP, READY, REFUSE, RUNNING, Experiment, Past, Run
from agent.screen import duration, printable

SHOWN = 100  # experiments at the end of a run, about a night's
_PAST = {
    KEEP: "kept",
    DROP: "dropped",
    REFUSE: "refused",
    CRASH: "crashed",
    RUNNING: "in flight",
    READY: "waiting for a trial",
}


def summary(ledger: Ledger, run: Run, why: str, file: Path, kept_as: str) -> str:
    """The end of a run: what was tried, what each gate said, what was kept (in git: `kept_as`), what that gains, what to type next."""
    experiments = ledger.experiments(run.id)
    lines = ["", f"run {run.id} ended: {why}", ""]
    lines += [*_listed(experiments), *([""] if experiments else []), _counts(experiments)]
    lines += _came_to(ledger, run, experiments)
    lines += ["", f"ledger   {file}", *_next(run, experiments, kept_as)]
    return "\n".join(lines)


def status(
    ledger: Ledger, file: Path, tree: Path, since: float | None = None, run: str | None = None
) -> str:
    """Every run in a line, one in detail, and the settings that were found for the constants of `tree`.

    since: when the loop that is at work began, in seconds since 1970; None if none is. run: the one in detail; without a name the one at work,
    or else the latest.
    """
    runs = ledger.runs()
    if not runs and run is None:
        return "no run yet; start one with `python -m agent --target kernels`"
    lines = [f"ledger {file}", ""]
    at_work = run_at_work(ledger, since)
    for each in runs:
        state = "running" if each.id == at_work else "ended" if each.ended else "stopped"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.started))
        lines.append(f"{each.id}  {when}  {state:8} {_counts(ledger.history(each.id))}")
    shown = ledger.run(run or at_work)
    experiments = ledger.experiments(shown.id)
    lines += [
        "",
        f"run {shown.id}",
        *_listed(experiments),
        "",
        *_came_to(ledger, shown, experiments),
    ]
    if found := [*settings_found.report(tree, ledger.history())]:
        lines += ["", *found, ""]
    if since is None:
        lines.append(f"go on with it: python -m agent --resume {shown.id}")
    elif at_work is None:
        lines.append("a loop has been started, and is getting ready")
    return "\n".join(lines)


def run_at_work(ledger: Ledger, since: float | None) -> str | None:
    """The run of the loop that began at `since`, in seconds since 1970; None where none is at work, or it has not begun one yet."""
    return None if since is None else ledger.accounts.last_at_work(since)


def of_run(ledger: Ledger, run: Run) -> str:
    """The gain of a run, by what its champion showed when it was run again."""
    experiments = ledger.experiments(run.id)
    head = f"run {run.id}: {_counts(experiments)}"
    return "\n".join([head, *_came_to(ledger, run, experiments)])


def _came_to(ledger: Ledger, run: Run, experiments: Sequence[Experiment]) -> Iterator[str]:
    """The gain of a run, how its keeps stand together, how many placebos it kept, what waits for a person, and what it cost."""
    yield from gain_report.lines(ledger, run, experiments)
    yield from night_report.false_discoveries(experiments)
    if run.settings.proposer == standard.PLACEBO:
        yield from placebo_report.rates(experiments)
    for each in experiments:
        # where `prune` meets a gain too large, the keep stays in: there is nothing to take
        if "quarantined: " in each.outcome.reason and each.proposer != standard.PRUNE:
            yield (
                f"quarantined, for a person to judge: python -m agent show {each.number} --run {run.id}; "
                f"to take it: git cherry-pick {each.commit[:12]}"
            )
    yield spending(ledger, run.id)


def spending(ledger: Ledger, run: str) -> str:
    """`spent: 7:30:12 at work, 6:58:40 on the device, 3.41 USD, 1,204,331 tokens`."""
    spent = ledger.accounts.spent(run)
    parts = [
        f"{duration(spent['hours'] * 3600)} at work",
        f"{duration(spent['device_seconds'])} on the device",
    ]
    if spent["tokens"] or spent["usd"]:
        parts += [f"{spent['usd']:.2f} USD", f"{spent['tokens']:,.0f} tokens"]
    bound = spent["in_flight_usd"]
    most = f"; {bound:.2f} USD of it are the most that requests without an answer can have cost"
    return f"spent: {', '.join(parts)}{most if bound else ''}"


def _listed(experiments: Sequence[Experiment]) -> Iterator[str]:
    """What was kept, and the last SHOWN."""
    earlier, last = experiments[:-SHOWN], experiments[-SHOWN:]
    kept = [experiment for experiment in earlier if experiment.outcome.status == KEEP]
    if left_out := len(earlier) - len(kept):
        yield f"{'':5}{left_out} earlier ones that were not kept: python -m agent export --tsv"
    for experiment in [*kept, *last]:
        yield from _experiment(experiment)


def _experiment(experiment: Experiment) -> Iterator[str]:
    outcome = experiment.outcome
    yield f"{experiment.number:4} {outcome.status:7} {printable(experiment.hypothesis)}"
    if outcome.speed is not None:
        yield f"{'':13}{ratio(outcome.speed, outcome.speed_low, outcome.speed_high)} time, {outcome.blocks or 'unknown'} blocks of calls"
    if outcome.bpb_change is not None:
        shown = bits(outcome.bpb_change, outcome.bpb_low, outcome.bpb_high)
        rate = (
            ""
            if outcome.rate is None
            else f"; {ratio(outcome.rate, outcome.rate_low, outcome.rate_high)} tokens/s"
        )
        yield f"{'':13}{shown} BPB{rate}; {pairs(outcome.pairs)} of trials"
    passed = []
    for i, gate in enumerate(experiment.gates):
        if gate.passed:
            passed.append(f"{gate.name} {duration(gate.seconds)}")
        elif i + 1 < len(experiment.gates):  # a repair came after it, and began anew
            yield f"{'':13}repaired after {gate.name}: {_short(gate.reason)}"
            passed = []
    if passed:
        yield f"{'':13}passed {', '.join(passed)}"
    if outcome.reason:  # none while it is under way
        yield f"{'':13}{_short(outcome.reason)}"


def _counts(experiments: Sequence[Past]) -> str:
    if not experiments:
        return "no experiment"
    statuses = Counter(experiment.outcome.status for experiment in experiments)
    refused = Counter(e.refused_by for e in experiments if e.refused_by)
    by_gate = f" ({', '.join(f'{n} by {gate}' for gate, n in refused.items())})" if refused else ""
    words = [f"{n} {_PAST.get(s, s)}{by_gate if s == REFUSE else ''}" for s, n in statuses.items()]
    return f"{count(len(experiments), 'experiment')}: {', '.join(words)}"


def _next(run: Run, experiments: list[Experiment], kept_as: str) -> Iterator[str]:
    if any(experiment.outcome.status == KEEP for experiment in experiments):
        yield f"kept as  {kept_as}"
        yield ""
        yield f"see it   git diff {run.start[:9]} {kept_as}"
        replaced = (
            f"   (this includes the files of {run.settings.start}, in place of the shipped ones)"
            if run.settings.start
            else ""
        )
        yield f"take it  git merge {kept_as}{replaced}"
    else:
        yield ""
    yield f"go on    python -m agent --resume {run.id}   (after a limit, give a higher one, counted from the run's start: --experiments, --hours, --gpu-hours, --usd or --tokens)"
    yield "export   python -m agent export --tsv"


def _short(text: str, width: int = 150) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 3] + "..."
