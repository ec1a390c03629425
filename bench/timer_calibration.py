"""How often the timer is wrong, and what it finds: `python -m bench.timer_calibration --comparisons 300 [--load]`.

Kernels are compared with themselves, and a third as often with a planted difference of 5 %, and of 2 %. A planted kernel runs its op so many
times within a call that one pass more is the difference; how many is measured first. Which of the two arms has the pass more is drawn. Each
comparison is at once a line of results/timer.tsv: a run that was ended goes on where it was. results/timer.md is written from all lines.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bench import ROOT, hardware
from bench.builds import build_all
from bench.contracts import contract, ops
from bench.judge import Refused
from bench.paragraphs import spaced
from bench.sandbox import processes
from bench.speed import CONFIDENCE
from bench.timing import ASKED_ON, LIMIT_S, Arm, compare, sample

ROWS = ROOT / "results" / "timer.tsv"
REPORT = ROOT / "results" / "timer.md"
COLUMNS = (
    "machine confidence kind op load others passes said expected ratio low high placebo_low placebo_high wall thread parts rounds seconds stopped"
).split()
PLANTED_OP = "rms_norm"
# Differences as shares of the time of a call, and about how many passes it then has beside the one that gradients flow through. That one, with its
# backward and what the judge copies, takes as long as five to ten passes.
PLANTED = {"5%": (0.05, 14), "2%": (0.02, 44)}
PASSES_S = 15.0  # to find the time of one pass
ALLOWED_S = 20.0  # for a comparison
BUSY = """
import os
started_by = os.getppid()
while os.getppid() == started_by:
    for _ in range(100_000):
        pass
"""
WANTED = {"aa": "at most 1 %", "5%": "at least 95 %", "2%": "at least 60 %"}
REPEATED = """

_one_pass = {op}


def {op}(*inputs, **named):
    with torch.no_grad():
        for _ in range({passes}):
            _one_pass(*inputs, **named)
    return _one_pass(*inputs, **named)
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.timer_calibration")
    parser.add_argument("--comparisons", type=int, required=True, help="of equal kernels")
    parser.add_argument("--load", action="store_true", help="beside a process that loads one core")
    asked = parser.parse_args(arguments)
    if asked.comparisons < 1:
        parser.error(f"--comparisons: expected 1 or more, got {asked.comparisons}")
    with processes.scratch() as folder, _load(asked.load):
        _build(ROOT)
        trees = _trees(Path(folder))
        while (kind := _next(asked.comparisons, asked.load)) is not None:
            _append(_compared(kind, trees, asked.load))
            REPORT.write_text(report(read()))


def read() -> list[dict[str, str]]:
    if not ROWS.is_file():
        return []
    with ROWS.open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def report(rows: Sequence[dict[str, str]]) -> str:
    """The Markdown of results/timer.md."""
    parts = [
        "# How often the timer is wrong, and what it finds",
        "Written by `python -m bench.timer_calibration --comparisons N [--load]` from timer.tsv, a line a comparison. Equal kernels: each op of this\n"
        f"tree with itself in turn, on the trial's shapes; planted: {PLANTED_OP} with one pass more. A comparison has\n"
        f"{LIMIT_S:.0f} s, and as many again where its {ASKED_ON:.0%} interval excludes 1 then and that of its confidence does not. "
        "Called different, of equal kernels, or\n"
        f"found, of planted ones: within {ALLOWED_S:.0f} s from the start of the runners, and in all. "
        "Load: the machine's average over a minute, this command's own share included.",
        "| machine | confidence | kind | beside a load | median load | comparisons | faster | slower | refused "
        f"| within {ALLOWED_S:.0f} s | in all | wanted | median ratio | median s | longest s |",
        "|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|---|--:|--:|--:|",
    ]
    by = ("machine", "confidence", "kind", "load")
    for group in sorted({tuple(r[name] for name in by) for r in rows}):
        mine = [r for r in rows if tuple(r[name] for name in by) == group]
        machine, confidence, kind, load = group
        said = [r["said"] for r in mine]
        called = [r for r in mine if _called(r)]
        soon = [r for r in called if float(r["seconds"]) <= ALLOWED_S]
        counts = " | ".join(str(said.count(word)) for word in ("faster", "slower", "refused"))
        others = statistics.median(float(r["others"]) for r in mine)
        ratios = [_size(r) for r in mine if r["ratio"]]
        seconds = [float(r["seconds"]) for r in mine if r["seconds"]] or [0.0]
        parts.append(
            f"| {machine} | {float(confidence):.1%} | {kind} | {load} | {others:.1f} | {len(mine)} | {counts} | "
            f"{len(soon) / len(mine):.1%} | {len(called) / len(mine):.1%} | {WANTED[kind]} | "
            f"{statistics.median(ratios or [1.0]):.4f} | {statistics.median(seconds):.1f} | {max(seconds):.1f} |"
        )
    return "\n".join(spaced(parts)) + "\n"


def _called(row: dict[str, str]) -> bool:
    """Whether the timer called a difference: wrongly of equal kernels, rightly of planted ones."""
    return (
        row["said"] == row["expected"] if row["expected"] else row["said"] in ("faster", "slower")
    )


def _size(row: dict[str, str]) -> float:
    """The ratio, as if the difference lay in the candidate."""
    ratio = float(row["ratio"])
    return 1 / ratio if row["expected"] == "faster" else ratio


def _next(wanted: int, load: bool) -> str | None:
    """The kind that is furthest behind on this machine; None when all are done."""
    here = hardware.name("cpu")
    now = (here, str(CONFIDENCE), _word(load))
    done = [r["kind"] for r in read() if (r["machine"], r["confidence"], r["load"]) == now]
    aims = {"aa": wanted, "5%": -(-wanted // 3), "2%": -(-wanted // 3)}
    left = {kind: done.count(kind) / aim for kind, aim in aims.items() if done.count(kind) < aim}
    return min(left, key=lambda kind: left[kind], default=None)


def _compared(kind: str, trees: dict[str, tuple[Path, int]], load: bool) -> dict[str, str]:
    rng = random.Random()
    op = rng.choice(ops()) if kind == "aa" else PLANTED_OP
    expected = "" if kind == "aa" else rng.choice(("faster", "slower"))
    arms = [trees["aa"], trees["aa"]]
    if expected:
        arms = [trees[f"{kind} less"], trees[f"{kind} more"]]
    (incumbent, passes), (candidate, _) = arms[::-1] if expected == "faster" else arms
    row = {
        "machine": hardware.name("cpu"),
        "confidence": str(CONFIDENCE),
        "kind": kind,
        "op": op,
        "load": _word(load),
        "others": f"{os.getloadavg()[0]:.1f}",
        "passes": str(passes or ""),
        "expected": expected,
    }
    try:
        found = compare(op, incumbent, candidate)
    except Refused as refused:
        return row | {"said": "refused", "stopped": str(refused)[:200].replace("\n", " ")}
    said = "faster" if found.faster else "slower" if found.slower else "no difference"
    figures = {
        "ratio": found.ratio,
        "low": found.low,
        "high": found.high,
        "placebo_low": found.placebo["low"],
        "placebo_high": found.placebo["high"],
        "wall": found.wall["ratio"],
        "thread": found.thread["ratio"],
    }
    return (
        row
        | {name: f"{x:.4f}" for name, x in figures.items()}
        | {
            "said": said,
            "parts": str(found.parts),
            "rounds": str(found.blocks),
            "seconds": f"{found.seconds:.1f}",
            "stopped": found.stopped,
        }
    )


def _append(row: dict[str, str]) -> None:
    new = not ROWS.is_file()
    with ROWS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def _trees(folder: Path) -> dict[str, tuple[Path, int]]:
    """The tree as it is, and with planted kernels, each with its passes; built, so that no comparison waits for a compiler."""
    found = {"aa": (ROOT, 0)}
    for kind, (size, about) in PLANTED.items():
        passes = _passes(folder, size, about)
        print(f"{kind}: one pass more than {passes}", flush=True)
        for name, n in (("less", passes), ("more", passes + 1)):
            found[f"{kind} {name}"] = (_tree(folder, n), n)
    return found


def _passes(folder: Path, size: float, about: int) -> int:
    """How many passes a call must have beside its usual one for one pass more to take `size` longer."""
    (case,) = (case for case in contract(PLANTED_OP).trial["cpu"] if case.calls)
    arms = [Arm(str(n), _tree(folder, n)) for n in (about, 2 * about)]
    taken = sample(PLANTED_OP, case, arms, device="cpu", limit_s=PASSES_S)
    fewer, more = (float(np.mean(np.sort(x)[: len(x) // 2])) for x in taken.values())
    one = (more - fewer) / about
    return max(1, round(1 / size - (fewer / one - about)))


def _tree(folder: Path, passes: int) -> Path:
    """This tree, with a kernel that has so many passes beside its usual one."""
    tree = folder / str(passes)
    if not tree.exists():
        for part in ("kernels", "csrc"):
            ignored = shutil.ignore_patterns("build", "__pycache__")
            shutil.copytree(ROOT / part, tree / part, ignore=ignored)
        file = tree / "kernels" / f"{PLANTED_OP}.py"
        file.write_text(file.read_text() + REPEATED.format(op=PLANTED_OP, passes=passes))
        _build(tree)
    return tree


def _build(tree: Path) -> None:
    built = build_all(tree)
    if not built.passed:
        raise RuntimeError(f"{tree} does not build: {built.reason}")


@contextlib.contextmanager
def _load(wanted: bool) -> Iterator[None]:
    """A process that loads one core."""
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", BUSY]) as busy:
        try:
            yield
        finally:
            busy.kill()


def _word(load: bool) -> str:
    return "yes" if load else "no"


if __name__ == "__main__":
    main()
