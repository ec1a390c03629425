"""How a campaign spends its trials: what the loop does and the simulation of the verdict repeats. Light: nothing here brings torch."""

from __future__ import annotations

BASELINES = 2  # trials of the start, from which the first estimate of the noise comes
MAX_PAIRS = 3  # paired trials a candidate may take; then what is undecided is dropped
# Degrees of freedom of the noise before a promising candidate is trained again. At three sigma and 1 % a candidate is found in 72 % of campaigns
# without this, in 86 % with 4, in 92 % with 8 (results/verdict.md): six trials or so of the incumbent, once a campaign.
ENOUGH_NOISE = 8
# Share of the incumbent's BPB that one change may win before a person has to look: 125 public experiments together won 3 % (autoresearch).
PLAUSIBLE = 0.15
RECHECK_S = 1800.0  # age of the incumbent's first trial at which it is run again, its others at twice that: a machine changes by the hour (results/drift.md)
