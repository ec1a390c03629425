"""`python -m agent --target ...`: open a run or go on with one, loop until it ends, confirm what was kept, sum up."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from agent import integrity, proposers, report, trials
from agent.judging import Bench, Judging
from agent.lab import Lab, Unusable, device, overlay
from agent.ledger import Ledger
from agent.loop import Loop
from agent.machine import Machine
from agent.proposers import Workshop
from agent.records import Run, Settings, TrialKey
from agent.screen import Screen
from agent.surface import FOLDERS
from agent.workspace import Workspace, clear_leftovers, lock


def run(lab: Lab, settings: Settings, screen: Screen, judge: Judging | None = None) -> str:
    """A new run; its summary."""
    with lock(lab.folder):
        settings, judge = _ready(lab, settings, screen, judge)
        settings = replace(settings, judge=integrity.of_judge(lab.root).digest)
        if settings.op is not None and settings.op not in judge.ops():
            raise Unusable(f"--op {settings.op}: expected one of {', '.join(judge.ops())}")
        ledger = lab.ledger()
        opened = _open(lab, ledger, settings, screen)
        return _go(lab, opened, ledger, judge, screen, begin=lambda: ledger.start_run(opened))


def resume(
    lab: Lab,
    name: str | None,
    changes: Mapping[str, Any],
    screen: Screen,
    judge: Judging | None = None,
) -> str:
    """Go on with the run `name` (the latest without one), its settings replaced by `changes`; its summary."""
    with lock(lab.folder):
        ledger = lab.ledger()
        found = ledger.run(name)
        fixed = [
            key
            for key in ("target", "seconds", "data", "device", "seed", "start")
            if key in changes
        ]
        if any(changes[key] != getattr(found.settings, key) for key in fixed):
            raise Unusable(
                f"--resume keeps {', '.join(fixed)} of run {found.id}, so that its figures stay comparable"
            )
        settings, judge = _ready(lab, replace(found.settings, **changes), screen, judge)
        seal = integrity.of_judge(lab.root).digest
        if settings.judge not in ("", seal):
            screen.say(
                "the judge has changed since this run was last open: trials are measured anew"
            )
        opened = replace(found, settings=replace(settings, judge=seal))

        def begin() -> None:
            lost = ledger.reopen_run(opened.id, opened.settings)
            said = f"; {lost} experiment was in flight and is lost" if lost else ""
            screen.say(f"going on with run {opened.id}{said}")

        return _go(lab, opened, ledger, judge, screen, begin)


def _ready(
    lab: Lab, settings: Settings, screen: Screen, judge: Judging | None
) -> tuple[Settings, Judging]:
    """Settings with device and data found, and the judge that measures under them."""
    proposers.choose(settings)
    if judge is not None:
        return settings, judge
    dataset = lab.dataset(settings.data or None, screen)
    settings = replace(settings, device=device(settings.device), data=str(dataset.directory))
    return settings, Bench(settings.device, dataset, settings.seconds)


def _open(lab: Lab, ledger: Ledger, settings: Settings, screen: Screen) -> Run:
    repository = lab.repository()
    base = repository.resolve("HEAD")
    dirty = repository.dirty(FOLDERS)
    if dirty:
        screen.say(f"not in this run, which starts from HEAD: your uncommitted {', '.join(dirty)}")
    start = base
    if settings.start is not None:
        files = overlay(Path(settings.start))
        start = repository.commit(base, files, f"lab: start from {settings.start}\n")
        screen.say(
            f"the run starts from {', '.join(files)} of {settings.start}, in place of the shipped ones"
        )
    taken = {run.id for run in ledger.runs()}
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = next(n for n in (stamp, *(f"{stamp}-{i}" for i in range(2, 100))) if n not in taken)
    return Run(name, settings, base, start, start, time.time())


def _go(
    lab: Lab,
    run: Run,
    ledger: Ledger,
    judge: Judging,
    screen: Screen,
    begin: Callable[[], None],
) -> str:
    """Work on a run until it ends. Nothing is written down before `begin`, which is called when nothing can be missing any more."""
    repository = lab.repository()
    clear_leftovers(lab.folder)
    workspace = Workspace(repository, lab.folder, run.id)
    settings, machine, stop = run.settings, Machine(run.settings.device), threading.Event()
    workshop = Workshop(
        settings, run.id, run.start, workspace.folder, ledger, repository, judge, machine, screen, stop
    )  # fmt: skip
    name, why = proposers.choose(settings)
    if settings.proposer == proposers.AUTO:
        screen.say(f"proposer {name}: {why}")
    proposer = proposers.create(name, workshop)
    begin()
    workspace.advance(run.incumbent)
    key = TrialKey(
        tree="", judge=trials.judge_hash(lab.root / "bench"), machine=trials.machine(), dataset=Path(settings.data).name,
        device=settings.device, seconds=settings.seconds, seed=settings.seed,
    )  # fmt: skip
    measured = trials.Trials(ledger, judge, screen, run.id, key, workspace.tree_hash, machine)
    loop = Loop(
        run, workshop, workspace=workspace, proposer=proposer, trials=measured, agenda=lab.agenda(),
        brought=brought(settings), seal=integrity.of_judge(lab.root),
    )  # fmt: skip
    screen.say(f"run {run.id}: {describe(settings)}; Ctrl-C ends it with a summary")
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # a shell starts a job in the background with SIGINT ignored
        signal.signal(number, _interrupt)
    try:
        why = _until_stopped(loop)
        screen.say(f"ending: {why}; what was kept is measured again (Ctrl-C leaves that out)")
        try:
            loop.confirm()
        except KeyboardInterrupt:
            screen.say("left without measuring the kept kernels again")
    finally:
        stop.set()
        workspace.close()
    ledger.end_run(run.id)
    return report.summary(ledger, ledger.run(run.id), measured, why, lab.folder / "ledger.sqlite")


def _until_stopped(loop: Loop) -> str:
    """Why the loop ended."""
    try:
        return loop.run()
    except KeyboardInterrupt:
        return "stopped"


def describe(settings: Settings) -> str:
    """The settings in words."""
    what = settings.op or settings.target
    limits = [f"{settings.experiments} experiments"] if settings.experiments else []
    limits += [f"{settings.hours:g} hours"] if settings.hours else []
    limits += [f"{settings.gpu_hours:g} hours of the device"] if settings.gpu_hours else []
    limits += [f"{settings.usd:.2f} USD"] if settings.usd is not None else []
    limits += [f"{settings.tokens:,} tokens"] if settings.tokens else []
    until = " or ".join(limits) or "until you stop it"
    return f"{what}, proposer {settings.proposer}, {until}, trials of {settings.seconds:g} s on {settings.device}"


def brought(settings: Settings) -> tuple[str, ...]:
    """Where the files of --start went; none if the folder is gone."""
    folder = Path(settings.start) if settings.start else None
    return tuple(overlay(folder)) if folder is not None and folder.is_dir() else ()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
