"""The loop: propose, gates, trial, verdict, ledger. What is kept becomes the incumbent; everything is remembered."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from agent import gates, integrity, scope, surface
from agent.git import GitError, Repository
from agent.judging import Judging, Unfit
from agent.ledger import Ledger
from agent.proposers import Context, Proposer
from agent.records import (
    CRASH,
    DROP,
    KEEP,
    LOST,
    REFUSE,
    Candidate,
    GateResult,
    Outcome,
    Proposal,
    Run,
)
from agent.screen import Screen, duration
from agent.trials import Trials
from agent.workspace import Workspace

BASELINES = 2  # trials of the start, from which the first estimate of the noise comes
MAX_FAILURES = 3  # of the judge in a row, after which the run ends
MAX_PAIRS = 3  # paired trials a candidate may take before it counts as undecided


class LoopError(RuntimeError):
    """The loop cannot go on: its start does not train, or the judge is broken."""


class Loop:
    """One run, from where the ledger says it stands. Every part is given, so a test gives others."""

    def __init__(
        self,
        run: Run,
        *,
        ledger: Ledger,
        repository: Repository,
        workspace: Workspace,
        judge: Judging,
        proposer: Proposer,
        trials: Trials,
        screen: Screen,
        agenda: str = "",
        brought: Sequence[str] = (),
        seal: integrity.Seal | None = None,
        steps: Sequence[tuple[str, gates.Gate]] = gates.GATES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings, self.run_id, self.start, self.incumbent = (
            run.settings,
            run.id,
            run.start,
            run.incumbent,
        )
        self.ledger, self.repository, self.workspace, self.judge = (
            ledger,
            repository,
            workspace,
            judge,
        )
        self.proposer, self.trials, self.screen = proposer, trials, screen
        self.agenda, self.brought, self.steps, self.clock = agenda, tuple(brought), steps, clock
        self.seal = seal
        self.failures = 0

    def run(self) -> str:
        """Go on until the budget is spent or nothing is left to try; why it ended."""
        began = self.clock()
        self._baseline()
        while (why := self._spent(began)) is None:
            proposal = self.proposer.propose(self._context())
            if proposal is None:
                return f"proposer {self.proposer.name} has nothing left to try"
            self.experiment(proposal)
        return why

    def experiment(self, proposal: Proposal) -> Outcome:
        """One proposal, from workspace to verdict."""
        self._verify()
        parent = self.incumbent
        try:
            commit = self.workspace.commit(parent, proposal)
        except GitError as error:
            return self._not_applied(proposal, str(error))
        candidate = self.workspace.candidate(self.settings.target, parent, commit)
        earlier, digest = (
            self.ledger.patch_numbers(self.run_id),
            scope.patch_hash(candidate.changes),
        )
        number = self.ledger.open_experiment(
            self.run_id, proposal, parent, commit, candidate.patch, digest
        )
        self.screen.say(f"experiment {self._count()}: {proposal.hypothesis}")
        spent = self.trials.seconds
        try:
            context = gates.Context(self.judge, self.settings.op, earlier)
            results = self._gates(number, candidate, context)
            outcome = self._refused(results) or self._trial(candidate, parent, commit, results)
            self._verify()
            self.failures = 0
        except LoopError as error:
            self.ledger.close_experiment(number, Outcome(LOST, str(error)))
            raise
        except KeyboardInterrupt:
            self.ledger.close_experiment(number, Outcome(LOST, "stopped by Ctrl-C"))
            raise
        except Exception as error:
            # a candidate that trips the judge must not end the night, nor pass
            outcome = self._judge_failed(number, error)
        outcome = Outcome(**{**vars(outcome), "device_seconds": self.trials.seconds - spent})
        kept = outcome.status == KEEP
        self.ledger.close_experiment(number, outcome, commit if kept else None)
        if kept:
            self.incumbent = commit
            self.workspace.advance(commit)
        self.screen.say(
            f"  {outcome.status}" + ("" if outcome.status == REFUSE else f": {outcome.reason}")
        )
        return outcome

    def _verify(self) -> None:
        """Raises LoopError if the judge's files have changed since the run was opened."""
        try:
            if self.seal is not None:
                integrity.verify(self.seal)
        except integrity.Tampered as tampered:
            raise LoopError(
                f"{tampered}; nothing is lost: python -m agent --resume {self.run_id}"
            ) from None

    def _not_applied(self, proposal: Proposal, error: str) -> Outcome:
        """Record a proposal whose files git does not take."""
        parent, outcome = (
            self.incumbent,
            Outcome(REFUSE, f"the files cannot be written: {error}; name paths of the surface"),
        )
        number = self.ledger.open_experiment(self.run_id, proposal, parent, parent, "", "")
        self.ledger.close_experiment(number, outcome)
        self.screen.say(
            f"experiment {self._count()}: {proposal.hypothesis}\n  {outcome.status}: {outcome.reason}"
        )
        return outcome

    def _judge_failed(self, number: int, error: Exception) -> Outcome:
        """Record what went wrong; a judge that fails again and again is itself broken, and the run ends."""
        self.failures += 1
        log = self.workspace.folder / f"error-{number}.log"
        log.write_text("".join(traceback.format_exception(error)))
        outcome = Outcome(
            CRASH, f"the judge could not finish: {type(error).__name__}: {error}; see {log}"
        )
        if self.failures >= MAX_FAILURES:
            self.ledger.close_experiment(number, outcome)
            raise LoopError(
                f"the judge failed {self.failures} times in a row: {outcome.reason}"
            ) from error
        return outcome

    def confirm(self) -> None:
        """Measure each kernel that the run has changed once more, champion against start, with fresh inputs."""
        paths = [change.path for change in self.repository.changes(self.start, self.incumbent)]
        if not any(surface.is_kernel(path) for path in paths):
            return
        start = self.workspace.checkout("start", self.start)
        champion = self.workspace.checkout("incumbent", self.incumbent)
        for op in surface.touched_ops(paths, champion, self.judge.ops()):
            self.screen.stage(f"measuring {op} again, champion against start", 20)
            try:
                found = self.judge.compare(op, start, champion)
            except Unfit as unfit:
                self.screen.say(f"  {op} could not be measured again: {unfit}")
                continue
            self._verify()
            self.ledger.add_confirmation(
                self.run_id, op, self.incumbent, found.ratio, found.low, found.high
            )

    def _baseline(self) -> None:
        tree = self.workspace.checkout("incumbent", self.incumbent)
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
        self.screen.say(f"noise of val_bpb from seed to seed: {self.trials.noise():.4f}")

    def _gates(self, number: int, candidate: Candidate, context: gates.Context) -> list[GateResult]:
        results: list[GateResult] = []
        for result in gates.run(
            candidate, context, self.steps, lambda name: self.screen.stage(f"  {name}")
        ):
            self.ledger.add_gate(number, len(results), result)
            results.append(result)
            said = "passed" if result.passed else "refused"
            self.screen.say(
                f"  {result.name} {said} in {duration(result.seconds)}: {result.reason}"
            )
        return results

    def _refused(self, results: Sequence[GateResult]) -> Outcome | None:
        last = results[-1]
        return (
            None
            if last.passed
            else Outcome(REFUSE, f"{last.name}: {last.reason}", speed=_speed(results))
        )

    def _trial(
        self, candidate: Candidate, parent: str, commit: str, results: Sequence[GateResult]
    ) -> Outcome:
        """Paired trials, seed by seed, until the verdict is not "again"."""
        sealed = integrity.of_tree(candidate.tree)
        kind = "kernels" if all(surface.is_kernel(path) for path in candidate.paths) else "model"
        ours, theirs = [], []
        for seed in range(self.settings.seed, self.settings.seed + MAX_PAIRS):
            theirs.append(self.trials.result(commit, candidate.tree, seed, "candidate"))
            if not theirs[-1].ok:
                failed = theirs[-1]
                return Outcome(
                    CRASH, f"trial: {failed.failure}: {failed.detail}", speed=_speed(results)
                )
            ours.append(self.trials.result(parent, candidate.incumbent, seed, "incumbent"))
            if not ours[-1].ok:
                return Outcome(
                    DROP,
                    f"the incumbent's own trial failed: {ours[-1].failure}",
                    speed=_speed(results),
                )
            verdict = self.judge.decide(kind, _claim(results), ours, theirs, self.trials.noise())
            if verdict.decision != "again":
                break
        if changed := sealed.changed():
            return Outcome(REFUSE, f"trial: {', '.join(changed[:5])} changed while it was trained")
        kept = verdict.decision == "keep"
        undecided = (
            f"undecided after {MAX_PAIRS} paired trials: " if verdict.decision == "again" else ""
        )
        return Outcome(
            KEEP if kept else DROP,
            undecided + verdict.reason,
            speed=_speed(results),
            val_bpb=_mean([result.val_bpb for result in theirs]),
            bpb_change=_mean([t.val_bpb - o.val_bpb for t, o in zip(theirs, ours, strict=True)]),
            peak_memory_mb=max(result.peak_memory_mb for result in theirs),
        )

    def _context(self) -> Context:
        settings = self.settings
        return Context(
            run=self.run_id, incumbent=self.workspace.checkout("incumbent", self.incumbent), target=settings.target,
            op=settings.op, device=settings.device, seed=settings.seed, history=self.ledger.experiments(),
            agenda=self.agenda, brought=self.brought,
        )  # fmt: skip

    def _finished(self) -> int:
        return sum(e.outcome.status != LOST for e in self.ledger.experiments(self.run_id))

    def _count(self) -> str:
        limit = self.settings.experiments
        return f"{self._finished()} of {limit}" if limit else str(self._finished())

    def _spent(self, began: float) -> str | None:
        """Why the budget is spent, or None."""
        experiments, hours = self.settings.experiments, self.settings.hours
        if experiments is not None and self._finished() >= experiments:
            return f"{experiments} experiments are done"
        if hours is not None and self.clock() - began >= hours * 3600:
            return f"{hours:g} hours are over"
        return None


def _claim(results: Sequence[GateResult]) -> dict[str, Any] | None:
    """The comparison of the op that gained most, from the microbench's evidence."""
    measured = [
        c
        for r in results
        if r.name == "microbench"
        for c in r.evidence.values()
        if isinstance(c, dict)
    ]
    return min(measured, key=lambda comparison: float(comparison["ratio"]), default=None)


def _speed(results: Sequence[GateResult]) -> float | None:
    """Geometric mean over the ops of candidate time / incumbent time; None if no op was timed."""
    measured = [
        c
        for r in results
        if r.name == "microbench"
        for c in r.evidence.values()
        if isinstance(c, dict)
    ]
    return math.exp(_mean([math.log(c["ratio"]) for c in measured])) if measured else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
