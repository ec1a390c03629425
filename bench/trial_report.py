"""What trials of this checkout reach, and how much of it the kernels bring: the figures of the README.

    python -m bench.trial_report DATA --out FILE [--arms shipped torch torch.compile] [--seeds 0] [--seconds 300] [--device cpu]

DATA is a folder that `python -m agent prepare` made: of the embedded corpus, or of your own text with `--data DIR`. For each seed the same model
is trained and scored, by turns, with the kernels as shipped, with every op in plain torch (AdamW in torch's fused kernel), and with forward and
backward of that under torch.compile. On a GPU there are more arms to ask for: `fa4` is as shipped but for attention, which is flash-attn-4's, where
that is installed (cuDNN knows no window, and most layers have one); `autoresearch` has the shipped kernels in a model of autoresearch's size,
depth 8 with half a million tokens a step, whose tokens/s and BPB are published.

With more than one seed, means come with their 95 % interval over seeds (bench/interval.py), and so does what the shipped kernels gain, seed by
seed. Each trial is at once a line of the .jsonl beside FILE: a run that was ended goes on where it was, and one of more seeds or arms adds to it.

Exit status: 0 the report is written, 1 a trial failed or the kernels do not build, 2 what was asked for cannot be reported or added to FILE.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import ROOT, hardware
from bench.builds import build, build_all
from bench.contracts import written
from bench.corpus import DataError
from bench.data import Dataset, open_dataset
from bench.identity import Mixed, identity, require_same
from bench.interval import Figure, Spread, mean
from bench.jsonl import whole_lines
from bench.roofline import ceilings
from bench.trial import run_trial

OURS = "shipped"
PLAIN = dict.fromkeys(written(ROOT), "torch") | {"adamw": "fused"}
ANYWHERE: dict[str, dict[str, Any]] = {
    OURS: {},
    "torch": {"impl": PLAIN, "compiled": False},
    "torch.compile": {"impl": PLAIN, "compiled": True},
}
# What `run_trial` is told for each arm.
ARMS: dict[str, dict[str, Any]] = {
    **ANYWHERE,
    "fa4": {"impl": {"attention": "fa4"}},
    "autoresearch": {"size": "autoresearch"},
}
FIGURES = (
    "val_bpb", "tokens_per_second", "training_seconds", "total_seconds", "setup_seconds", "num_steps", "total_tokens_M", "num_params_M",
    "mfu_percent", "peak_memory_mb", "implementations", "isolation",
)  # fmt: skip
MEANS = ("val_bpb", "tokens_per_second", "num_steps", "total_tokens_M", "mfu_percent", "setup_seconds")  # fmt: skip

Trials = dict[str, list[dict[str, Any]]]  # by arm, a seed after the other


def trials(
    dataset: Dataset,
    seconds: float,
    seeds: Sequence[int],
    arms: Sequence[str],
    device: str,
    kept: Path,
) -> Trials:
    """The figures of a scored trial of each arm for each seed.

    Raises Mixed where `kept` holds trials of something else, SystemExit where a trial fails.
    """
    about = {"seconds": seconds, "dataset": dataset.directory.name, **identity(device)}
    earlier = whole_lines(kept)
    for line in earlier:
        require_same(kept, line["about"], about)
    done = {(line["arm"], line["seed"]): line["figures"] for line in earlier}
    for number, seed in enumerate(seeds):
        turn = number % len(arms)
        for arm in (*arms[turn:], *arms[:turn]):
            if (arm, seed) in done:
                continue
            result = run_trial(ROOT, dataset, seconds=seconds, seed=seed, device=device, **ARMS[arm])  # fmt: skip
            if not result.ok:
                raise SystemExit(f"a trial failed ({result.failure}): {result.detail}")
            figures = done[arm, seed] = {name: getattr(result, name) for name in FIGURES}
            with kept.open("a") as file:
                line = {"arm": arm, "seed": seed, "about": about, "figures": figures}
                file.write(json.dumps(line) + "\n")
            print(f"seed {seed}, {arm}: val_bpb {result.val_bpb:.4f}, {result.tokens_per_second:,.0f} tokens/s", flush=True)  # fmt: skip
    return {arm: [done[arm, seed] for seed in seeds] for arm in arms}


def report(found: Trials) -> dict[str, Any]:
    """The means of each arm, and what the shipped kernels gain over each other arm."""
    summary: dict[str, Any] = {arm: over_seeds(each) for arm, each in found.items()}
    peers = [arm for arm in found if arm != OURS]
    if OURS in found and peers:
        summary["gain"] = {peer: gain(found[OURS], found[peer]) for peer in peers}
    return summary


def over_seeds(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of what differs from seed to seed, each seed's own figures, and bounds where there are several seeds; all else as in the first trial."""
    figures = {name: _mean([float(trial[name]) for trial in each]) for name in MEANS}
    return {
        **each[0],
        **{name: figure.value for name, figure in figures.items()},
        "seeds": len(each),
        "interval": {name: [f.low, f.high] for name, f in figures.items() if f.runs > 1},
        "by_seed": {name: [trial[name] for trial in each] for name in MEANS},
    }


def gain(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seed by seed: the ratio of tokens/s, by the geometric mean, and the difference in BPB."""

    def pairs(name: str) -> list[tuple[float, float]]:
        return [(float(a[name]), float(b[name])) for a, b in zip(ours, theirs, strict=True)]

    speed = _mean([math.log(a / b) for a, b in pairs("tokens_per_second")]).exp()
    bits = _mean([a - b for a, b in pairs("val_bpb")])
    return {"tokens_per_second_ratio": _told(speed), "val_bpb_difference": _told(bits)}


def _mean(values: Sequence[float]) -> Figure:
    return mean(values, Spread.pooled([values]))


def _told(figure: Figure) -> dict[str, Any]:
    bounds = {"low": figure.low, "high": figure.high} if figure.runs > 1 else {}
    return {"value": figure.value, **bounds, "seeds": figure.runs}


def sentence(figure: Mapping[str, Any]) -> str:
    """A figure with its bounds, and how many seeds stand behind it."""
    if "low" not in figure:
        return f"{figure['value']:.5g}, one seed: no interval"
    return f"{figure['value']:.5g}, 95 % interval {figure['low']:.5g} to {figure['high']:.5g}, {figure['seeds']} seeds"


def lines(summary: Mapping[str, Any]) -> list[str]:
    """What is printed of a report."""
    told = []
    for arm in (arm for arm in ARMS if arm in summary):
        for name in MEANS[:2]:
            bounds = dict(zip(("low", "high"), summary[arm]["interval"].get(name, ()), strict=False))  # fmt: skip
            figure = {"value": summary[arm][name], "seeds": summary[arm]["seeds"], **bounds}
            told.append(f"{arm} {name}: {sentence(figure)}")
    for peer, figures in summary.get("gain", {}).items():
        told += [f"{OURS} against {peer}, {name}: {sentence(f)}" for name, f in figures.items()]
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.trial_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ANYWHERE))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="a trial of each arm for each")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    asked = parser.parse_args()
    if asked.out.is_dir():
        parser.error(f"--out {asked.out}: expected a file, and that is a folder")
    if asked.device == "cpu" and (others := [arm for arm in asked.arms if arm not in ANYWHERE]):
        parser.error(f"--arms {' '.join(others)}: on a GPU alone, and --device is cpu")
    if asked.out.suffix == ".jsonl":
        parser.error(
            f"--out {asked.out}: the trials themselves are kept in a .jsonl beside it; name a .json"
        )
    if why := hardware.no_device(asked.device):
        parser.error(why)
    if not 0 < asked.seconds < math.inf:
        parser.error(f"--seconds: expected more than 0, and an end, got {asked.seconds:g}")
    if len(set(asked.seeds)) < len(asked.seeds):
        parser.error(f"--seeds: expected each once, got {asked.seeds}")
    try:
        dataset = open_dataset(asked.data)
    except DataError as error:
        parser.error(str(error))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    kept = asked.out.with_suffix(".jsonl")
    arms = [arm for arm in ARMS if arm in asked.arms]
    # What the cache lacks each runner would compile in its set-up, at the expense of its training.
    # C++ is for CPUs: compiling all of it would take a minute of a GPU's time
    cuda = [f"csrc/{path.name}" for path in (ROOT / "csrc").glob("*.cu")]
    built = build_all(ROOT) if asked.device == "cpu" else build(ROOT, cuda)
    if not built.passed:
        raise SystemExit(f"the kernels do not build: {built.reason}")
    try:
        found = trials(dataset, asked.seconds, asked.seeds, arms, asked.device, kept)
    except Mixed as mixed:
        parser.error(str(mixed))
    summary = report(found)
    about = {
        "machine": hardware.name(asked.device),
        "ceilings": ceilings(asked.device),
        "dataset": dataset.directory.name,
        "seconds": asked.seconds,
    }
    asked.out.write_text(json.dumps(about | summary, indent=1) + "\n")
    print("\n".join(lines(summary)))


if __name__ == "__main__":
    main()
