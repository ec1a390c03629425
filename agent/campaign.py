"""A run from start to end: opened or resumed, looped until it ends, what it kept measured again, summed up.

And what can be done with it later: `prune` and `report --rerun`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent import claims, integrity, proposers, report, site, surface
from agent.figures import count
from agent.guard import LoopError
from agent.judging import Bench, Judging
from agent.lab import Lab, Unusable, device, overlay
from agent.ledger import Ledger
from agent.loop import Loop
from agent.proposers import Proposer, Workshop
from agent.prune import Prune
from agent.records import Run, Settings
from agent.screen import Screen
from agent.site import Site
from agent.workspace import lock

STOPPED = "stopped"
# The settings that a run keeps as long as it lives.
FIXED = ("target", "seconds", "data", "device", "seed", "start")
# Those by which `auto` knows whom to ask, and the proposers to which they mean something.
NAMES_A_PROPOSER = {
    "recording": {"replay"}, "command": {"command"}, "base_url": proposers.MODELS, "models": proposers.MODELS,
}  # fmt: skip


def run(lab: Lab, settings: Settings, screen: Screen, judge: Judging | None = None) -> str:
    """A new run; its summary."""
    with lock(lab.folder):
        settings = _with_proposer(settings, screen)
        if settings.start is not None:
            overlay(Path(settings.start))  # a mistake in it is told at once, as in _ready
        settings, judge = _ready(lab, settings, screen, judge)
        settings = replace(settings, judge=integrity.of_judge(lab.root).digest)
        ledger = lab.ledger()
        opened = _open(lab, ledger, settings, judge, screen)
        return _work(lab, opened, ledger, judge, screen, begin=lambda: ledger.start_run(opened))


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
        found = _located(lab, ledger.run(name))
        settings = _with_proposer(resumed_settings(found.settings, changes), screen)
        settings, judge = _ready(lab, settings, screen, judge)
        changed = [key for key in FIXED if getattr(settings, key) != getattr(found.settings, key)]
        if changed:
            raise Unusable(
                f"--resume keeps {', '.join(changed)} of run {found.id}, so that its figures stay comparable: "
                "leave that out, or begin a new run"
            )
        opened = _reopened(lab, found, settings, screen)
        return _work(lab, opened, ledger, judge, screen, lambda: _enter(ledger, opened, screen))


def prune(lab: Lab, name: str | None, screen: Screen, judge: Judging | None = None) -> str:
    """Take the keeps of the run `name` (the latest without one) out again, one by one, without a limit; its summary."""
    with lock(lab.folder):
        ledger = lab.ledger()
        opened, judge = _kept(lab, ledger, name, screen, judge)
        free = _without_limits(opened)
        return _work(
            lab, free, ledger, judge, screen, lambda: _enter(ledger, opened, screen), Prune
        )


def rerun(lab: Lab, name: str | None, screen: Screen, judge: Judging | None = None) -> str:
    """Run the champion of the run `name` (the latest without one) against its start once more, as the end of a run does; its report."""
    with lock(lab.folder):
        ledger = lab.ledger()
        opened, judge = _kept(lab, ledger, name, screen, judge)
        free = _without_limits(opened)
        with site.at_work(lab, free, site.workshop(lab, free, ledger, judge, screen)) as here:
            _measured_again(here, opened.incumbent, train=True)
        return report.of_run(ledger, opened)


def _kept(
    lab: Lab, ledger: Ledger, name: str | None, screen: Screen, judge: Judging | None
) -> tuple[Run, Judging]:
    """A run that has kept something, reopened, and its judge. Raises Unusable if it has no keep."""
    found = _located(lab, ledger.run(name))
    if not claims.standing(ledger.history(found.id)):
        raise Unusable(f"run {found.id} has no keep: nothing to take out, and nothing to run again")
    settings, judge = _ready(lab, found.settings, screen, judge)
    return _reopened(lab, found, settings, screen), judge


def _located(lab: Lab, run: Run) -> Run:
    """The run with its data where they are now: the checkout may have been moved, and its data with it."""
    here = lab.data / Path(run.settings.data).name
    if Path(run.settings.data).exists() or not here.is_dir():
        return run
    return replace(run, settings=replace(run.settings, data=str(here)))


def _without_limits(run: Run) -> Run:
    free = replace(
        run.settings, experiments=None, hours=None, gpu_hours=None, usd=None, tokens=None
    )
    return replace(run, settings=free)


def _reopened(lab: Lab, found: Run, settings: Settings, screen: Screen) -> Run:
    """The run with these settings, under the judge as it is now."""
    seal = integrity.of_judge(lab.root).digest
    if settings.judge not in ("", seal):
        screen.say(
            "the judge has changed since this run was last open; if bench/ has, trials are measured anew"
        )
    return replace(found, settings=replace(settings, judge=seal))


def _enter(ledger: Ledger, run: Run, screen: Screen) -> None:
    lost = ledger.reopen_run(run.id, run.settings)
    those = "1 experiment was in flight and is" if lost == 1 else f"{lost} experiments were in flight and are"  # fmt: skip
    said = f"; {those} lost" if lost else ""
    screen.say(f"going on with run {run.id}{said}")


def _ready(
    lab: Lab, settings: Settings, screen: Screen, judge: Judging | None
) -> tuple[Settings, Judging]:
    """Settings with device and data filled in, and the judge that measures under them."""
    # Mistakes in the options are told first: preparing the data for the first time takes half a minute.
    if settings.op is not None and settings.target == "model":
        raise Unusable(f"--op {settings.op} is a kernel, and --target model changes none: leave one of the two out")  # fmt: skip
    ops = (judge or Bench()).ops()
    if settings.op is not None and settings.op not in ops:
        raise Unusable(f"--op {settings.op}: expected one of {', '.join(ops)}")
    if judge is None:
        settings = replace(settings, device=device(settings.device))
        dataset = lab.dataset(settings.data or None, screen)
        settings = replace(settings, data=str(dataset.directory))
        judge = Bench(settings.device, dataset, settings.seconds)
    return settings, judge


def _open(lab: Lab, ledger: Ledger, settings: Settings, judge: Judging, screen: Screen) -> Run:
    repository = lab.repository()
    if repository.tip("lab") is not None:
        raise Unusable(
            "a branch named lab is in the way of a run's own, lab/RUN; rename it: git branch -m lab OTHER"
        )
    base = repository.resolve("HEAD")
    dirty = repository.dirty(surface.FOLDERS)
    if dirty:
        screen.say(f"this run starts from HEAD, without your uncommitted {', '.join(dirty)}")
    start = base
    if settings.start is not None:
        files = overlay(Path(settings.start))
        if astray := _unused(files, judge.ops()):
            raise Unusable(
                f"--start {settings.start}: no op uses {', '.join(astray)}; name a file as its op: {', '.join(judge.ops())}"
            )
        if bare := [p for p in files if Path(p).stem in judge.ops() and _is_bare(p, files[p])]:
            raise Unusable(
                f"--start {settings.start}: {', '.join(bare)} has no IMPLEMENTATIONS, which a model asks for, though the gate does not: "
                "write a whole kernel file, with impl=, as kernels/rms_norm.py is"
            )
        start = repository.commit(base, files, f"lab: start from {settings.start}\n")
        screen.say(
            f"the run starts from {', '.join(files)} of {settings.start}, in place of the shipped ones"
        )
    if settings.op is not None and not repository.files(start, [f"kernels/{settings.op}.py"]):
        raise Unusable(
            f"--op {settings.op}: commit {start[:12]} has no kernels/{settings.op}.py, and a first kernel has nothing to be faster than: "
            "commit one that `python -m agent gate` passes, or bring it with --start"
        )
    taken = {run.id for run in ledger.runs()}
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = next(n for n in (stamp, *(f"{stamp}-{i}" for i in range(2, 100))) if n not in taken)
    return Run(name, settings, base, start, start, time.time())


def _is_bare(path: str, text: str | None) -> bool:
    return path.endswith(".py") and "IMPLEMENTATIONS" not in (text or "")


def _unused(files: Mapping[str, str | None], ops: Sequence[str]) -> list[str]:
    """Which files of --start neither belong to an op nor are named by one that does; a header may belong to nobody."""
    loaded = {
        stem
        for path, text in files.items()
        if Path(path).stem in ops
        for stem in surface.named(text or "")
    }
    return [p for p in files if Path(p).suffix != ".h" and Path(p).stem not in loaded.union(ops)]


def _work(
    lab: Lab,
    run: Run,
    ledger: Ledger,
    judge: Judging,
    screen: Screen,
    begin: Callable[[], None],
    make: Callable[[Workshop], Proposer] | None = None,
) -> str:
    """Work on a run until it ends; its summary.

    `begin` enters the run in the ledger. It is called when all that the run needs is there; before, nothing is recorded. `make` gives
    the proposer, if it is not the one of the settings.
    """
    workshop = site.workshop(lab, run, ledger, judge, screen)
    proposer = make(workshop) if make else proposers.create(run.settings.proposer, workshop)
    agenda = lab.agenda()
    begin()
    with site.at_work(lab, run, workshop) as here:
        brings = brought(run.settings)
        loop = Loop(here, proposer=proposer, agenda=agenda, brought=brings)
        what = describe(run.settings, proposer.name)
        screen.say(f"run {run.id}: {what}; Ctrl-C ends it with a summary")
        if said := proposers.about_money(proposer.name, run.settings):
            screen.say(said)
        try:
            why = loop.run()
        except KeyboardInterrupt:
            why = STOPPED
        except LoopError:
            kept = ledger.run(run.id).incumbent
            named = f"; kept: {here.workspace.name(kept)}" if kept != run.start else ""
            screen.say(f"ended by a fault{named}; what was tried: python -m agent status {run.id}")
            raise
        # As the ledger has it: Ctrl-C may have come between a keep's row and its branch.
        incumbent = ledger.run(run.id).incumbent
        again = "; what was kept is measured again (Ctrl-C leaves that out)"
        screen.say(f"ending: {why}{again if incumbent != run.start else ''}")
        if stays := here.workspace.advance(incumbent):
            screen.say(stays)
        with here.guard.spare(screen.say):
            _measured_again(here, incumbent, train=why != STOPPED)
        kept_as = here.workspace.name(incumbent)
    ledger.end_run(run.id)
    return report.summary(ledger, ledger.run(run.id), why, lab.folder / "ledger.sqlite", kept_as)


def _measured_again(here: Site, incumbent: str, train: bool) -> None:
    """Time the champion's kernels, which takes seconds, and `train` it, which takes minutes. Ctrl-C leaves out what is left."""
    try:
        here.champion.time_again(incumbent)
        if train:
            here.champion.run_again(incumbent)
    except KeyboardInterrupt:
        here.shop.screen.say("stopped before all that was kept was measured again")


def resumed_settings(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """The settings with changes; who proposes is chosen anew where one of them is nothing to the proposer."""
    now = replace(settings, **changes)
    other = any(
        name in changes and now.proposer not in known for name, known in NAMES_A_PROPOSER.items()
    )
    if "proposer" in changes or not other:
        return now
    gone: dict[str, Any] = {
        name: None for name in ("recording", "command", "base_url") if name not in changes
    }
    return replace(now, proposer=proposers.AUTO, **gone)


def _with_proposer(settings: Settings, screen: Screen) -> Settings:
    """The settings with the proposer that they choose here and now: a run keeps it, whatever key is set when it goes on."""
    name, why = proposers.choose(settings)
    if settings.proposer == proposers.AUTO:
        screen.say(f"proposer {name}: {why}")
    return replace(settings, proposer=name)


def describe(settings: Settings, proposer: str) -> str:
    """The settings in words."""
    what = settings.op or settings.target
    limits = [count(settings.experiments, "experiment")] if settings.experiments else []
    limits += [count(settings.hours, "hour")] if settings.hours else []
    limits += [f"{count(settings.gpu_hours, 'hour')} of the device"] if settings.gpu_hours else []
    limits += [f"{settings.usd:.2f} USD"] if settings.usd is not None else []
    limits += [f"{settings.tokens:,} tokens"] if settings.tokens else []
    until = " or ".join(limits) or "until nothing is left to try or you stop it"
    return f"{what}, proposer {proposer}, {until}, trials of {settings.seconds:g} s on {settings.device}"


def brought(settings: Settings) -> tuple[str, ...]:
    """The paths that the files of --start have in the tree; none if the folder is gone, or holds none any more."""
    try:
        return tuple(overlay(Path(settings.start))) if settings.start else ()
    except Unusable:
        return ()
