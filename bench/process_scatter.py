"""How much processes of the same kernel differ: `python -m bench.process_scatter --op rms_norm --runners 6 --seconds 40`.

Each runner times the tree's kernel in blocks that are interleaved with those of the others. Printed for each shape: by how much every runner is
faster or slower than the others, with the standard error by its blocks, and the standard deviation of the runners. If processes did not
differ, the two would be alike; bench/ratio.py says what follows from their not being so.
"""

from __future__ import annotations

import argparse
import random
import secrets
import statistics
import time
from collections.abc import Sequence

from bench import ROOT, hardware
from bench.builds import build_all
from bench.contracts import contract, ops
from bench.ratio import Estimate, both, estimate, logs, stretches
from bench.rounds import Arm, Samples, prepare, ready
from bench.threads import one_thread
from bench.timing import runners_of

LEAST = 4  # rounds: of fewer no two stretches can be made (bench/ratio.py)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.process_scatter")
    parser.add_argument("--op", choices=ops(), required=True)
    parser.add_argument("--runners", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=40.0, help="of rounds, over all shapes")
    asked = parser.parse_args(arguments)
    if asked.runners < 3:
        parser.error(
            f"--runners: expected at least 3, got {asked.runners}; two are what a comparison has"
        )
    # What the cache lacks each runner would compile for itself, all at once.
    built = build_all(ROOT)
    if not built.passed:
        raise SystemExit(f"the kernels do not build: {built.reason}")
    for label, samples in _rounds(asked.op, asked.runners, asked.seconds):
        print(_line(label, deviations(samples), len(samples["0"])), flush=True)


def deviations(samples: Samples) -> list[Estimate]:
    """Each arm's ratio to the mean of all others."""
    others = {name: [other for other in samples if other != name] for name in samples}
    return [estimate(stretches(logs(samples, name, others[name])), [1.0], both) for name in samples]


def _line(label: str, found: Sequence[Estimate], rounds: int) -> str:
    each = " ".join(f"{100 * one.log:+.2f}" for one in found)
    error = statistics.median(one.error for one in found)
    spread = statistics.stdev(one.log for one in found)
    return f"{label}: {each} %; standard deviation {100 * spread:.2f} %, error by blocks {100 * error:.2f} % ({rounds} rounds)"


def _rounds(op: str, runners: int, seconds: float) -> list[tuple[str, Samples]]:
    """Label and seconds a call of each shape that a step of the trial's model calls on this machine."""
    asked, rng = contract(op), random.Random(secrets.randbits(48))
    cases = asked.timed("cpu", hardware.trains_in("cpu"), rng)
    arms = [Arm(str(i), ROOT) for i in range(runners)]
    with runners_of(op, arms, "cpu") as started:
        prepared = prepare(asked, cases, arms, started, rng)
        ready(prepared, started)
        until = time.monotonic() + seconds
        with one_thread():
            while time.monotonic() < until or prepared[0].found.rounds() < LEAST:
                for rounds in prepared:
                    rounds.round()
        return [(rounds.case.label(), rounds.found.row) for rounds in prepared]


if __name__ == "__main__":
    main()
