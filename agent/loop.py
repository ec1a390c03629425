"""The loop: propose, gates, trial, verdict, ledger. What is kept becomes the incumbent; everything is remembered.

A proposal is prepared (made, built, found correct: preparing.py) while the trial of the one before goes on, if its proposer works ahead.
It is measured, tried and decided here, one at a time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agent import gates, integrity, lines, surface
from agent.judging import Unfit
from agent.machine import DEVICE
from agent.pipeline import Ahead
from agent.preparing import BaseMoved, Guard, LoopError, Prepared, Preparing, gate_by_gate
from agent.proposers import Proposer, Workshop
from agent.records import CRASH, DROP, KEEP, REFUSE, GateResult, Outcome, Run
from agent.screen import duration
from agent.trials import Trials
from agent.workspace import Workspace
from bench.plan import BASELINES, ENOUGH_NOISE, MAX_PAIRS, RECHECK_TRIALS

if TYPE_CHECKING:
    from bench.trial import TrialResult
    from bench.verdict import Verdict


@dataclass(frozen=True)
class _Tried:
    """Paired trials and what they came to."""

    ours: list[TrialResult]
    theirs: list[TrialResult]
    verdict: Verdict

    @property
    def kept(self) -> bool:
        return self.verdict.decision == "keep"


class Loop:
    """One run, from where the ledger says it stands. Every part is given, so a test gives others."""

    def __init__(
        self,
        run: Run,
        workshop: Workshop,
        *,
        workspace: Workspace,
        proposer: Proposer,
        trials: Trials,
        agenda: str = "",
        brought: Sequence[str] = (),
        seal: integrity.Seal | None = None,
        steps: gates.Steps = gates.GATES,
    ) -> None:
        self.settings, self.run_id, self.start = run.settings, run.id, run.start
        self.ledger, self.repository, self.judge = workshop.ledger, workshop.repository, workshop.judge  # fmt: skip
        self.screen, self.machine, self.stop = workshop.screen, workshop.machine, workshop.stop
        self.workspace, self.proposer, self.trials = workspace, proposer, trials
        self.steps = [step for step in steps if step[0] in gates.MEASURING]
        self.guard = Guard(self.ledger, workspace.folder, seal)
        self.stretch = self.ledger.begin_stretch(run.id)
        self.preparing = Preparing(
            run, workshop, workspace=workspace, proposer=proposer, guard=self.guard, agenda=agenda, brought=brought,
            steps=[step for step in steps if step[0] not in gates.MEASURING],
        )  # fmt: skip

    @property
    def incumbent(self) -> str:
        return self.preparing.incumbent

    def run(self) -> str:
        """Go on until the budget is spent or nothing is left to try; why it ended."""
        self._baseline()
        for waiting in self.preparing.waiting():
            self._try(waiting)
        with Ahead(self._prepare, self.proposer.ahead, self.stop) as prepared:
            while (why := self._spent()) is None:
                made = prepared.next()
                if isinstance(made, str):
                    return made
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
        """Measure a proposal against the incumbent of now, train with it, decide."""
        number = prepared.number
        self.ledger.take_experiment(number)
        spent = self.trials.seconds
        with self.guard.watch(number) as watched:
            watched.commit = prepared.commit
            try:
                current = self.preparing.rebased(prepared)
            except BaseMoved as moved:
                watched.outcome = Outcome(DROP, str(moved))
            else:
                watched.commit = current.commit
                watched.outcome = self._decide(current)
            self.guard.verify()
        outcome = watched.close(self.trials.seconds - spent)
        if outcome.status == KEEP:
            self.preparing.incumbent = watched.commit
            self.workspace.advance(watched.commit)
        else:
            self.workspace.forget(watched.commit)
        self._tick()
        said = "" if outcome.status == REFUSE else f": {outcome.reason}"
        self.screen.say(f"  {outcome.status}{said}  ({prepared.hypothesis})")

    def _decide(self, prepared: Prepared) -> Outcome:
        context = gates.Context(self.judge, self.settings.op)
        results = gate_by_gate(
            self.ledger, self.screen, self.machine, prepared.number, prepared.candidate, context, self.steps
        )  # fmt: skip
        if results and not results[-1].passed:
            last = results[-1]
            return Outcome(REFUSE, f"{last.name}: {last.reason}", speed=_speed(results))
        return self._trial(prepared, results)

    def confirm(self) -> None:
        """Measure each kernel that the run has changed once more, champion against start, with fresh inputs."""
        paths = [change.path for change in self.repository.changes(self.start, self.incumbent)]
        if not any(surface.is_kernel(path) for path in paths):
            return
        start = self.workspace.checkout(self.start)
        champion = self.workspace.checkout(self.incumbent)
        for op in surface.touched_ops(paths, champion, self.judge.ops()):
            self.screen.stage(f"measuring {op} again, champion against start", 20)
            try:
                with self.machine.hold(DEVICE):
                    found = self.judge.compare(op, start, champion)
            except Unfit as unfit:
                self.screen.say(f"  {op} could not be measured again: {unfit}")
                continue
            self.guard.verify()
            self.ledger.add_confirmation(
                self.run_id, op, self.incumbent, found.ratio, found.low, found.high
            )

    def _baseline(self) -> None:
        tree = self.workspace.checkout(self.incumbent)
        # Runners read the cache of built objects and cannot fill it: without this every one of them would compile for itself.
        self.screen.stage("building the incumbent's kernels")
        built = self.judge.build(tree, surface.sources(tree))
        if not built.passed:
            raise LoopError(f"the start does not build: {built.reason}")
        for seed in range(self.settings.seed, self.settings.seed + BASELINES):
            result = self.trials.result(self.incumbent, tree, seed, "incumbent")
            if not result.ok:
                raise LoopError(
                    f"the start does not train: {result.failure}: {result.detail}; try `python -m agent trial`"
                )
        self.screen.say(f"noise of val_bpb from seed to seed: {self.trials.noise(self.start)}")

    def _trial(self, prepared: Prepared, results: Sequence[GateResult]) -> Outcome:
        """Paired trials, a verdict, and what has to be true before a keep counts."""
        sealed = integrity.of_tree(prepared.candidate.tree)
        self._recheck(prepared, RECHECK_TRIALS * self.settings.seconds)
        began, spent = time.time(), self.trials.seconds
        tried = self._pairs(prepared, results)
        # A machine that became faster meanwhile makes a gain of its own: if anything was trained for a keep, the incumbent once more, now.
        kept = isinstance(tried, _Tried) and tried.kept and self.trials.seconds > spent
        if kept and self._recheck(prepared, time.time() - began):
            tried = self._pairs(prepared, results)
        if changed := sealed.changed():
            return Outcome(REFUSE, f"trial: {', '.join(changed[:5])} changed while it was trained")
        if isinstance(tried, Outcome):
            return replace(tried, speed=_speed(results))
        verdict, reason = tried.verdict, tried.verdict.reason
        said = GateResult("verdict", tried.kept, reason, verdict.evidence, time.time() - began)
        self.ledger.add_gate(prepared.number, said)
        if tried.kept and verdict.flag:
            if refused := self._examined_again(prepared, verdict.flag):
                return Outcome(REFUSE, refused, speed=_speed(results))
            reason += f"; flagged, and found correct again: {verdict.flag}"
        ours, theirs = tried.ours, tried.theirs
        return Outcome(
            KEEP if tried.kept else DROP,
            reason,
            speed=_speed(results),
            val_bpb=_mean([result.val_bpb for result in theirs]),
            bpb_change=_mean([t.val_bpb - o.val_bpb for t, o in zip(theirs, ours, strict=True)]),
            peak_memory_mb=max(result.peak_memory_mb for result in theirs),
        )

    def _pairs(self, prepared: Prepared, results: Sequence[GateResult]) -> _Tried | Outcome:
        """Candidate and incumbent trained seed by seed, until the verdict is not "again"; an outcome where one does not train."""
        candidate = prepared.candidate
        kind = "kernels" if all(surface.is_kernel(path) for path in candidate.paths) else "model"
        added = lines.added(candidate.changes)
        ours: list[TrialResult] = []
        theirs: list[TrialResult] = []
        for seed in range(self.settings.seed, self.settings.seed + MAX_PAIRS):
            theirs.append(self.trials.result(prepared.commit, candidate.tree, seed, "candidate"))
            self._tick()
            if not theirs[-1].ok:
                return Outcome(CRASH, f"trial: {theirs[-1].failure}: {theirs[-1].detail}")
            ours.append(self.trials.result(prepared.parent, candidate.incumbent, seed, "incumbent"))
            if not ours[-1].ok:
                return Outcome(DROP, f"the incumbent's own trial failed: {ours[-1].failure}")
            noise = self.trials.noise(self.start)
            verdict = self.judge.decide(kind, _claim(results), ours, theirs, noise, lines=added)
            if verdict.decision != "again":
                break
            if kind == "model":
                self._learn_noise(prepared)
        return _Tried(ours, theirs, verdict)

    def _learn_noise(self, prepared: Prepared) -> None:
        """Train the incumbent on further seeds, once a campaign, so that what looks promising can be told from luck."""
        for seed in range(self.settings.seed, self.settings.seed + ENOUGH_NOISE + BASELINES):
            if self.trials.noise(self.start).degrees >= ENOUGH_NOISE:
                return
            self.trials.result(prepared.parent, prepared.candidate.incumbent, seed, "incumbent, for the noise")  # fmt: skip
            self._tick()

    def _recheck(self, prepared: Prepared, older_s: float) -> bool:
        """Whether the machine has changed since the incumbent's last trial; that one is run again if it is older than that."""
        said = self.trials.recheck(prepared.parent, prepared.candidate.incumbent, self.settings.seed, older_s, self.start)  # fmt: skip
        self._tick()
        if said:
            self.screen.say(f"  the machine has changed: {said}; all trials from before are void")
        return bool(said)

    def _examined_again(self, prepared: Prepared, flag: str) -> str:
        """Put a kernel that gains more than it can through the correctness gate once more, with drawn and captured data; why it refuses, or ""."""
        self.screen.say(f"  flagged: {flag}; to the correctness gate again")
        context = gates.Context(self.judge, self.settings.op)
        found = gate_by_gate(
            self.ledger, self.screen, self.machine, prepared.number, prepared.candidate, context,
            [("correctness", gates.correctness)],
        )  # fmt: skip
        return "" if found[-1].passed else f"correctness: {found[-1].reason} (asked again: {flag})"

    def _tick(self) -> None:
        self.ledger.tick(self.stretch, self.machine.device_seconds)

    def _spent(self) -> str | None:
        """Why the budget is spent, or None. Money and tokens are the purse's to refuse, before a call is sent."""
        self._tick()
        limits = self.settings
        done = self.preparing.finished()
        if limits.experiments is not None and done >= limits.experiments:
            return f"{limits.experiments} experiments are done"
        worked, held = self.ledger.worked(self.run_id)
        if limits.hours is not None and worked >= limits.hours * 3600:
            return f"{limits.hours:g} hours are over"
        if limits.gpu_hours is not None and held >= limits.gpu_hours * 3600:
            return (
                f"the device was used for {duration(held)}, the limit is {limits.gpu_hours:g} hours"
            )
        return None

    def _enough(self) -> str | None:
        """Why no further proposal is needed although the run goes on: those under way fill the limit."""
        limit = self.settings.experiments
        if limit is not None and self.preparing.begun() >= limit:
            return f"{limit} experiments are done"
        return None


def _claim(results: Sequence[GateResult]) -> dict[str, Any] | None:
    """The comparison of the op that gained most, from the microbench's evidence."""
    return min(_measured(results), key=lambda found: float(found["ratio"]), default=None)


def _speed(results: Sequence[GateResult]) -> float | None:
    """Geometric mean over the ops of candidate time / incumbent time; None if no op was timed."""
    measured = _measured(results)
    return math.exp(_mean([math.log(found["ratio"]) for found in measured])) if measured else None


def _measured(results: Sequence[GateResult]) -> list[dict[str, Any]]:
    """The comparisons, one an op, that the microbench left as evidence."""
    return [
        comparison
        for result in results
        if result.name == "microbench"
        for comparison in result.evidence.values()
        if isinstance(comparison, dict)
    ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
