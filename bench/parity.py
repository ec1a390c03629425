"""The parity probe: a kernel that claims the same mathematics must leave the training curve where it was.

Incumbent and candidate train the same few steps from the same seed on the same data. The curves may part as far as float noise lets them:
the incumbent is run a third time from weights and data of the same seed but with its plain torch kernels, another order of summation, and the candidate may be
PARTING times as far from the incumbent as that run is, or FLOOR nats, whichever is more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.contracts import ops
from bench.data import Dataset
from bench.finding import Finding
from bench.trial import TrialResult, run_trial

STEPS = 12
LIMIT_S = 120.0
PARTING = 4.0
# While the loss still falls by a nat a step: two honest bf16 norms, rounded in another order, parted by 0.027.
FLOOR_NATS = 0.05


def probe(
    incumbent: Path, candidate: Path, dataset: Dataset, *, device: str, seed: int = 0
) -> Finding:
    """Compare the first STEPS steps of two trees; evidence holds both curves and the step times."""

    def first_steps(tree: Path, impl: dict[str, str] | None = None) -> TrialResult:
        return run_trial(
            tree,
            dataset,
            seconds=LIMIT_S,
            seed=seed,
            device=device,
            impl=impl,
            steps=STEPS,
            score=False,
        )

    runs = {
        "incumbent": first_steps(incumbent),
        "candidate": first_steps(candidate),
        "plain": first_steps(incumbent, {op: "torch" for op in ops()}),
    }
    for name, run in runs.items():
        if not run.ok:
            return Finding(
                False, f"the {name} did not train {STEPS} steps ({run.failure}): {run.detail}", {}
            )
    parted = _distance(runs["candidate"], runs["incumbent"])
    noise = _distance(runs["plain"], runs["incumbent"])
    allowed = max(PARTING * noise, FLOOR_NATS)
    evidence: dict[str, Any] = {
        "steps": STEPS,
        "largest_loss_difference": round(parted, 5),
        "allowed": round(allowed, 5),
        "seconds": {name: round(run.training_seconds, 2) for name, run in runs.items()},
        "losses": {name: [round(loss, 4) for _, loss in run.losses] for name, run in runs.items()},
    }
    if not parted <= allowed:
        return Finding(
            False,
            f"after the same {STEPS} steps the loss differs by {parted:.4f} nats, where another order of summation moves it by "
            f"{noise:.4f}: the kernel does not compute the same thing in the trial's shapes",
            evidence,
        )
    return Finding(
        True, f"loss within {parted:.4f} nats of the incumbent's over {STEPS} steps", evidence
    )


def _distance(a: TrialResult, b: TrialResult) -> float:
    return max(abs(x[1] - y[1]) for x, y in zip(a.losses, b.losses, strict=True))
