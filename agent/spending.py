"""The purse of a run: no request is sent that could spend more than is allowed.

Before a request goes out, the most that it can cost is written to the ledger; when it is answered, its real cost takes that place.
A request in flight when the loop is killed stays at its upper bound, since the provider may have billed it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from agent.accounts import Accounts
from agent.prices import Price, UnknownPrice
from agent.records import CallTotals, Usage


@dataclass(frozen=True)
class Limits:
    """The most that a run may spend, over all its stretches; None: no limit."""

    usd: float | None = None
    tokens: int | None = None  # in and out, cached ones included


class BudgetSpent(Exception):
    """The next request could pass a limit; the message is one line for the person."""


class Purse:
    """Pays for the calls of a run. Several threads may use it."""

    def __init__(
        self, accounts: Accounts, run: str, prices: Mapping[str, Price], limits: Limits
    ) -> None:
        self._accounts, self._run, self._prices, self._limits = accounts, run, prices, limits
        self._in_flight: dict[int, str] = {}  # model by call
        self._lock = threading.Lock()

    def reserve(self, model: str, tokens_in: int, max_output: int) -> int:
        """Enter a call at the most that it can cost; its id. Raises BudgetSpent if that could pass a limit, and UnknownPrice.

        `tokens_in` is the most that the prompt can have: the caller has allowed for a count that may be 5 % too low.
        """
        if model not in self._prices:
            raise UnknownPrice(model)
        usd = self._prices[model].most(tokens_in, max_output)
        with self._lock:
            self._afford(usd, tokens_in + max_output)
            call = self._accounts.open_call(self._run, model, tokens_in, max_output, usd)
            self._in_flight[call] = model
        return call

    def settle(self, call: int, usage: Usage) -> float:
        """Enter what a call used in the end, nothing if it failed unbilled; its cost in USD."""
        with self._lock:
            usd = self._prices[self._in_flight.pop(call)].cost(usage)
            self._accounts.close_call(call, usage, usd)
        return usd

    def spent(self) -> CallTotals:
        """What the run has spent so far; calls in flight count at their upper bound."""
        return self._accounts.calls(self._run)

    def _afford(self, usd: float, tokens: int) -> None:
        spent, limits = self.spent(), self._limits
        if limits.usd is not None and spent.usd + usd > limits.usd:
            raise BudgetSpent(
                f"{spent.usd:.2f} of {limits.usd:.2f} USD are spent, and the next request could cost {usd:.2f}"
            )
        if limits.tokens is not None and spent.tokens + tokens > limits.tokens:
            raise BudgetSpent(
                f"{spent.tokens:,} of {limits.tokens:,} tokens are spent, and the next request could take {tokens:,}"
            )
