"""The one timer: gate, benchmark and agent all measure through it.

Each implementation under comparison, an arm, has a runner of its own. The judge's monotonic clock runs around one request for a block of `n`
calls, which takes about 5 ms. Every arm pays the same 0.8 ms of that for the request, woken threads and the copied call. Blocks of
the arms are interleaved in random order, and rounds of the cases with each other. Every call of a block has an input set of its own, with
contents that no call has seen (bench/staging.py), and in each block one call, drawn at random, is copied out while the clock runs; the most
suspicious of those are compared with float64 (bench/audit.py). Training ops are timed forward and backward together.

A comparison is the candidate's time over the incumbent's, with an interval (bench/ratio.py) for each case and for their mix, in which a case
counts as often as a step of the model calls it. The incumbent runs twice, in two runners: the candidate is compared with both, and where they
differ by more than noise the interval is widened accordingly. Because processes of one kernel differ, all three go on as new processes 8 to 15
times in 13 s (bench/runner/lives.py), and the interval comes from how much these parts differ; a GPU's processes cannot be forked, and its parts are
stretches of time. Runners take precedence over other work of the machine where the user may give it to them, with a core for each thread
(bench/sandbox/precedence.py). A comparison stops early where the answer is clear, or where nothing will be shown in time, and goes on for as
long again where it is nearly shown at the end (bench/speed.py).

It is refused, whatever its ratio, where a block is faster than this machine can be; where time that is saved in a row of calls is not saved by a
call that is asked alone (bench/savings.py); or where a runner worked while it was not asked, took more threads or memory than it should, or
changed torch's settings (bench/conduct.py). A speed-up of more than QUARANTINE times is no result before a person has looked at it.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from bench import clocks, device_memory, hardware, roofline
from bench.audit import Audit
from bench.conduct import Conduct, no_memory_hog
from bench.contracts import Case, Contract, contract
from bench.judge import Judge, Refused
from bench.rounds import Arm, Measured, Rounds, Samples, Table, prepare, ready
from bench.speed import CONFIDENCE, Comparison, bounds, concluded, excludes_one, mix
from bench.staging import Contents, fill
from bench.threads import one_thread

__all__ = ["Arm", "Measured", "Samples", "compare", "measure", "runners_of", "sample"]

# Of parts; with 4 s before them and 1.5 s behind at most 20 s in all, 25 where a call is slow to start. A comparison that is not sure goes on
# (LOOKS): the longest of the calibration took 42 s.
LIMIT_S = 13.0
PART_S = 0.5  # of rounds in a part; on a CPU each part has processes of its own, which takes another 0.3 to 0.5 s
LEAST = 5  # parts of a comparison, or rounds of a measurement, where one takes long
ROUNDS = 3  # of each case in a part, at least
# Shares of the time at which a comparison may end.
LOOKS = (0.3, 0.6, 1.0, 2.0)
# It ends at the second look where the chance to go on at the third is below this. Not at the first: the error of five parts is too rough a guess.
HOPE = 0.1
# It goes on at the third look, for as much time again, where the interval of CONFIDENCE does not exclude 1 and this one does.
ASKED_ON = 0.95
QUARANTINE = 10.0
PAIR = ("incumbent", "candidate")


def compare(
    op: str,
    incumbent: Path,
    candidate: Path,
    *,
    device: str = "cpu",
    limit_s: float = LIMIT_S,
    seed: int | None = None,
    cases: Sequence[Case] | None = None,
) -> Comparison:
    """Time an op of two trees on `cases`, by default those that a step of the trial's model calls on this machine, for up to `limit_s`, or twice that if undecided.

    Raises Refused when an arm fails, a timed output is wrong, or time was not saved honestly.
    """
    asked = contract(op)
    arms = (Arm("incumbent", incumbent), Arm("placebo", incumbent), Arm("candidate", candidate))
    rng = random.Random(secrets.randbits(48) if seed is None else seed)
    cases = asked.timed(device, hardware.trains_in(device), rng) if cases is None else cases
    started = time.monotonic()
    with _started(rng.sample(arms, len(arms)), device) as begun:
        runners = [next(r for r in begun if r.name == arm.name) for arm in arms]
        prepared = prepare(asked, cases, arms, runners, rng)
        before = clocks.read(device)
        with one_thread():
            stopped = _run(op, prepared, runners, limit_s)
        after = clocks.read(device)
        measured = [rounds.found for rounds in prepared]
        for rounds in prepared:
            with one_thread():
                rounds.finish(pair=True)
        for found in measured:
            _possible(asked, found, device)
            if found.alone["candidate"] and bounds([found], CONFIDENCE)[1] < 1:
                found.savings().check(found.case)
        for runner in runners:
            _once_more(asked, arms, runner, rng)
            runner.end(torch.get_num_threads())
            runner.unchanged()
        watched = {runner.name: runner for runner in runners if runner.name in PAIR}
        no_memory_hog(watched["incumbent"], watched["candidate"])
        _credible(measured)
        about = {name: _figures(runner) for name, runner in watched.items()}
    return concluded(
        measured,
        seconds=time.monotonic() - started,
        arms=about,
        stopped=stopped,
        clocks=[reading for reading in (before, after) if reading],
    )


def _run(op: str, prepared: Sequence[Rounds], runners: Sequence[Conduct], limit_s: float) -> str:
    """Run part after part until the end is clear or the time is used, which is doubled once. Returns in words why they ended.

    What is loaded, built and compiled before the first part takes none of this time.
    """
    measured = [rounds.found for rounds in prepared]
    _renew(op, prepared, runners, first=True)
    began, looks, part, end = time.monotonic(), list(LOOKS), 0, ""
    while not end:
        part += 1
        if part > 1 and runners[0].judge.device == "cpu":
            _renew(op, prepared, runners, first=False)
        until = time.monotonic() + PART_S
        for done in itertools.count():
            if done >= ROUNDS and time.monotonic() > until:
                break
            for rounds in prepared:
                rounds.round()
        for rounds in prepared:
            rounds.end_part()
        share = (time.monotonic() - began) / limit_s
        if part >= LEAST and share >= looks[0]:
            looks = [look for look in looks if look > share]
            end = _end(measured, share)
    return end


def _end(measured: Sequence[Measured], share: float) -> str:
    """In words, why it ends after this share of the time; empty where it goes on."""
    if excludes_one(bounds(measured, CONFIDENCE)):
        return f"clear after {share:.0%} of the time"
    _, hoped, whole, doubled = LOOKS
    if share >= doubled or (share >= whole and not excludes_one(bounds(measured, ASKED_ON))):
        return "the time was used"
    if hoped <= share < whole and mix(measured).chance(ASKED_ON, share) < HOPE:
        return f"hopeless after {share:.0%} of the time"
    return ""


def _renew(op: str, prepared: Sequence[Rounds], runners: Sequence[Conduct], *, first: bool) -> None:
    """Have the op loaded, brought its input sets and warmed up: on a CPU by a new process of each runner."""

    def load(runner: Conduct) -> None:
        if runner.judge.device == "cpu":
            if not first:
                runner.leave()
            runner.live()
        runner.load(op)

    with ThreadPoolExecutor() as pool:
        loaded = pool.map(load, prepared[0].rng.sample(runners, len(runners)))
        if not first:
            for rounds in prepared:
                rounds.move()
        list(loaded)  # raises what one raised
    ready(prepared, runners)


def sample(op: str, case: Case, arms: Sequence[Arm], *, device: str, limit_s: float) -> Samples:
    """Seconds a call, block by block and interleaved, for each arm by name."""
    rng = random.Random(secrets.randbits(48))
    with runners_of(op, arms, device) as runners:
        return measure(contract(op), case, arms, runners, limit_s=limit_s, rng=rng).row


def measure(
    asked: Contract,
    case: Case,
    arms: Sequence[Arm],
    runners: Sequence[Conduct],
    *,
    limit_s: float,
    rng: random.Random,
) -> Measured:
    """Interleaved blocks of one case until the time is used, LEAST rounds at least. Whatever compiles does so before that time begins.

    Raises Refused for a wrong answer.
    """
    prepared = prepare(asked, [case], arms, runners, rng)
    (rounds,) = prepared
    ready(prepared, runners)
    deadline = time.monotonic() + limit_s
    with one_thread():
        while rounds.found.rounds() < LEAST or time.monotonic() < deadline:
            rounds.round()
        rounds.finish(pair=False)
    return rounds.found


@contextlib.contextmanager
def runners_of(
    op: str, arms: Sequence[Arm], device: str, *, lent: bool = True
) -> Iterator[list[Conduct]]:
    """A runner for each arm, with the op loaded, as `measure` wants them. `lent`: tensors will travel; runners that draw their own need none."""
    with _started(arms, device, lent) as runners:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda runner: runner.load(op), runners))  # raises what one raised
        yield runners


@contextlib.contextmanager
def _started(arms: Sequence[Arm], device: str, lent: bool = True) -> Iterator[list[Conduct]]:
    """A runner for each arm, which has imported torch and nothing of a candidate."""
    with contextlib.ExitStack() as stack:
        # On a GPU tensors are lent in its own memory: else they would travel through the host while the clock runs.
        judges = [
            stack.enter_context(
                Judge(
                    arm.tree, device=device, memory=device_memory.lendable(device) if lent else None
                )
            )
            for arm in arms
        ]
        runners = [Conduct(arm.name, judge) for arm, judge in zip(arms, judges, strict=True)]
        for runner in runners:
            runner.judge.ask("stage", calls=[])  # answered once torch is imported
        ways = {runner.judge.lends for runner in runners}
        if len(ways) > 1:
            raise Refused("machine", f"the arms cannot be compared: some copy what others have in place ({'; '.join(sorted(ways))}); see `python -m agent doctor`")  # fmt: skip
        if lent and device == "cuda" and ways != {device_memory.DeviceMemory.words}:
            raise Refused("machine", f"nothing can be timed: tensors travel through the host while the clock runs ({'; '.join(ways)}); see `python -m agent doctor`")  # fmt: skip
        yield runners


def _once_more(asked: Contract, arms: Sequence[Arm], runner: Conduct, rng: random.Random) -> None:
    """A drawn case, as the correctness gate asks them, through the entry that was timed. Raises Refused if it is wrong now."""
    arm = next(arm for arm in arms if arm.name == runner.name)
    contents = Contents(asked, asked.draw(rng), rng)
    runner.judge.arena.reset()
    table = Table(contents, arm, runner)
    fill([table.stage], range(contents.sets()), rng)
    table.bring(table.stage.calls)
    audit = Audit(contents, {arm.name: table.stage}, runner.judge.device, rng)
    table.block([0], 0, rng.getrandbits(48))
    audit.see(0)
    audit.run()


def _credible(measured: Sequence[Measured]) -> None:
    """Raises Refused for a speed-up that is no result before a person has looked at it."""
    ratio, case = min((mix([found]).ratio, found.case.label()) for found in measured)
    if ratio * QUARANTINE < 1:
        raise Refused(
            "quarantine",
            f"quarantined: needs a person. {1 / ratio:.0f} times as fast on {case}, and nothing was found wrong; if it is right, judge it with "
            "--no-speed and commit it by hand",
        )


def _figures(runner: Conduct) -> dict[str, float]:
    """What a comparison tells of an arm."""
    return {
        "cold_s": round(runner.cold_s, 2),
        "peak_mb": round(runner.peak_bytes() / 2**20),
        "processors": round(runner.turn_cpu_s / runner.turn_s, 2),
        "first_in_line": float(runner.first_in_line),
        "spread": float(runner.spread),
        "alike": float(runner.alike),
    }


def _possible(asked: Contract, found: Measured, device: str) -> None:
    """Raises Refused where a block took less time than its traffic or arithmetic takes at the ceilings of this machine."""
    case = found.case
    moved, flops = asked.least_work(case)
    for name, seconds in found.wall.items():
        floor = roofline.floor_seconds(moved, flops, device)
        if min(seconds) < floor:
            # A ceiling that was measured while other work ran is too low, and nobody is refused for that.
            floor = roofline.floor_seconds(moved, flops, device, again=True)
        if min(seconds) < floor:
            raise Refused(
                "impossible",
                f"a call of the {name} took {1e6 * min(seconds):.0f} us on {case.label()}, where moving its data once takes this "
                f"machine at least {1e6 * floor:.0f} us: the work is not done in the call",
            )
