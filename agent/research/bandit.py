"""Which model proposes next: Thompson sampling (Thompson 1933) on keeps per USD.

Keeps are modelled as a Poisson process in the money spent, so that the rate of a model with k keeps for C USD has a Gamma(k + 1, C + c)
posterior; the prior is one keep for c = PRIOR_USD. A rate is drawn for each model, and the model with the largest draw proposes: spending
moves to the better one in proportion to the evidence, and a model that had bad luck is asked again.

A proposal costs its tokens and its trial, whose price is taken to be TRIAL_USD: without that, a free model on one's own machine would win
whatever it proposes. Only the last WINDOW proposals of models count, because what was easy to find has been found; what has left the
window is forgotten, so no model is given up for good.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from agent.records import KEEP, OPEN, Past

PRIOR_USD = 2.0  # for which an unknown model is assumed to win one keep
TRIAL_USD = 0.10  # of judging a proposal: about two minutes of a rented GPU, since most proposals end at a gate
WINDOW = 200  # proposals


def choose(models: Sequence[str], history: Sequence[Past], rng: random.Random) -> str:
    """One of `models`. Raises ValueError if there is none."""
    if not models:
        raise ValueError("no model to choose from: name one with --model")
    if len(models) == 1:
        return models[0]
    known = [past for past in history if past.model in models and past.outcome.status not in OPEN]
    keeps, usd = dict.fromkeys(models, 0), dict.fromkeys(models, 0.0)
    for past in known[-WINDOW:]:
        keeps[past.model] += past.outcome.status == KEEP
        usd[past.model] += past.cost_usd + TRIAL_USD
    rates = {m: rng.gammavariate(1 + keeps[m], 1 / (PRIOR_USD + usd[m])) for m in models}
    return max(models, key=lambda model: rates[model])
