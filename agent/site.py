"""Puts together what works on a run: the parts of which its loop, or a re-run of its champion, is made."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from agent import integrity, trials
from agent.champion import Champion
from agent.coder import headless
from agent.guard import Guard
from agent.hours import Hours
from agent.judging import Judging
from agent.lab import Lab
from agent.ledger import Ledger
from agent.machine import Machine
from agent.proposers import Workshop
from agent.records import Run, TrialKey
from agent.screen import Screen
from agent.workspace import Workspace, clear_leftovers, clear_old_builds
from bench import identity


@dataclass(frozen=True)
class Site:
    """The parts that every piece of work on a run needs."""

    run: Run
    shop: Workshop
    workspace: Workspace
    trials: trials.Trials
    hours: Hours
    guard: Guard
    champion: Champion


def workshop(lab: Lab, run: Run, ledger: Ledger, judge: Judging, screen: Screen) -> Workshop:
    """What a proposer may use. Nothing is recorded yet; what killed runs left, and what was built long ago, is removed."""
    if ended := headless.end_leftovers(lab.folder):
        screen.say(f"ended {ended} processes of a coding agent, which a killed run had left")
    for stays in clear_leftovers(lab.folder):
        screen.say(f"{stays} cannot be removed, and is left: what is in it may be another user's")
    clear_old_builds(lab.folder)
    return Workshop(
        run.settings, run.id, lab.folder / "runs" / run.id, ledger, lab.repository(), judge,
        Machine(run.settings.device), screen, threading.Event(),
    )  # fmt: skip


@contextmanager
def at_work(lab: Lab, run: Run, shop: Workshop) -> Iterator[Site]:
    """Work on a run that is in the ledger. Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt inside; at the end the trees are removed."""
    workspace = Workspace(shop.repository, lab.folder, run.id)
    if stays := workspace.advance(run.incumbent):
        shop.screen.say(stays)
    settings = run.settings
    key = TrialKey(
        tree="", judge=identity.content(lab.root, ("bench",))[:16], machine=trials.machine(settings.device), dataset=Path(settings.data).name,
        device=settings.device, seconds=settings.seconds, seed=settings.seed,
    )  # fmt: skip
    measured = trials.Trials(run, shop, key, workspace.tree_hash)
    hours = Hours(run, shop.ledger, shop.machine)
    guard = Guard(shop.ledger, workspace.folder, integrity.of_judge(lab.root))
    champion = Champion(
        run, shop, workspace=workspace, trials=measured, hours=hours, verify=guard.verify
    )
    # SIGINT too: a shell starts a job in the background with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    # Under nohup SIGHUP stays ignored, so that the run outlives its terminal.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        yield Site(run, shop, workspace, measured, hours, guard, champion)
    finally:
        shop.stop.set()
        try:
            workspace.close()  # first, since it makes room where a full disk ended the run
        finally:
            hours.tick()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
