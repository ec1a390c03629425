"""The proposer that all LLM providers share: plan, choose a model, research in one session, submit; repair what a gate refuses.

What it knows of earlier proposals comes from the ledger at every call, so a killed run forgets nothing. It holds the session of the
latest proposal, for its repairs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from agent.lab import Unusable
from agent.prices import UnknownPrice, price_of
from agent.proposers import Context, NoProposal, Workshop
from agent.records import GateResult, Proposal
from agent.research import amdahl, bandit, memory, prompt, search
from agent.research.draft import Draft
from agent.research.messages import Model, ModelUnusable
from agent.research.patience import Patience
from agent.research.session import BOUNDS, Session
from agent.research.step import Step
from agent.research.tools import Submission, Toolbox
from agent.spending import BudgetSpent, Limits, Purse

LEAST_WINDOW = 24_000  # tokens; with fewer, rules and agenda leave no room for sources
GIVE_UP_S = 3600.0  # of one request that always fails: then its session ends, and the next may ask another model

Submitted = TypeVar("Submitted", bound=Submission | None)


class Researcher:
    """Proposes what its models find; with several, a bandit moves the work to those whose proposals are kept.

    Each model is tried once when this is made. Raises Unusable, in one line, if one cannot be used or has no price.
    """

    ahead = True

    def __init__(self, name: str, workshop: Workshop, models: Sequence[Model]) -> None:
        self.name, self._workshop = name, workshop
        self._models = {model.name: model for model in models}
        self._purse = _purse(workshop, models)
        self._patience = Patience(workshop.stop, workshop.screen.say, longest_s=GIVE_UP_S)
        self._failing: set[str] = set()  # models that were unusable in their last session
        self._spent: BudgetSpent | None = None
        self._step = Step(workshop)
        self._latest: tuple[int, Session, search.Plan] | None = None

    def propose(self, context: Context) -> Proposal:
        """Raises NoProposal, Stopped, BudgetSpent."""
        if self._spent is not None:
            raise self._spent
        self._patience.check()
        plan = self._step.plan(context)
        if plan.kind == search.COMBINE:
            return Proposal(plan.why, plan.files, self.name, notes=plan.notes)
        number = 1 if self._latest is None else self._latest[0] + 1
        session = self._session(context, plan)
        self._latest = number, session, plan
        try:
            submission = self._carried(session, session.run)
        except NoProposal as nothing:
            nothing.notes = plan.notes
            raise
        return self._proposal(submission, number, session, plan)

    def repair(self, proposal: Proposal, refusal: GateResult) -> Proposal | None:
        """The latest proposal, repaired in the session that made it; None for any other, and after REPAIRS."""
        if self._latest is None or proposal.notes.get("session") != self._latest[0]:
            return None
        number, session, plan = self._latest
        submission = self._carried(session, lambda: session.repair(refusal))
        return None if submission is None else self._proposal(submission, number, session, plan)

    def _session(self, context: Context, plan: search.Plan) -> Session:
        working = [name for name in self._models if name not in self._failing] or [*self._models]
        rng = random.Random(f"{context.run} {context.seed} {len(context.history)}")
        model = self._models[bandit.choose(working, context.history, rng)]
        draft = Draft(
            context.incumbent, self._workshop.folder, context.target, context.op, plan.files
        )
        known = memory.digest(
            context.history, context.target, context.op, context.run, plan.op or "model"
        )
        first = prompt.first(context, plan, known, amdahl.table(self._step.profile(context)))
        toolbox = Toolbox(draft, self._workshop, context)
        bound = BOUNDS.longest(model.window)
        system = prompt.system(context, min(prompt.MAX_PREFIX, bound // 2))
        about = plan.op or context.op or context.target
        self._workshop.screen.say(f"researching {about} with {model.name}: {plan.why}")
        return Session(model, toolbox, self._purse, self._patience, system, first)

    def _carried(self, session: Session, work: Callable[[], Submitted]) -> Submitted:
        """What `work` submits. If the money ends in mid-session, BudgetSpent is raised at the next call, so that this session gets its row."""
        try:
            submission = work()
        except BudgetSpent as spent:
            if not session.turns:
                raise
            self._spent = spent
            raise session.nothing(f"the budget ended the session: {spent}") from spent
        except ModelUnusable as unusable:
            self._failing.add(session.model.name)
            raise session.nothing(str(unusable)) from unusable
        self._failing.discard(session.model.name)
        return submission

    def _proposal(
        self, submission: Submission, number: int, session: Session, plan: search.Plan
    ) -> Proposal:
        return Proposal(
            hypothesis=submission.hypothesis,
            files=submission.files,
            proposer=self.name,
            model=session.model.name,
            expected=submission.expected,
            notes=plan.notes | {"session": number, "turns": session.turns, "op": submission.op},
            cost_usd=session.cost_usd,
            tokens_in=session.tokens_in,
            tokens_out=session.tokens_out,
        )


def _purse(workshop: Workshop, models: Sequence[Model]) -> Purse:
    settings = workshop.settings
    try:
        prices = {model.name: price_of(model.name, settings.prices) for model in models}
        for model in models:
            model.check()  # which may find that it takes fewer tokens than was assumed
            if model.window < LEAST_WINDOW:
                raise ModelUnusable(
                    f"{model.name} takes {model.window:,} tokens: expected {LEAST_WINDOW:,} or more"
                )
    except (UnknownPrice, ValueError, ModelUnusable) as error:
        raise Unusable(str(error)) from error
    return Purse(
        workshop.ledger.accounts, workshop.run, prices, Limits(settings.usd, settings.tokens)
    )
