"""One research session: a conversation that starts with a task, works through tools and ends with a submission, or with nothing.

A turn is one reply of the model. A mistake of the model is answered with what went wrong, a bounded number of times; a failure of the
server is waited out. A refusal of a gate comes back as the answer to the call that submitted, so that a repair goes on where the session
left off.

Raises, besides what `Session.run` says: agent.spending.BudgetSpent before a call that could cost more than is left, Stopped when the run
ends, ModelUnusable when no request can succeed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.proposers import REPAIRS, NoProposal
from agent.records import GateResult, Usage
from agent.research import compaction, wire
from agent.research.messages import (
    CUT,
    MAX_TOKENS,
    REFUSAL,
    Model,
    ModelUnusable,
    Prompt,
    Rejected,
    Reply,
    Results,
    ToolCall,
    ToolResult,
    Transient,
    User,
)
from agent.research.patience import Patience
from agent.research.tools import Submission, Toolbox
from agent.spending import Purse

COUNT_ERROR = 0.05  # by which a model may count too few tokens
LEAST_OUTPUT = 1_000  # tokens; with less room than this for an answer nothing is sent
MAX_REASON = 6_000  # characters of a gate's reason that go back for a repair
SILENT = 2  # answers in a row without a tool call, after which the session ends
IN_VAIN = 5  # answers in a row that may break off, or never come, at a cost
SUBMIT = "Call `submit` when the draft is what you propose; otherwise go on with the tools."


@dataclass(frozen=True)
class Bounds:
    """How far a session goes."""

    turns: int = 40  # repairs included
    remind: int = 5  # turns before the end at which the model is told
    repairs: int = REPAIRS
    mishaps: int = 3  # replies that cannot be used
    output: int = 32_000  # tokens of one reply
    context: int = 150_000  # tokens; more of a window is not used: it costs more than it helps
    share: float = 0.7  # of the context, above which the conversation is compacted

    def longest(self, window: int) -> int:
        """Tokens above which a conversation with a model of this window is compacted."""
        return int(self.share * min(window, self.context))


BOUNDS = Bounds()


@dataclass(frozen=True)
class _Submitted:
    """A reply that submitted: the results of its calls before that, and its calls from the submission on."""

    results: tuple[ToolResult, ...]
    calls: tuple[ToolCall, ...]


class Session:
    """One session. `cost_usd`, `tokens_in` (cached ones included) and `tokens_out` are what it has taken so far."""

    def __init__(
        self,
        model: Model,
        tools: Toolbox,
        purse: Purse,
        patience: Patience,
        system: tuple[str, ...],
        first: str,
        bounds: Bounds = BOUNDS,
    ) -> None:
        self.model, self.bounds = model, bounds
        self._tools, self._purse, self._patience = tools, purse, patience
        self._prompt = Prompt(system, tools.tools, (User(first),))
        self._bound = bounds.longest(model.window)
        self._submitted: _Submitted | None = None
        self._silent = self._mishaps = self._in_vain = 0
        self.turns = self.repairs = 0
        self.cost_usd, self.tokens_in, self.tokens_out = 0.0, 0, 0

    def run(self) -> Submission:
        """Raises NoProposal, with what the session cost, when it ends without a submission."""
        while self.turns < self.bounds.turns:
            reply = self._ask()
            self.turns += 1
            submission = self._answer(reply)
            if submission is not None:
                return submission
        raise self.nothing(f"nothing was submitted in {self.bounds.turns} turns")

    def repair(self, refusal: GateResult) -> Submission | None:
        """The submission, repaired after a gate refused it; None once the repairs or the turns are used up. Raises what `run` raises."""
        if self.repairs >= self.bounds.repairs or self.turns >= self.bounds.turns:
            return None
        if self._submitted is None:
            raise ValueError("repair: there is no submission to mend; call `run` first")
        self.repairs += 1
        done, self._submitted = self._submitted, None
        submit, *after = done.calls
        left = self.bounds.repairs - self.repairs
        said = (
            f"Refused by the gate `{refusal.name}`: {refusal.reason[:MAX_REASON]}\n\n"
            f"Repair the draft and submit again, with the same idea. Repairs left after this one: {left}."
        )
        unrun = [ToolResult(c.id, "not run: it came after a submission", True) for c in after]
        self._tell((*done.results, ToolResult(submit.id, said, True), *unrun))
        return self.run()

    def nothing(self, reason: str) -> NoProposal:
        """What to raise when the session ends without a submission: the reason, and what the session cost."""
        return NoProposal(
            reason,
            model=self.model.name,
            cost_usd=self.cost_usd,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
        )

    def _ask(self) -> Reply:
        """The model's next reply to the conversation, which is compacted first if it is too long."""
        takes = self.model.window, self.model.max_output
        try:
            self._prompt, tokens = compaction.compact(self._prompt, self._bound, self._count)
            most = math.ceil(tokens / (1 - COUNT_ERROR))
            room = min(self.model.max_output, self.bounds.output, self.model.window - most)
            if room < LEAST_OUTPUT:
                raise self._too_long(tokens)
            return self._patience.until_answered(lambda: self._request(most, room))
        except Rejected as error:
            if takes == (self.model.window, self.model.max_output):
                raise self.nothing(f"{self.model.name} rejects the request: {error}") from error
        # The refusal said that it takes less than was assumed: what was paid for goes on within that.
        self._bound = self.bounds.longest(self.model.window)
        return self._ask()

    def _count(self, prompt: Prompt) -> int:
        return self._patience.until_answered(lambda: self.model.count(prompt))

    def _request(self, tokens: int, room: int) -> Reply:
        """One request, paid for. If it ends in a way not known here, or nobody knows what it used, it stays in the purse at its upper bound."""
        call = self._purse.reserve(self.model.name, tokens, room)
        try:
            reply = self.model.reply(self._prompt, room)
        except Transient as error:
            if not error.unknown:
                self._pay(call, error.billed or Usage())
            self._in_vain += error.unknown or error.billed is not None
            if self._in_vain > IN_VAIN:
                raise self.nothing(
                    f"{self._in_vain} answers in a row broke off or never came, and may be billed; the last: {error}"
                ) from error
            raise
        except (Rejected, ModelUnusable) as error:
            billed = error.billed if isinstance(error, Rejected) else None
            self._pay(call, billed or Usage())
            raise
        self._pay(call, reply.usage)
        self._in_vain = 0
        return reply

    def _pay(self, call: int, usage: Usage) -> None:
        self.cost_usd += self._purse.settle(call, usage)
        self.tokens_in += usage.prompt
        self.tokens_out += usage.output

    def _too_long(self, tokens: int) -> Exception:
        takes = f"{tokens:,} of the {self.model.window:,} tokens of {self.model.name}"
        if self.turns:
            return self.nothing(f"the conversation takes {takes}, which leaves no room to answer")
        return ModelUnusable(f"the task alone takes {takes}: use a model with a longer context")

    def _answer(self, reply: Reply) -> Submission | None:
        """Carry out a reply and tell the model what came of it; its submission, if it is one."""
        if (wrong := _unusable(reply)) is not None:
            self._mishap(wrong)
            return None
        if not reply.calls:
            self._no_call(reply)
            return None
        self._silent = 0
        self._prompt = replace(self._prompt, turns=(*self._prompt.turns, reply))
        results: list[ToolResult] = []
        for index, call in enumerate(reply.calls):
            self._patience.check()
            outcome = self._tools.call(call)
            if not isinstance(outcome, ToolResult):
                self._submitted = _Submitted(tuple(results), reply.calls[index:])
                return outcome
            results.append(outcome)
        self._tell(results)
        return None

    def _mishap(self, wrong: str) -> None:
        """A reply that cannot be used does not enter the conversation: providers refuse half a call or half a thought."""
        self._mishaps += 1
        if self._mishaps > self.bounds.mishaps:
            raise self.nothing(f"{self._mishaps} unusable answers, the last: {wrong}")
        self._tell((), f"{wrong} Nothing of that answer was carried out.")

    def _no_call(self, reply: Reply) -> None:
        self._silent += 1
        if self._silent >= SILENT:
            said = f": {reply.text.strip()[:200]!r}" if reply.text.strip() else ", both empty"
            raise self.nothing(f"{SILENT} answers in a row without a tool call{said}")
        if reply.text.strip():
            self._prompt = replace(self._prompt, turns=(*self._prompt.turns, reply))
        self._tell((), f"That answer called no tool; a second such answer in a row ends the session. {SUBMIT}")  # fmt: skip

    def _tell(self, results: Sequence[ToolResult], note: str = "") -> None:
        """Add what the lab has to say, and near the end how many turns are left."""
        left = self.bounds.turns - self.turns
        if left in (self.bounds.remind, 1):
            turns = f"{left} turns are" if left > 1 else "One turn is"
            note = f"{note} {turns} left in this session. {SUBMIT}".strip()
        turn = Results(_fitting(results, self._bound), note) if results else User(note)
        self._prompt = replace(self._prompt, turns=(*self._prompt.turns, turn))


def _unusable(reply: Reply) -> str | None:
    """What is wrong with a reply that cannot be carried out; None if it can."""
    if reply.stop == MAX_TOKENS:
        return "Your answer reached the limit of its length. Take smaller steps: edit a part of a file, one call at a time."
    if reply.stop == CUT:
        return "The connection broke off in the middle of your answer. Send it again."
    if reply.stop == REFUSAL:
        return "You declined to answer. The task is the speed of numerical kernels, in a sandbox of its own."
    malformed = [f"`{call.name}`: {call.problem}" for call in reply.calls if call.arguments is None]
    if malformed:
        return f"Arguments that are no JSON object: {'; '.join(malformed)[:1000]}. Call again."
    return None


def _fitting(results: Sequence[ToolResult], bound: int) -> tuple[ToolResult, ...]:
    """The results, cut if they are too long together, so that the last turns, which compaction keeps, fit its bound with ease.

    At three characters per token, as in dense code, three turns of results take three eighths of the bound.
    """
    left = 3 * bound // 8
    fitting = []
    for result in results:
        # Half of a surrogate pair, which a candidate's last words may hold, goes over no wire.
        result = replace(result, text=wire.whole(result.text))
        if len(result.text) > left:
            over = f"\n[cut: {len(result.text) - left:,} more characters than fit in one turn; ask for less at a time]"
            result = replace(result, text=result.text[:left] + over)
        left = max(0, left - len(result.text))
        fitting.append(result)
    return tuple(fitting)
