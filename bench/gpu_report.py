"""What the kernels reach on this GPU, in runs of under nine minutes: `python -m bench.gpu_report --out results/gpu`, again until nothing is left.

Its parts are facts of the device, ceilings, the shapes of every op timed beside every peer that is installed, a training step under the profiler,
every op through the correctness gate, the trial's shapes once more by the judge's clock, compute-sanitizer, and builds, which need no device. Each
part is a process (bench/gpu_parts.py) with a limit on its time. What it finds goes into OUT/raw.jsonl line by line, and OUT/report.md is written
anew after each group of parts (bench/gpu_table.py), so that whatever ends the run leaves what was measured. The same command goes on with the parts
that have not come to an end; to measure again those that have, give another --out. `--parts time profile` takes these alone.

Builds run all at once, checks and sanitizers half of them at a time; what is timed runs alone. What the budget does not reach is named, and left
to the next call: all of it takes some 50 minutes, by estimate. `--device cpu` rehearses the whole on a CPU, with the CPU's shapes.

Exit status: 0 everything was measured and no op refused, 1 an op was refused, or a part failed or is left to the next call, 2 nothing
could be measured, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Timer
from typing import Any

from bench import ROOT, gpu_table, hardware
from bench.contracts import Case, contract, ops
from bench.goals import GOALS, cases
from bench.identity import Mixed, identity, require_same
from bench.jsonl import whole_lines

BUDGET_S = 530.0
WORKERS = 10
# Groups of checks, one after the other; those of a group run at once, each with 5 GiB of the GPU that it lends, and float64 references of up to 26 GB.
CHECKS = 2
# Time limits (for an op, and for each of its shapes), estimated and not yet measured on a GPU. An op's part is for its runners and compilers. A
# shape's is in `time` for calls on the device alone, in `judge` for five rounds or more, in each of which three to seven runners get up to
# 2 GiB of new contents.
TIME_S, JUDGE_S = (30.0, 12.0), (60.0, 30.0)
STEP_S = 150.0  # it compiles the model
CHECK_S = 250.0  # drawn cases compile some hundred kernels, one after the other
SANITIZE_S = 190.0  # compute-sanitizer may take 180 (bench/sanitizer.py)
LEAST = 0.5  # of a part's time, without which it is not begun
PATIENCE = 2.0  # the times are estimates: what is cut short has to be compiled and measured again
CUT_SHORT = "it had not ended after"


@dataclass(frozen=True)
class Part:
    """`seconds`: what it should take. It is ended after PATIENCE times as long, if the budget has not ended it before."""

    name: str
    op: str | None
    seconds: float

    def __str__(self) -> str:
        return f"{self.name} {self.op}" if self.op else self.name


def plan() -> list[list[Part]]:
    """Groups of parts, in this order; those of a group run beside each other. Ops that have a goal come before those that have none."""
    aimed = list(dict.fromkeys(goal.op for goal in GOALS))
    others = [op for op in ops() if op not in aimed]
    return [
        [Part("facts", None, 20.0)],
        [Part("ceilings", None, 25.0)],
        *([_of_shapes("time", op, TIME_S, cases(op, "cuda"))] for op in aimed),
        [Part("profile", None, STEP_S)],
        *([Part("check", op, CHECK_S) for op in ops()[i::CHECKS]] for i in range(CHECKS)),
        *([_of_shapes("time", op, TIME_S, cases(op, "cuda"))] for op in others),
        *(
            [_of_shapes("judge", op, JUDGE_S, contract(op).trial["cuda"])]
            for op in (*aimed, *others)
        ),
        *([Part("sanitize", op, SANITIZE_S) for op in ops()[i::CHECKS]] for i in range(CHECKS)),
        [Part("build", op, 120.0) for op in ops()],
    ]


def _of_shapes(name: str, op: str, seconds: tuple[float, float], shapes: Sequence[Case]) -> Part:
    of_op, of_shape = seconds
    return Part(name, op, of_op + of_shape * len(shapes))


class Journal:
    """OUT/raw.jsonl: {"part", ...} for each finding, {"part", "ended", "why"} for the end of a part: done, refused, stopped."""

    def __init__(self, out: Path) -> None:
        self.out, self.file = out, out / "raw.jsonl"
        self._lock = Lock()
        self.lines = whole_lines(self.file)

    def write(self, line: dict[str, Any]) -> None:
        with self._lock, self.file.open("a") as file:
            self.lines.append(line)
            file.write(json.dumps(line) + "\n")

    def has_ended(self, part: Part) -> bool:
        """Whether it needs no further run, which a part that was stopped does."""
        return self.ended(part) not in ("", "stopped")

    def ended(self, part: Part) -> str:
        """How its last run ended; empty where none has."""
        ends = [str(n["ended"]) for n in self.lines if n["part"] == str(part) and "ended" in n]
        return ends[-1] if ends else ""

    def cut_short(self, part: Part) -> int:
        """How often it has used the whole of its limit."""
        return sum(
            n["part"] == str(part) and str(n.get("why", "")).startswith(CUT_SHORT)
            for n in self.lines
        )

    def latest(self) -> list[dict[str, Any]]:
        """The lines of each part's last run and its last end, and before them what an earlier run had found of shapes that the last one did not come to."""
        starts = {line["part"]: i for i, line in enumerate(self.lines) if "begun" in line}
        last = [line for i, line in enumerate(self.lines) if i >= starts.get(line["part"], 0)]
        # what the budget never reaches ends in each call anew, without a beginning
        ends = {line["part"]: line for line in last if "ended" in line}
        last = [line for line in last if "ended" not in line or line is ends[line["part"]]]
        found = {_about(line): line for line in self.lines if "case" in line}
        again = set(map(_about, last))
        return [line for about, line in found.items() if about not in again] + last


def _about(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return line["part"], line.get("case"), line.get("arm")


class Run:
    """Carries parts out. `command` makes a part's command line; `tell` prints one line."""

    def __init__(
        self,
        journal: Journal,
        command: Callable[[Part], Sequence[str]],
        tell: Callable[[str], None],
        budget_s: float = BUDGET_S,
    ) -> None:
        self.journal, self.command, self.tell = journal, command, tell
        self.deadline = time.monotonic() + budget_s
        self.running: set[subprocess.Popen[str]] = set()
        self.interrupted = False

    def all(self, groups: Iterable[Sequence[Part]]) -> bool:
        """Whether every part came to its end, and none refused. Ctrl-C ends what runs, and is raised again."""
        good = True
        for group in groups:
            waiting = [part for part in group if not self.journal.has_ended(part)]
            with ThreadPoolExecutor(WORKERS) as pool:
                try:
                    list(pool.map(self.one, waiting))
                except KeyboardInterrupt:
                    self.interrupted = True
                    pool.shutdown(wait=False, cancel_futures=True)
                    for process in list(self.running):
                        process.terminate()
                    raise
                finally:
                    table = gpu_table.render(self.journal.latest())
                    (self.journal.out / "report.md").write_text(table)
            good = good and all(self.journal.ended(part) == "done" for part in group)
        return good

    def one(self, part: Part) -> None:
        """Run a part, its findings into the journal as they come."""
        # A limit that was too short is as much longer in the next call: what the part had compiled is gone with its runners.
        own = PATIENCE * part.seconds * (1 + self.journal.cut_short(part))
        left = self.deadline - time.monotonic()
        limit = min(own, left)
        if left < LEAST * part.seconds:
            self._end(part, "stopped", "the budget was spent before it began", 0.0)
            return
        started = time.monotonic()
        self.journal.write({"part": str(part), "begun": round(limit, 1)})
        # in a session of its own: Ctrl-C is for this process, which then ends the others
        process = subprocess.Popen(
            self.command(part), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", cwd=ROOT, start_new_session=True
        )  # fmt: skip
        self.running.add(process)
        if self.interrupted:  # Ctrl-C came before it could be seen among what runs
            process.terminate()
        timer = Timer(limit, process.terminate)
        timer.start()
        reasons = []
        with ThreadPoolExecutor(1) as pool, process:
            assert process.stdout is not None
            assert process.stderr is not None
            words = pool.submit(process.stderr.read)  # else a full pipe would hold it up
            for line in process.stdout:
                found = _finding(line)
                reasons += [found["reason"]] if found.get("passed") is False else []
                self.journal.write({"part": str(part), **found})
            last = "".join(words.result().strip().splitlines()[-1:])
        timer.cancel()
        self.running.discard(process)
        seconds = time.monotonic() - started
        if process.returncode == -signal.SIGTERM:
            cut = f"{CUT_SHORT if limit == own else 'the budget ended it after'} {limit:.0f} s"
            self._end(part, "stopped", "Ctrl-C" if self.interrupted else cut, seconds)
        elif process.returncode == 0:
            self._end(part, "done", "", seconds)
        elif process.returncode == 1:
            why = reasons[0] if reasons else last or "it gave no reason"
            self._end(part, "refused", why, seconds)
        else:
            self._end(part, "stopped", last or f"status {process.returncode}", seconds)

    def _end(self, part: Part, how: str, why: str, seconds: float) -> None:
        why = " ".join(why.split())[:300]
        self.journal.write({"part": str(part), "ended": how, "why": why, "seconds": round(seconds, 1)})  # fmt: skip
        self.tell(f"{part}: {how} in {seconds:.0f} s{': ' if why else ''}{why}")


def _finding(line: str) -> dict[str, Any]:
    """What a part found. A line that is no finding, such as a library may print, is kept as text."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"text": line.rstrip()}


def identify(device: str, journal: Journal) -> None:
    """Write down what is measured here. Raises Mixed where the journal holds figures of something else."""
    ours = identity(device)
    held = next((line["identity"] for line in journal.lines if "identity" in line), None)
    if held is None:
        journal.write({"part": "identity", "identity": ours})
    else:
        require_same(journal.file, held, ours)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python -m bench.gpu_report",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument(
        "--budget", type=float, default=BUDGET_S, help="seconds of this call (default: %(default)g)"
    )
    names = list(dict.fromkeys(part.name for group in plan() for part in group))
    parser.add_argument(
        "--parts", nargs="+", choices=names, default=names, help="these alone (default: all)"
    )
    asked = parser.parse_args(arguments)
    if why := hardware.no_device(asked.device):
        print(why, file=sys.stderr)
        return 2
    if asked.out.exists() and not asked.out.is_dir():
        parser.error(f"--out {asked.out}: expected a folder, and that is a file")
    asked.out.mkdir(parents=True, exist_ok=True)
    journal = Journal(asked.out)
    try:
        identify(asked.device, journal)
    except Mixed as mixed:
        print(mixed, file=sys.stderr)
        return 2

    def command(part: Part) -> list[str]:
        words = [part.name, *([part.op] if part.op else []), "--device", asked.device]
        return [sys.executable, "-m", "bench.gpu_parts", *words]

    run = Run(journal, command, lambda line: print(line, flush=True), asked.budget)
    try:
        good = run.all([[part for part in group if part.name in asked.parts] for group in plan()])
    except KeyboardInterrupt:
        print(f"stopped; {asked.out} has what was measured, and the same command goes on", file=sys.stderr)  # fmt: skip
        return 130
    print(f"{asked.out / 'report.md'}: {gpu_table.summary(journal.latest())}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
