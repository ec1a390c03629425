"""What trials of this checkout reach, and how much of it the kernels bring: the figures of the README.

    python -m bench.trial_report DATA --out results/cpu_trial.json [--seeds 1] [--seconds 300] [--pairs 3] [--device cpu]

DATA is a folder that `python -m agent prepare` made: of the embedded corpus, or of your own text with `--data DIR`. A whole trial is run and scored for
each of the seeds 0, 1, ...; with more than one, means come with their 95 % interval over seeds (bench/interval.py). Each is at
once a line of the .jsonl beside OUT, so that a run which was ended goes on where it was. Then the same model is trained with the shipped kernels and with every op in
plain torch, by turns, for PAIR_SECONDS each, and tokens/s are compared pair by pair; `--pairs 0` leaves that out.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.contracts import ops
from bench.corpus import DataError
from bench.data import Dataset, open_dataset
from bench.identity import identity
from bench.interval import Spread, mean
from bench.roofline import ceilings
from bench.trial import TrialResult, run_trial

ROOT = Path(__file__).resolve().parent.parent
PAIR_SECONDS = 30.0
FIGURES = (
    "val_bpb", "tokens_per_second", "training_seconds", "total_seconds", "setup_seconds", "num_steps", "total_tokens_M", "num_params_M",
    "mfu_percent", "peak_memory_mb", "implementations", "isolation",
)  # fmt: skip
MEANS = ("val_bpb", "tokens_per_second", "num_steps", "total_tokens_M", "mfu_percent")


def report(
    dataset: Dataset, seconds: float, seeds: int, pairs: int, device: str, kept: Path
) -> dict[str, Any]:
    """Run everything that is not in `kept` yet."""
    trials = whole_trials(dataset, seconds, seeds, device, kept)
    found: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "ceilings": ceilings(device),
        "dataset": dataset.directory.name,
        "shipped": {"seconds": seconds, **trials[0], **over_seeds(trials)},
    }
    if pairs:
        found |= {"pair_seconds": PAIR_SECONDS, **_pairs(dataset, pairs, device)}
    return found


def whole_trials(
    dataset: Dataset, seconds: float, seeds: int, device: str, kept: Path
) -> list[dict[str, Any]]:
    """The figures of a scored trial for each seed. Raises SystemExit where `kept` holds trials of something else, or one fails."""
    about = {"seconds": seconds, "dataset": dataset.directory.name, **identity(device)}
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    if any(line["about"] != about for line in lines):
        raise SystemExit(f"{kept} holds trials of {lines[0]['about']}, and asked is {about}: give another --out, or delete it")  # fmt: skip
    done = {line["seed"]: line for line in lines}
    for seed in (seed for seed in range(seeds) if seed not in done):
        result = _checked(run_trial(ROOT, dataset, seconds=seconds, seed=seed, device=device))
        figures = {name: getattr(result, name) for name in FIGURES}
        done[seed] = {"seed": seed, "about": about, "figures": figures}
        with kept.open("a") as file:
            file.write(json.dumps(done[seed]) + "\n")
        print(f"seed {seed}: val_bpb {result.val_bpb:.4f}, {result.tokens_per_second:,.0f} tokens/s", flush=True)  # fmt: skip
    return [done[seed]["figures"] for seed in range(seeds)]


def over_seeds(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of what differs from seed to seed, each trial's own figures, and the bounds of the means where there are several."""
    found: dict[str, Any] = {"seeds": len(trials), "interval": {}, "by_seed": {}}
    for name in MEANS:
        values = [float(trial[name]) for trial in trials]
        figure = mean(values, Spread.pooled([values]))
        found |= {name: figure.value}
        found["by_seed"][name] = values
        if len(values) > 1:
            found["interval"][name] = [figure.low, figure.high]
    return found


def _pairs(dataset: Dataset, pairs: int, device: str) -> dict[str, Any]:
    """tokens/s of the shipped kernels and of plain torch; seeds are 0, 1, ... in both arms."""
    plain = {op: "torch" for op in ops()}
    speeds: dict[str, list[float]] = {"shipped": [], "plain_torch": []}
    for seed in range(pairs):
        for name in sorted(speeds, reverse=bool(seed % 2)):  # A B, B A, A B
            impl = plain if name == "plain_torch" else None
            short = run_trial(
                ROOT,
                dataset,
                seconds=PAIR_SECONDS,
                seed=seed,
                device=device,
                impl=impl,
                score=False,
            )
            speeds[name].append(_checked(short).tokens_per_second)
            print(f"seed {seed} {name}: {speeds[name][-1]:,.0f} tokens/s", flush=True)
    ratios = [a / b for a, b in zip(speeds["shipped"], speeds["plain_torch"], strict=True)]
    return {
        "pair_tokens_per_second": speeds["shipped"],
        "plain_torch": {
            "tokens_per_second": statistics.median(speeds["plain_torch"]),
            "pair_tokens_per_second": speeds["plain_torch"],
        },
        "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "pairs": pairs},
    }  # fmt: skip


def _checked(result: TrialResult) -> TrialResult:
    if not result.ok:
        raise SystemExit(f"a trial failed ({result.failure}): {result.detail}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.trial_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1, help="whole trials, of the seeds 0, 1, ...")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    asked = parser.parse_args()
    if asked.seeds < 1:
        parser.error(f"--seeds: expected at least 1, got {asked.seeds}")
    try:
        dataset = open_dataset(asked.data)
    except DataError as error:
        parser.error(str(error))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    kept = asked.out.with_suffix(".jsonl")
    found = report(dataset, asked.seconds, asked.seeds, asked.pairs, asked.device, kept)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(
        json.dumps({name: found[name] for name in ("shipped", "ratio") if name in found}, indent=1)
    )
    for name in MEANS[:2]:
        print(f"{name}: {sentence(found['shipped'], name)}")


def sentence(shipped: Mapping[str, Any], name: str) -> str:
    """A mean with its bounds, and how many seeds stand behind it."""
    seeds, bounds = shipped["seeds"], shipped["interval"].get(name)
    if bounds is None:
        return f"{shipped[name]:.6g}, one seed: no interval"
    return f"{shipped[name]:.6g}, 95 % interval {bounds[0]:.6g} to {bounds[1]:.6g}, {seeds} seeds"


if __name__ == "__main__":
    main()
