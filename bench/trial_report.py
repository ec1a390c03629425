"""What a trial of this checkout reaches, and how much of it the kernels bring: the figures of the README.

    python -m bench.trial_report DATA --out results/cpu_trial.json [--seconds 300] [--pairs 3] [--device cpu]

DATA is a folder that `python -m agent prepare` made. First the same model is trained with the shipped kernels and with every op in plain torch, by turns,
for PAIR_SECONDS each, and tokens/s are compared pair by pair; then one whole trial of the shipped kernels is scored.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path
from typing import Any

from bench.contracts import ops
from bench.data import Dataset, open_dataset
from bench.roofline import ceilings
from bench.trial import TrialResult, run_trial

ROOT = Path(__file__).resolve().parent.parent
PAIR_SECONDS = 30.0


def report(dataset: Dataset, seconds: float, pairs: int, device: str) -> dict[str, Any]:
    """Run everything; seeds are 0, 1, ... in both arms."""
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
    whole = _checked(run_trial(ROOT, dataset, seconds=seconds, seed=0, device=device))
    ratios = [a / b for a, b in zip(speeds["shipped"], speeds["plain_torch"], strict=True)]
    return {
        "machine": platform.processor() or platform.machine(),
        "ceilings": ceilings(device),
        "dataset": dataset.directory.name,
        "pair_seconds": PAIR_SECONDS,
        "shipped": {
            "seconds": seconds,
            **{
                name: getattr(whole, name)
                for name in (
                    "val_bpb", "tokens_per_second", "training_seconds", "total_seconds", "num_steps",
                    "total_tokens_M", "num_params_M", "mfu_percent", "peak_memory_mb", "implementations", "isolation",
                )
            },
            "pair_tokens_per_second": speeds["shipped"],
        },
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
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    asked = parser.parse_args()
    found = report(open_dataset(asked.data), asked.seconds, asked.pairs, asked.device)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["shipped"] | {"ratio": found["ratio"]}, indent=1))


if __name__ == "__main__":
    main()
