"""The loop: propose, gates, trial, verdict, ledger. What is kept becomes the incumbent; everything is remembered.

While one proposal is trained, the next is prepared (made, built, found correct: preparing.py), if its proposer works ahead. Here they
are measured, one at a time, and decided by paired trials (contest.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from agent import gains, gates, standard, surface
from agent.ahead import Ahead
from agent.contest import Contest
from agent.guard import LoopError
from agent.machine import DEVICE
from agent.preparing import BaseMoved, Prepared, Preparing, gate_by_gate
from agent.proposers import Proposer
from agent.records import DROP, KEEP, REFUSE, Outcome
from agent.site import Site
from bench.plan import BASELINES

# How often the limits are looked at while the loop waits for a proposal: a model may be away for hours.
LOOK_S = 5.0


class Loop:
    """One run, from where the ledger says it stands."""

    def __init__(
        self, site: Site, *, proposer: Proposer, agenda: str, brought: Sequence[str]
    ) -> None:
        self.run_id, self.settings, self.start = site.run.id, site.run.settings, site.run.start
        self.shop, self.ledger, self.judge, self.screen = site.shop, site.shop.ledger, site.shop.judge, site.shop.screen  # fmt: skip
        self.workspace, self.trials, self.guard = site.workspace, site.trials, site.guard
        self.hours, self.champion, self.proposer = site.hours, site.champion, proposer
        self.contest = Contest(site)
        self.preparing = Preparing(site, proposer=proposer, agenda=agenda, brought=brought)

    @property
    def incumbent(self) -> str:
        return self.preparing.incumbent

    def run(self) -> str:
        """Go on until the budget is spent or nothing is left to try; returns why it ended."""
        if (why := self._spent()) is not None:
            return why
        if unmarked := self.preparing.unmarked():
            return unmarked
        self._baseline()
        # Prune concerns keeps alone; what waits for its trial is left to the run itself.
        waits = () if self.proposer.name == standard.PRUNE else self.preparing.waiting()
        for waiting in waits:
            if (why := self._spent()) is not None:
                return why
            self._try(waiting)
        with Ahead(self._prepare, self.proposer.ahead, self.shop.stop) as prepared:
            idle = False
            while (why := self._spent()) is None:
                made = prepared.next(LOOK_S)
                if made is None and not idle:
                    self.screen.stage("")
                idle = made is None
                # One of those that filled the limit may have been lost since this was said.
                if isinstance(made, str) and (made != self._full or self._enough() is not None):
                    return made
                if isinstance(made, Prepared):
                    self._try(made)
        return why

    def _prepare(self) -> Prepared | str:
        """The next proposal that is worth a trial, or why there is none."""
        while (why := self._spent() or self._enough()) is None:
            made = self.preparing.next()
            if made is not None:
                return made
        return why

    def _try(self, prepared: Prepared) -> None:
        """Measure a proposal against the current incumbent, train with it, decide."""
        experiment = prepared.experiment
        self.ledger.take_experiment(experiment)
        spent = self.trials.seconds
        try:
            with self.guard.watch(experiment, "trial") as watched:
                watched.commit = prepared.commit
                try:
                    current = self.preparing.rebased(prepared)
                except BaseMoved as moved:
                    watched.outcome = Outcome(DROP, str(moved))
                else:
                    watched.commit = current.commit
                    watched.outcome = self._decide(current)
                self.guard.verify()
        except KeyboardInterrupt:
            # A model or an agent was paid for it, and its trials so far are remembered: it waits until the run is resumed.
            if self.proposer.ahead or prepared.proposer != self.proposer.name:
                self.ledger.ready_experiment(experiment)
            raise
        outcome = watched.close(self.trials.seconds - spent)
        if outcome.status == KEEP:
            self.preparing.incumbent = watched.commit
            if stays := self.workspace.advance(watched.commit):
                self.screen.say(f"  {stays}")
        else:
            self.workspace.forget(watched.commit)
        self.hours.tick()
        said = "" if outcome.status == REFUSE else f": {outcome.reason}"
        self.screen.say(f"  {outcome.status}{said}  ({prepared.hypothesis})")
        # `prune` measures the gain at its end
        if outcome.status == KEEP and prepared.proposer != standard.PRUNE:
            with self.guard.spare(self.screen.say):
                self.champion.keep(self.incumbent)

    def _decide(self, prepared: Prepared) -> Outcome:
        asked = standard.of(prepared.proposer)
        context = gates.Context(self.judge, self.settings.op, must_win=asked.must_win)
        steps = asked.steps(gates.MEASURING)
        results = gate_by_gate(self.shop, prepared.experiment, prepared.candidate, context, steps)
        last = results[-1]
        if not last.passed:
            outcome = Outcome(REFUSE, f"{last.name}: {last.reason}")
        else:
            outcome = self.contest.decide(prepared, asked, results)
        return replace(outcome, **gains.timed(results))

    def _baseline(self) -> None:
        """Build the incumbent and train it on BASELINES seeds, for the first estimate of the noise. Raises LoopError if it does not."""
        which, mend = "the start", "try `python -m agent trial`"
        if self.preparing.brought:  # of which that command sees nothing
            mend = "mend the files of --start, and begin a new run"
        if self.incumbent != self.start:
            which = f"the incumbent, commit {self.incumbent[:12]},"
            mend = "it has trained before, so look at this machine: python -m agent doctor"
        tree = self.workspace.checkout(self.incumbent)
        # Runners can read the cache of built objects but not fill it: without this each of them would compile for itself.
        self.screen.stage("building the incumbent's kernels")
        built = self.judge.build(tree, surface.sources(tree))
        if not built.passed:
            raise LoopError(f"{which} does not build: {built.reason}")
        if self.incumbent == self.start:
            self._require_right(tree)
        for seed in range(self.settings.seed, self.settings.seed + BASELINES):
            result = self.trials.result(self.incumbent, tree, seed, "incumbent")
            if result.failure in ("late", "crash"):  # a moment of the machine's may be why
                result = self.trials.run(self.incumbent, tree, seed, "incumbent once more")
            if not result.ok:
                if result.failure == "late":
                    mend = "a step takes long here: give longer trials (--seconds), or this machine no other work"
                raise LoopError(
                    f"{which} does not train: {result.failure}: {result.detail}; {mend}"
                )
        self.screen.say(f"noise of val_bpb from seed to seed: {self.trials.noise()}")

    def _require_right(self, tree: Path) -> None:
        """The files of --start have passed no gate: were they wrong, parity would refuse every right candidate."""
        for op in surface.touched_ops(self.preparing.brought, tree, self.judge.ops()):
            self.screen.stage(f"checking the start's {op}")
            with self.shop.machine.hold(DEVICE):
                found = self.judge.correctness(op, tree)
            if not found.passed:
                raise LoopError(
                    f"the start's {op} is wrong: {found.reason}; mend it, and begin a new run"
                )

    def _spent(self) -> str | None:
        """Which limit is reached, in words, or None. Money and tokens are up to the purse, which refuses a call before it is sent."""
        limit = self.settings.experiments
        if limit is not None and self.ledger.finished(self.run_id) >= limit:
            return self._full
        return self.hours.over(lambda: self.champion.aside_s(self.incumbent))

    @property
    def _full(self) -> str:
        limit = self.settings.experiments
        return "1 experiment is done" if limit == 1 else f"{limit} experiments are done"

    def _enough(self) -> str | None:
        """Why no further proposal is needed, although the run goes on: those under way fill the limit."""
        limit = self.settings.experiments
        if limit is not None and self.preparing.begun() >= limit:
            return self._full
        return None
