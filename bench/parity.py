"""The parity probe: a kernel that claims the same mathematics must leave the training curve where it was, and make no step slower.

Incumbent and candidate train the same few steps from the same seed on the same data. The curves may part as far as float noise lets them: a
third run has the incumbent's weights, data and seed but its plain torch kernels, which sum in another order. The candidate may be PARTING times
as far from the incumbent as that run is, or FLOOR_NATS, whichever is more.

A few steps are too short to show a gain: the trial does that. But they do show a kernel that is faster alone and slows what is around it
(caches, threads, a workspace). It is refused if each of its runs takes SLOWER times as long as any of the incumbent's; where the first does, both are
run again, up to PAIRS times in all, and change places. So the incumbent's own scatter counts for the candidate: other work on the machine can slow one
run and not the next (equal trees took 1.27 and 1.14 times as long beside other tests).
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.contracts import written
from bench.data import Dataset
from bench.finding import Finding
from bench.trial import run_trial
from bench.trial_result import TrialResult

STEPS = 12
FIRST = 2  # of a changed model, before its trial
# What two steps at nearly the full rate may end in, and a trial, whose rates rise slowly, need not.
LATER = ("forged", "explosion")
LIMIT_S = 120.0
SEED = 0
PARTING = 4.0
# While the loss still falls by a nat a step: two honest bf16 norms, rounded in another order, parted by 0.027.
FLOOR_NATS = 0.05
SLOWER = 1.10
PAIRS = 3
# Runs that are set up beside each other, most of it imports on one core. A GPU's memory holds one.
BESIDE = {"cpu": 3, "cuda": 1}


def probe(incumbent: Path, candidate: Path, dataset: Dataset, *, device: str) -> Finding:
    """Compare the first STEPS steps of two trees; evidence holds the curves and the step times."""
    turns = _Turns(BESIDE[device])

    def first_steps(tree: Path, impl: dict[str, str] | None) -> TrialResult:
        with turns.taken_part():
            return run_trial(
                tree,
                dataset,
                seconds=LIMIT_S,
                seed=SEED,
                device=device,
                impl=impl,
                steps=STEPS,
                score=False,
                turn=turns.alone(),
            )

    trees = {
        "incumbent": (incumbent, None),
        "candidate": (candidate, None),
        "plain": (incumbent, dict.fromkeys(written(incumbent), "torch")),
    }
    with ThreadPoolExecutor(BESIDE[device]) as pool:
        asked = {name: pool.submit(first_steps, *of) for name, of in trees.items()}
        try:
            runs = {name: run.result() for name, run in asked.items()}
        finally:  # after Ctrl-C what has not begun does not begin
            pool.shutdown(wait=False, cancel_futures=True)
    for name in ("incumbent", "candidate"):
        # beside the others memory or time may have run out: alone it may train
        if runs[name].failure in ("out_of_memory", "late", "crash", "timeout"):
            runs[name] = first_steps(*trees[name])
    if (untrained := _untrained(runs)) is not None:
        return untrained
    curves = _curves(runs)
    if not curves.passed:
        return curves
    order = ["incumbent", "candidate"]
    took = {name: [round(runs[name].training_seconds, 3)] for name in order}
    while _slowdown(took) > SLOWER and len(took["candidate"]) < PAIRS:
        order.reverse()
        again = {name: first_steps(*trees[name]) for name in order}
        if (untrained := _untrained(again)) is not None:
            return untrained
        for name, run in again.items():
            took[name].append(round(run.training_seconds, 3))
    evidence = curves.evidence | {"training_seconds": took}
    count = len(took["candidate"])
    pairs = "one pair of runs" if count == 1 else f"the fastest against its slowest of {count} pairs of runs"  # fmt: skip
    if _slowdown(took) > SLOWER:
        return Finding(
            False,
            f"{STEPS} steps of the model take {_slowdown(took):.2f}x the incumbent's time ({pairs}), where {SLOWER:.2f}x is allowed: what the "
            "kernel saves by itself, the rest of the step loses",
            evidence,
        )
    said = f"{curves.reason}, which took {_slowdown(took):.2f}x its time ({pairs})"
    return Finding(True, said, evidence)


def trains(tree: Path, dataset: Dataset, *, device: str) -> Finding:
    """Whether the model of a tree trains at all: FIRST steps of it, for what a trial would find out after its set-up."""
    for _ in range(2):  # one bad moment of the machine's is no fault of the model's
        run = run_trial(
            tree, dataset, seconds=LIMIT_S, seed=SEED, device=device, steps=FIRST, score=False
        )
        if run.ok or run.failure in LATER or "without a point" in run.detail:
            return Finding(True, f"{FIRST} steps of the model trained")
        if run.failure not in ("late", "crash", "timeout"):
            break
    return Finding(False, f"the model does not train ({run.failure}): {run.detail}")


def _slowdown(took: Mapping[str, Sequence[float]]) -> float:
    """How much longer the candidate's fastest run took than the incumbent's slowest."""
    return min(took["candidate"]) / max(took["incumbent"])


def _curves(runs: Mapping[str, TrialResult]) -> Finding:
    """Whether the candidate's curve stays as near to the incumbent's as that of another order of summation."""
    parted = _distance(runs["candidate"], runs["incumbent"])
    if math.isinf(parted):
        return Finding(
            False,
            "the loss curves of incumbent and candidate have no point in common: model/train.py has to record the loss after the same numbers "
            "of tokens in every run, not by the clock",
        )
    # Plain torch may not train here for want of memory: that is no fault of the candidate's, which then has FLOOR_NATS.
    noise = _distance(runs["plain"], runs["incumbent"]) if runs["plain"].ok else 0.0
    allowed = max(PARTING * noise, FLOOR_NATS)
    evidence = {
        "steps": STEPS,
        "largest_loss_difference": round(parted, 5),
        "allowed": round(allowed, 5),
        "plain": runs["plain"].failure or "trained",
        "losses": {name: [round(loss, 4) for _, loss in run.losses] for name, run in runs.items()},
    }
    if not parted <= allowed:
        moved = f"another order of summation moves it by {noise:.4f}"
        if not runs["plain"].ok:
            moved = (
                "plain torch, which shows what another order of summation does, did not train here"
            )
        return Finding(
            False,
            f"after the same {STEPS} steps the loss differs by {parted:.4f} nats, where {allowed:.4f} is allowed ({moved}): "
            "the kernel does not compute the same thing in the trial's shapes",
            evidence,
        )
    within = f"loss within {parted:.4f} nats of the incumbent's over {STEPS} steps"
    return Finding(True, within, evidence)


def _untrained(runs: Mapping[str, TrialResult]) -> Finding | None:
    """What there is to say where incumbent or candidate has not trained; None where both have."""
    for name in ("incumbent", "candidate"):
        if not runs[name].ok:
            reason = f"the {name} did not train {STEPS} steps ({runs[name].failure}): {runs[name].detail}"
            return Finding(False, reason, {"untrained": name})
    return None


class _Turns:
    """Runs train one at a time, and none before all beside it are set up: the imports of another made 12 steps take 2.6 times as long."""

    def __init__(self, runs: int) -> None:
        self._all_set_up, self._turn = threading.Barrier(runs), threading.Lock()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with contextlib.suppress(threading.BrokenBarrierError):
            self._all_set_up.wait()
        with self._turn:
            yield

    @contextlib.contextmanager
    def taken_part(self) -> Iterator[None]:
        """Within this a run takes part; once it is left, also by a run that fails before its turn, nobody waits for that run."""
        try:
            yield
        finally:
            self._all_set_up.abort()


def _distance(a: TrialResult, b: TrialResult) -> float:
    """The largest difference of two curves, where both have a point; infinite where they have none in common."""
    other = {tokens: loss for tokens, loss in b.losses}
    return max((abs(loss - other[n]) for n, loss in a.losses if n in other), default=math.inf)
