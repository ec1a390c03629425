"""Where time goes: an op's implementations beside each other, or a training step by op and operator. For advice, never for a verdict.

An op is timed by bench/timing.py on the calls that a step of the trial's model makes on this machine. A step is run by the runner under
torch.profiler; candidate code shares that process, so the figures are its own word. Two runs of different length are profiled and their
difference is divided by the steps between them: what a run costs once (drawing weights, first touches of memory) cancels. Two more run
without the profiler, which shows what it costs.

Both answers are plain JSON with "of", "device", "ceilings" (bench/roofline.py) and "rows", the longest first.

    a row          "name", "ms" (of one call, forward and backward; in a step, of all calls), "limit_ms" (the least time for its traffic and
                   arithmetic by bench/roofline.py; None where that is not known), "percent_of_limit"
    ... of an op   also "case", "tree" (draft or incumbent), "default", "quartiles_ms"
    an op          also "inside_case", the case with the most work in a step, and "inside", the operators that a call of the draft's default
                   makes on it: "name", "ms", "backward_ms" (the part of "ms" in the backward pass), "calls"
    ... of a step  also "op" (None outside the ops), "calls", "share" of "step_ms", "backward_ms" (the part of "ms" in the backward pass)
    a step         also "step_ms", "plain_ms" (without the profiler), "data_ms" (how long its loop waited for a batch; None where it draws none
                   with `next`), "python_ms" (all that no operator did; None on a GPU, where the host runs ahead), "threads", "implementations"
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from bench import hardware
from bench.compiled import Compiled
from bench.contracts import Case, Contract, Input, contract, ops, written
from bench.examination import Examination
from bench.implementations import runnable
from bench.judge import COMPILED, Judge, Refused
from bench.roofline import ceilings, limit_of
from bench.scoring import SEQUENCE
from bench.timing import Arm, measure, runners_of
from bench.trial import SETUP_LIMIT_S, specification

CASE_S = 2.0  # of timing, a case of an op
TIMES, INSIDE_ROWS = 5, 12  # calls whose operators are told apart
BEYOND = 110  # % of a limit
LENGTHS = (2, 2, 12)  # steps of the runs; the first is thrown away, it starts the profiler
MAX_ROWS = 40
WARM_UP_ROWS = 256
# That an argument of an op may have: a profile is the candidate's word.
DTYPES = ("float32", "bfloat16", "float16", "float64", "int64", "int32")


def of_op(op: str, tree: Path, *, beside: Path | None = None, device: str) -> dict[str, Any]:
    """Each implementation of an op that the device runs, on each call of a step; the default one of `beside` joins as "incumbent".

    Raises Refused if one fails.
    """
    names, default = _implementations(op, tree, device)
    arms = [Arm(f"draft {name}", tree, name) for name in names]
    if beside is not None:
        arms.append(Arm(f"incumbent {_implementations(op, beside, device)[1]}", beside))
    asked, rng = contract(op), random.Random()
    cases = asked.timed(device, hardware.trains_in(device), rng)
    measured: list[tuple[Case, str, str, list[float]]] = []
    with runners_of(op, arms, device) as runners:
        for case in cases:
            found = measure(asked, case, arms, runners, limit_s=CASE_S, rng=rng)
            for name, seconds in found.row.items():
                which, impl = name.split()
                measured.append((case, which, impl, list(seconds)))

    def rows() -> list[dict[str, Any]]:
        return [
            {
                "name": impl,
                "tree": which,
                "default": impl == default or which == "incumbent",
                "case": case.label(),
                **_figures(median(seconds), limit_of(asked, case, device)),
                "quartiles_ms": [round(1e3 * q, 4) for q in quantiles(seconds, n=4)[::2]],
            }
            for case, which, impl, seconds in measured
        ]

    # Which that is depends on the machine: on a Zen 4 a step's one full attention takes 10.7 ms, its three windowed ones 8.0.
    heaviest = max(cases, key=lambda c: c.calls * limit_of(asked, c, device))
    inside = {
        "inside_case": heaviest.label(),
        "inside": _inside(asked, heaviest, tree, default, device),
    }
    timed = _below_ceilings(lambda: {"rows": rows()}, device)
    return {"of": op, "device": device, "ceilings": ceilings(device), **timed, **inside}


def _inside(
    asked: Contract, case: Case, tree: Path, impl: str, device: str
) -> list[dict[str, Any]]:
    """The operators of one call, the longest first, each by its own time."""
    with Judge(tree, device=device) as judge:
        judge.ask("load", op=asked.name, tree=str(judge.tree))
        exam = Examination(asked, judge, random.getrandbits(32), impl)
        call = exam.lay(case).call
        found = judge.ask("within", op=asked.name, impl=impl, call=call, times=TIMES)["rows"]
    with _as_asked():
        rows = [
            {
                "name": _shown(name),
                "ms": round(us / 1e3 / TIMES, 4),
                "backward_ms": round(backward_us / 1e3 / TIMES, 4),
                "calls": round(calls / TIMES),
            }
            for name, (us, backward_us, calls) in found.items()
        ]
    return [row for row in rows if row["calls"]][:INSIDE_ROWS]


def of_step(
    tree: Path, vocab_size: int, bos: int, *, device: str, impl: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A training step of the tree's model on random tokens; `impl`: implementations by op, where not the device's choice.

    Raises Refused if it does not train.
    """
    limit = SETUP_LIMIT_S[device]
    spec = specification(vocab_size, bos, device, limit, impl)
    compiled = Compiled.of(tree, spec, COMPILED)
    with Judge(tree, device=device) as judge:
        compiled.bring(judge)
        judge.ask("load", tree=str(judge.tree))
        tokens = judge.arena.place("int32", (SEQUENCE[device] * WARM_UP_ROWS,))
        judge.arena.view(tokens).copy_(torch.randint(0, vocab_size, tuple(tokens["shape"])))
        answer = judge.ask(
            "profile",
            timeout=limit,
            spec=spec,
            ops=written(tree),
            tokens=tokens,
            lengths=list(LENGTHS),
            seed=0,
        )
        compiled.take(judge)
    with _as_asked():
        found = _below_ceilings(lambda: _step(answer, device), device)
    return {"of": "a training step", "device": device, "ceilings": ceilings(device), **found}


@contextmanager
def _as_asked() -> Iterator[None]:
    """In which a candidate's answer is read."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise Refused("structure", f"the profile is not what was asked for: {error!r}") from None


def _below_ceilings(profile: Callable[[], dict[str, Any]], device: str) -> dict[str, Any]:
    """The profile; if a row is far beyond its limit, with ceilings measured once more, since the first time other work may have run beside them."""
    found = profile()
    if any((row["percent_of_limit"] or 0) > BEYOND for row in found["rows"]):
        ceilings(device, again=True)
        found = profile()
    return found


def _implementations(op: str, tree: Path, device: str) -> tuple[list[str], str]:
    """Names of those that the device runs, and its choice."""
    with Judge(tree, device=device) as judge:
        answer = judge.ask("load", op=op, tree=str(judge.tree))
    said, default = answer.get("implementations"), answer.get("default")
    known = said if isinstance(said, list) else []
    one_word = all(str(name).split() == [name] for name in known)
    names = runnable(known, device) if one_word else []
    if default not in names:
        raise Refused("structure", f"implementations {said} with the default {default}: expected names of one word")  # fmt: skip
    return names, str(default)


def _step(answer: Mapping[str, Any], device: str) -> dict[str, Any]:
    """The profile of one step, from the difference of the last two runs."""
    short, long = answer["runs"][-2:]
    steps = LENGTHS[-1] - LENGTHS[-2]

    def a_step(less: float, more: float, unit: float) -> float:
        """Milliseconds."""
        return max(0.0, float(more) - float(less)) / unit / steps

    def figures(kind: str, name: str, limit: float | None) -> dict[str, Any]:
        (us, back, calls), (longer_us, longer_back, more_calls) = (
            run[kind].get(name, (0.0, 0.0, 0)) for run in (short, long)
        )
        ms, backward_ms = a_step(us, longer_us, 1e3), a_step(back, longer_back, 1e3)
        return {
            "calls": round((more_calls - calls) / steps),
            **_figures(ms / 1e3, limit),
            "backward_ms": round(min(ms, backward_ms), 4),
        }

    step_ms = max(a_step(short["seconds"], long["seconds"], 1e-3), 1e-6)
    rows: list[dict[str, Any]] = []
    for op in ops():
        limit = _least_s(op, long["calls"].get(op, []), LENGTHS[-1], device)
        rows.append({"name": op, "op": op, **figures("ops", op, limit)})
    for name in long["rest"]:
        row = {"name": _shown(name), "op": None, **figures("rest", name, None)}
        if row["calls"]:  # the rest is noise of what a run does once
            rows.append(row)
    if device == "cuda" and not any(row["ms"] for row in rows):
        raise Refused(
            "machine",
            "the profiler saw no kernel on the device: CUPTI does not work in the sandbox here",
        )
    idle = max(0.0, step_ms - sum(row["ms"] for row in rows))
    name = "nothing on the device" if device == "cuda" else "Python, between operators"
    rows.append({"name": name, "op": None, "calls": 1, **_figures(idle / 1e3, None), "backward_ms": 0.0})  # fmt: skip
    rows.sort(key=lambda row: -float(row["ms"]))
    for row in rows:
        row["share"] = round(row["ms"] / step_ms, 4)
    plain_short, plain_long = answer["plain"]
    named = a_step(short["python_us"], long["python_us"], 1e3)
    waited_us, draws = long["data"]
    return {
        "step_ms": round(step_ms, 2),
        "plain_ms": round(a_step(plain_short, plain_long, 1e-3), 2),
        "data_ms": round(waited_us / 1e3 / LENGTHS[-1], 4) if draws else None,
        "python_ms": None if device == "cuda" else round(idle + named, 4),
        "threads": int(answer["threads"]),
        "implementations": {_shown(op): _shown(i) for op, i in answer["implementations"].items()},
        "rows": [row for i, row in enumerate(rows) if i < MAX_ROWS or row["op"]],
    }


def _least_s(op: str, calls: Iterable[Any], steps: int, device: str) -> float | None:
    """Least seconds that a step needs for an op, from its calls in so many steps; None if none was seen (torch.compile hides them)."""
    asked, least = contract(op), 0.0
    for arguments, count in calls:
        least += int(count) * limit_of(asked, _case(arguments), device)
    return least / steps or None


def _case(arguments: Mapping[str, Any]) -> Case:
    """A case of the shapes that a call had, forward only if no gradient flowed."""
    inputs, scalars, trained = {}, {}, False
    for name, value in arguments.items():
        if not isinstance(value, list):
            scalars[name] = value
            continue
        dtype, shape, grad = value
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
        inputs[name] = Input(tuple(int(n) for n in shape), dtype)
        trained = trained or bool(grad)
    return Case(inputs, scalars, forward_only=not trained)


def _figures(seconds: float, limit_s: float | None) -> dict[str, Any]:
    percent = None if not limit_s or not seconds else round(100 * limit_s / seconds, 1)
    return {
        "ms": round(1e3 * seconds, 4),
        "limit_ms": None if limit_s is None else round(1e3 * limit_s, 4),
        "percent_of_limit": percent,
    }


def _shown(name: Any) -> str:
    """A name that the runner gave, fit to be shown."""
    return "".join(c if c.isprintable() else "?" for c in str(name))[:100]
