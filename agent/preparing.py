"""A proposal on its way to a trial: made, recorded, put through the gates that need no quiet machine, repaired if one refuses it.

All of this may run in a thread of its own during a trial. What is ready waits in the ledger, with its commit held by a ref, so that a
kill loses neither the work nor the money in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from agent import bare_code, gates, merging, similarity, standard, surface
from agent.git import GitError
from agent.guard import MAX_FAILURES, LoopError, Watched
from agent.proposers import REPAIRS, Context, NoProposal, Proposer, Stopped, Workshop, sweep
from agent.records import CRASH, LOST, REFUSE, Candidate, Experiment, GateResult, Outcome, Proposal
from agent.screen import duration
from agent.settings_found import SWEEP
from agent.site import Site
from agent.spending import BudgetSpent
from bench import hardware

FULL = ("No space left on device", "Disk quota exceeded")  # as git says it
LONGEST_PAUSE_S = 300.0  # between attempts of a proposer that gives no proposal


class BaseMoved(Exception):
    """The incumbent has changed since, and the proposal does not fit it: the same lines changed, it is there already, or a gate refuses it there."""


@dataclass(frozen=True)
class Prepared:
    """A proposal that is worth a trial. `experiment` is its id in the ledger."""

    experiment: int
    proposer: str
    hypothesis: str
    parent: str
    commit: str
    candidate: Candidate


def gate_by_gate(
    shop: Workshop,
    experiment: int,
    candidate: Candidate,
    context: gates.Context,
    steps: gates.Steps,
) -> list[GateResult]:
    """Put a candidate through gates; every result is recorded as it comes."""
    results = []
    for result in gates.run(
        candidate, context, steps, lambda name: shop.screen.stage(f"  {name}"), shop
    ):
        shop.ledger.add_gate(experiment, result)
        results.append(result)
        said = "passed" if result.passed else "refused"
        shop.screen.say(f"  {result.name} {said} in {duration(result.seconds)}: {result.reason}")
    return results


class Preparing:
    """From a proposer's idea to a candidate that is worth a trial. `incumbent` is moved by the loop."""

    def __init__(
        self, site: Site, *, proposer: Proposer, agenda: str, brought: Sequence[str]
    ) -> None:
        run, shop = site.run, site.shop
        self.settings, self.run_id, self.incumbent = run.settings, run.id, run.incumbent
        self.shop, self.ledger, self.judge, self.screen = shop, shop.ledger, shop.judge, shop.screen
        self.workspace, self.proposer, self.guard = site.workspace, proposer, site.guard
        self.trials = site.trials
        self.agenda, self.brought = agenda, tuple(brought)
        self.hardware = hardware.name(run.settings.device)
        # In a row: calls of the proposer that gave no proposal, its errors, and proposals that git did not take.
        self._empty = self._failures = self._unwritten = 0

    # ---- from idea to candidate

    def unmarked(self) -> str:
        """Why a sweep would propose nothing, in words; "" for another proposer, and where it has something to search."""
        if self.proposer.name != SWEEP or sweep.spaces(self._context(self.incumbent)):
            return ""
        place = surface.describe(self.settings.target, self.settings.op)
        return (
            f"no constant in {place} is marked `# tune:` for what this device runs: mark one, take a wider target, or let a model or --command "
            "propose"
        )

    def next(self) -> Prepared | str | None:
        """A proposal that is worth a trial, None if this one is not, or in words why no more will come."""
        parent = self.incumbent
        context = self._context(parent)
        try:
            proposal = self.proposer.propose(context)
        except NoProposal as nothing:
            self._failures = 0
            self._nothing(parent, nothing)
            return None
        except BudgetSpent as spent:
            return str(spent)
        except Stopped:
            raise
        # The boundary of a proposer: an error must not end the night unless it repeats.
        except Exception as error:
            self._proposer_failed(parent, error)
            return None
        if proposal is None:
            return f"proposer {self.proposer.name} has nothing left to try"
        self._empty = self._failures = 0
        self.guard.verify()
        try:
            commit = self.workspace.commit(parent, proposal)
            candidate = self.workspace.candidate(self.settings.target, parent, commit)
        # ValueError: a NUL in a path, half a surrogate pair in a text
        except (GitError, ValueError) as error:
            self._not_applied(parent, proposal, error)
            return None
        self._unwritten = 0
        return self._judge(proposal, parent, commit, candidate)

    def _judge(
        self, proposal: Proposal, parent: str, commit: str, candidate: Candidate
    ) -> Prepared | None:
        repeats = standard.of(proposal.proposer).may_repeat
        earlier = gates.Context(
            self.judge, self.settings.op,
            {} if repeats else self.ledger.patch_numbers(self.run_id), () if repeats else self.ledger.sketches(self.run_id),
        )  # fmt: skip
        experiment = self.ledger.open_experiment(
            self.run_id, proposal, parent, commit, *_patch(candidate), self.hardware
        )
        self.screen.say(f"{self._named(experiment)}: {proposal.hypothesis}")
        with self.guard.watch(experiment, "gates") as watched:
            for repairs_left in reversed(range(REPAIRS + 1)):
                refusal = self._refusal(experiment, candidate, earlier)
                repaired = (
                    self._mended(experiment, parent, proposal, refusal)
                    if refusal and repairs_left
                    else None
                )
                if repaired is None:
                    break
                self.workspace.forget(commit)
                proposal, commit = repaired
                candidate = self.workspace.candidate(self.settings.target, parent, commit)
                self.ledger.amend_experiment(experiment, proposal, commit, *_patch(candidate))
            self.guard.verify()
            if refusal is None:
                self.workspace.hold(experiment, commit)
                self.ledger.ready_experiment(experiment)
                return Prepared(experiment, proposal.proposer, proposal.hypothesis, parent, commit, candidate)  # fmt: skip
            watched.outcome = Outcome(REFUSE, f"{refusal.name}: {refusal.reason}")
        self.workspace.forget(commit)
        self._ended(watched)
        return None

    def _ended(self, watched: Watched) -> None:
        """Record how an experiment ended before its trial, and say so; a refusal has been said by its gate."""
        outcome = watched.close()
        said = "" if outcome.status == REFUSE else f": {outcome.reason}"
        self.screen.say(f"  {outcome.status}{said}")

    def _refusal(
        self, experiment: int, candidate: Candidate, context: gates.Context
    ) -> GateResult | None:
        """Which of the gates that need no quiet machine refuses a candidate; None if all pass it. Raises Stopped if the run has ended."""
        results = gate_by_gate(self.shop, experiment, candidate, context, gates.EARLY)
        if self.shop.stop.is_set():
            raise Stopped("the run ended")
        return None if results[-1].passed else results[-1]

    def _mended(
        self, experiment: int, parent: str, proposal: Proposal, refusal: GateResult
    ) -> tuple[Proposal, str] | None:
        """The proposal as its proposer repairs it, and its commit; None if it gives up or its repair cannot be used."""
        try:
            repaired = self.proposer.repair(proposal, refusal)
        except NoProposal as nothing:
            self._bill(experiment, nothing)
            self.screen.say(f"  not repaired: {nothing.reason}")
            return None
        except BudgetSpent as spent:
            self.screen.say(f"  not repaired: {spent}")
            return None
        except Stopped:
            raise
        except Exception as error:  # the boundary of a proposer: no fault of the judge's
            log = self.guard.log(f"repair-{self.ledger.number(experiment)}", error)
            self.screen.say(f"  not repaired: {type(error).__name__}: {error}; see {log}")
            return None
        if repaired is None:
            return None
        try:
            commit = self.workspace.commit(parent, repaired)
        except (GitError, ValueError) as error:
            self._bill(experiment, repaired)
            self.screen.say(f"  not repaired: {error}")
            return None
        self.screen.say("  repaired; it is judged again")
        return repaired, commit

    def _bill(self, experiment: int, spent: Proposal | NoProposal) -> None:
        self.ledger.bill_experiment(experiment, spent.cost_usd, spent.tokens_in, spent.tokens_out)

    def _nothing(self, parent: str, nothing: NoProposal) -> None:
        """Record that no proposal came, and its cost; then pause, twice as long each time: a broken proposer must not fill the ledger."""
        empty = Proposal(
            nothing.hypothesis or "no proposal", {}, self.proposer.name, nothing.model, notes=nothing.notes,
            cost_usd=nothing.cost_usd, tokens_in=nothing.tokens_in, tokens_out=nothing.tokens_out,
        )  # fmt: skip
        experiment = self.ledger.open_experiment(self.run_id, empty, parent, parent, "", "")
        self.ledger.close_experiment(experiment, Outcome(CRASH, f"no proposal: {nothing.reason}"))
        self.screen.say(f"{self._named(experiment)}: no proposal: {nothing.reason}")
        # A proposer that asks nobody, such as a recording, has its next proposal at hand.
        if self.proposer.ahead:
            self.shop.stop.wait(min(LONGEST_PAUSE_S, 0.5 * 2 ** min(self._empty, 16)))
        self._empty += 1

    def _proposer_failed(self, parent: str, error: Exception) -> None:
        """A fault of the proposer's own. Raises LoopError when it repeats."""
        self._failures += 1
        number = 1 + sum(self.ledger.counts(self.run_id).values())  # of the row that it will have
        log = self.guard.log(f"proposer-{number}", error)
        reason = f"{self.proposer.name} failed: {type(error).__name__}: {error}; see {log}"
        self._nothing(parent, NoProposal(reason))
        if self._failures >= MAX_FAILURES:
            raise LoopError(
                f"{self._failures} times in a row {reason}; mend that, then python -m agent --resume"
            ) from error

    def _not_applied(self, parent: str, proposal: Proposal, error: GitError | ValueError) -> None:
        """Record a proposal whose files git does not take."""
        full = any(words in str(error) for words in FULL)
        outcome = (
            Outcome(LOST, f"git could not write the files: {error}")
            if full
            else Outcome(REFUSE, f"the files cannot be written: {error}; name paths of the surface")
        )
        experiment = self.ledger.open_experiment(self.run_id, proposal, parent, parent, "", "")
        self.ledger.close_experiment(experiment, outcome)
        self.screen.say(f"{self._named(experiment)}: {proposal.hypothesis}")
        self.screen.say(f"  {outcome.status}: {outcome.reason}")
        if full:
            raise LoopError(f"{error}; free space, then python -m agent --resume") from None
        self._unwritten += 1
        if self._unwritten >= MAX_FAILURES:
            raise LoopError(
                f"{self._unwritten} times in a row git did not take what was proposed: {error}; mend that, then python -m agent --resume"
            ) from error

    # ---- what waits for its trial

    def waiting(self) -> Iterator[Prepared]:
        """What an earlier life of this run had ready, if today's gates pass it as well: a hole in them may have been closed since."""
        for past in self.ledger.waiting(self.run_id):
            self.screen.say(f"{self._named(past.id)} was ready: {past.hypothesis}")
            try:
                prepared = self._of(past)
            except GitError as error:
                lost = Outcome(LOST, f"its commit cannot be read: {error}")
                self.ledger.close_experiment(past.id, lost)
                self.screen.say(f"  {lost.status}: {lost.reason}")
                continue
            ready = False
            try:
                with self.guard.watch(prepared.experiment, "gates") as watched:
                    context = gates.Context(self.judge, self.settings.op, earlier={})
                    refusal = self._refusal(prepared.experiment, prepared.candidate, context)
                    ready = refusal is None
                    if refusal is not None:
                        watched.outcome = Outcome(REFUSE, f"{refusal.name}: {refusal.reason}")
            except KeyboardInterrupt:
                # Its trial has not begun: it waits for the next life of the run, as after a kill.
                self.ledger.ready_experiment(past.id)
                raise
            if ready:
                yield prepared
                continue
            if watched.outcome.status == LOST:
                # the machine's fault
                self.screen.say(f"  it goes on waiting: {watched.outcome.reason}")
                continue
            self.workspace.forget(prepared.commit)
            self._ended(watched)

    def _of(self, past: Experiment) -> Prepared:
        candidate = self.workspace.candidate(self.settings.target, past.parent, past.commit)
        return Prepared(
            past.id, past.proposer, past.hypothesis, past.parent, past.commit, candidate
        )

    def rebased(self, prepared: Prepared) -> Prepared:
        """The proposal on the current incumbent, put through the gates again if that is another than it was made on. Raises BaseMoved.

        Two changes that are each right alone can be wrong together.
        """
        parent = self.incumbent
        if prepared.parent == parent:
            return prepared
        files = merging.onto(self.shop.repository, prepared.parent, prepared.commit, parent)
        if files is None:
            raise BaseMoved("the incumbent has changed in the same lines since this was proposed")
        if not files:
            raise BaseMoved("the incumbent has this change already")
        past = self.ledger.experiment(prepared.experiment)
        proposal = Proposal(
            past.hypothesis, files, past.proposer, past.model, past.expected, past.notes
        )
        commit = self.workspace.commit(parent, proposal)
        candidate = self.workspace.candidate(self.settings.target, parent, commit)
        self.workspace.forget(prepared.commit)
        self.workspace.hold(prepared.experiment, commit)
        self.ledger.rebase_experiment(prepared.experiment, parent, commit, candidate.patch)
        context = gates.Context(self.judge, self.settings.op, earlier={})
        if refusal := self._refusal(prepared.experiment, candidate, context):
            self.workspace.forget(commit)
            raise BaseMoved(f"on the current incumbent {refusal.name} refuses it: {refusal.reason}")
        return replace(prepared, parent=parent, commit=commit, candidate=candidate)

    # ---- how the run stands

    def begun(self) -> int:
        return sum(n for s, n in self.ledger.counts(self.run_id).items() if s != LOST)

    def _named(self, experiment: int) -> str:
        """`experiment 7 (6 of 20)`: its number in the report, then how many count towards the limit, from which the lost are left out."""
        limit = self.settings.experiments
        so_far = f" ({self.begun()} of {limit})" if limit else ""
        return f"experiment {self.ledger.number(experiment)}{so_far}"

    def _context(self, commit: str) -> Context:
        settings = self.settings
        own = (standard.PRUNE, standard.PLACEBO)  # their changes hold no idea for another proposer
        history = [
            past for past in self.ledger.history()
            if past.proposer not in own or past.proposer == self.proposer.name
        ]  # fmt: skip
        return Context(
            run=self.run_id, commit=commit, incumbent=self.workspace.checkout(commit), target=settings.target,
            op=settings.op, device=settings.device, seed=settings.seed, history=history,
            agenda=self.agenda, brought=self.brought, hardware=self.hardware, seconds=settings.seconds, standing=self.trials.standing(commit),
        )  # fmt: skip


def _patch(candidate: Candidate) -> tuple[str, str, tuple[int, ...]]:
    """A candidate's patch, and the hash and the sketch by which it will be known again."""
    return (
        candidate.patch,
        bare_code.patch_hash(candidate.changes),
        similarity.sketch(candidate.changes),
    )
