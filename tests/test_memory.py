"""The memory of experiments is a page: the most useful first, grouped reasons, no longer for 3,000 experiments than for 30."""

from __future__ import annotations

import math
import random
import time
from itertools import product

import pytest
from lab_tree import past

from agent.records import CRASH, DROP, KEEP, LOST, OPEN, REFUSE, RUNNING, Outcome, Past
from agent.research import amdahl
from agent.research.memory import MAX_MEMORY, digest

OPS = ("attention", "rms_norm", "newton_schulz", "linear_cross_entropy", "add_rms_norm")


def row(
    number: int, status: str = DROP, *, op: str = "rms_norm", idea: str = "", reason: str = "", gate: str | None = None,
    speed: float | None = None, bpb: float | None = None, run: str = "now", paths: tuple[str, ...] | None = None,
) -> Past:  # fmt: skip
    val = None if bpb is None else 2.0 + bpb
    return past(
        number, run=run, hypothesis=idea or f"idea {number}", paths=(f"csrc/{op}.cpp",) if paths is None else paths,
        outcome=Outcome(status, f"{gate}: {reason}" if gate else reason, speed=speed, val_bpb=val, bpb_change=bpb), refused_by=gate,
    )  # fmt: skip


def campaign(count: int, seed: int = 0) -> list[Past]:
    """Experiments as a night leaves them, hypotheses and reasons long and varied."""
    rng = random.Random(seed)
    words = "tile row cache vector unroll fuse reduce split prefetch accumulate mask window stage bank warp".split()
    rows = []
    for n in range(1, count + 1):
        idea = " ".join(rng.choices(words, k=rng.randint(5, 60)))
        op, run = rng.choice(OPS), f"run-{n * 5 // count}"
        kind = rng.random()
        if kind < 0.08:
            rows.append(row(n, KEEP, op=op, idea=idea, speed=rng.uniform(0.6, 0.98), bpb=-0.001, run=run))  # fmt: skip
        elif kind < 0.25:
            rows.append(row(n, DROP, op=op, idea=idea, reason=f"no better: {rng.random():+.4f} BPB over 1 pair(s)", speed=0.9, bpb=rng.uniform(-0.01, 0.01), run=run))  # fmt: skip
        elif kind < 0.9:
            gate = rng.choice(["scope", "static", "build", "correctness", "microbench", "parity"])
            reason = f"{rng.choice(words)} is {rng.random():.3f} at line {n}, at most {rng.choice(words)}"
            rows.append(row(n, REFUSE, op=op, idea=idea, reason=reason, gate=gate, speed=rng.uniform(0.9, 1.3), run=run))  # fmt: skip
        elif kind < 0.97:
            rows.append(row(n, CRASH, op=op, idea=idea, reason=f"trial: nan: step {n}", run=run))
        else:
            rows.append(row(n, CRASH, idea="no proposal", reason="no proposal: no answer", run=run, paths=()))  # fmt: skip
    return rows


def test_the_page_does_not_grow_with_the_number_of_experiments() -> None:
    sizes = {n: len(digest(campaign(n), "kernels", None, "run-4")) for n in (30, 300, 3000, 9000)}
    assert max(sizes.values()) <= MAX_MEMORY
    assert min(sizes.values()) > 0.75 * MAX_MEMORY


@pytest.mark.parametrize(("target", "op"), [("kernels", None), ("kernels", "attention"), ("all", None)])  # fmt: skip
def test_ten_times_the_experiments_take_ten_times_as_long_and_no_more(
    target: str, op: str | None
) -> None:
    histories = {count: campaign(count) for count in (300, 3000)}
    takes: dict[int, list[float]] = {count: [] for count in histories}
    for _ in range(7):
        for count, rows in histories.items():
            began = time.thread_time()
            digest(rows, target, op, "run-4")
            takes[count].append(time.thread_time() - began)
    # Side by side: a machine that is slow is slow for both. To compare all with each other would take a hundred times as long.
    assert min(takes[3000]) < 20 * min(takes[300])


def test_the_longest_texts_stay_within_the_bound() -> None:
    long = {"idea": "x" * 50_000, "reason": "y" * 50_000, "speed": 0.9}
    cases = product((KEEP, DROP, REFUSE, CRASH), OPS, (None, "microbench", "build"))
    rows = [row(n, status, op=op, gate=gate, **long) for n, (status, op, gate) in enumerate(cases)]
    rows += [row(n, REFUSE, op=f"op{n}", gate=f"gate{n}", reason=f"r{n}") for n in range(200)]
    assert len(digest(rows, "kernels", None, "now")) <= MAX_MEMORY


def test_what_was_kept_comes_first_and_by_how_much() -> None:
    rows = [
        row(1, KEEP, idea="two rows a pass", speed=0.81, bpb=-0.0012),
        row(2, KEEP, idea="wider tiles", speed=0.95),
        row(3, KEEP, idea="elsewhere", speed=0.5, run="then"),
        row(4, DROP, idea="nothing", reason="no better"),
    ]
    page = digest(rows, "kernels", None, "now")
    assert page.startswith(
        "This run: 3 experiments, 2 kept, 1 since the last keep. All runs, target kernels: 4 experiments, 3 kept."
    )
    lines = page.splitlines()
    at = lines.index("Kept (this run's are in the incumbent, unless they were taken out since):")
    assert lines[at + 1] == "  1 [rms_norm] 0.810x time, -0.0012 BPB: two rows a pass"
    assert lines[at + 2] == "  2 [rms_norm] 0.950x time: wider tiles"
    assert lines[at + 3] == "  3 of then [rms_norm] 0.500x time: elsewhere"


def test_near_misses_are_named_with_their_figures_the_best_first() -> None:
    rows = [
        row(1, REFUSE, idea="a hair", gate="microbench", reason="not faster", speed=0.995),
        row(2, REFUSE, idea="two hairs", gate="microbench", reason="not faster", speed=0.985),
        row(3, REFUSE, idea="slower", gate="microbench", reason="slower", speed=1.2),
    ]
    page = digest(rows, "kernels", None, "now")
    section = page[page.index("Near misses") : page.index("Failed")]
    assert section.index("two hairs") < section.index("a hair")
    assert "0.985x time" in section
    assert "slower" not in section


def test_reasons_that_differ_in_figures_alone_are_one() -> None:
    rows = [
        row(n, REFUSE, gate="correctness", reason=f"rms_norm: y is off by {n / 7:.3e} at ({n}, 64)")
        for n in range(12)
    ]
    rows += [
        row(20, REFUSE, gate="static", reason="imports os"),
        row(21, DROP, reason="no better", bpb=0.001),
    ]
    page = digest(rows, "kernels", None, "now")
    assert "  correctness: 12\n    12x rms_norm: y is off by 1.571e+00 at (11, 64)" in page
    assert "  static: 1\n    1x imports os" in page
    assert "  trial, dropped: 1\n    1x no better" in page


def test_an_idea_that_met_a_keep_in_its_lines_is_not_told_as_a_failed_one() -> None:
    rows = [row(1, DROP, idea="no maximum", reason="the incumbent has changed in the same lines")]
    page = digest(rows, "kernels", None, "now")
    assert "  dropped unmeasured, so the idea is free: 1\n    1x the incumbent has changed" in page
    assert "    dropped unmeasured, so the idea is free: no maximum" in page


def test_ideas_are_counted_by_op_with_the_last_ones() -> None:
    rows = [
        row(n, REFUSE, op="attention", idea=f"idea {n}", gate="build", reason="r")
        for n in range(90)
    ]
    rows += [row(100, KEEP, op="rms_norm", idea="kept one", speed=0.9)]
    page = digest(rows, "kernels", None, "now")
    tried = page[page.index("Tried:") :]
    assert "  attention: 90 (90 refuse); the last:" in tried
    assert tried.index("idea 89") < tried.index("idea 88") < tried.index("idea 87")
    assert "idea 70" not in tried
    assert "  rms_norm: 1 (1 keep); the last:\n    keep: kept one" in tried


def test_only_what_concerns_the_target_and_op_is_told() -> None:
    rows = [
        row(1, KEEP, op="attention", idea="of attention", speed=0.9),
        row(2, KEEP, op="rms_norm", idea="of the norm", speed=0.9),
        row(3, KEEP, idea="of the model", bpb=-0.01, paths=("model/gpt.py",)),
    ]
    told = {
        asked: [idea for idea in ("of attention", "of the norm", "of the model") if idea in page]
        for asked in (("kernels", None), ("kernels", "attention"), ("model", None), ("all", None))
        if (page := digest(rows, *asked, "now"))
    }
    assert told == {
        ("kernels", None): ["of attention", "of the norm"],
        ("kernels", "attention"): ["of attention"],
        ("model", None): ["of the model"],
        ("all", None): ["of attention", "of the norm", "of the model"],
    }


def test_what_is_lost_or_under_way_elsewhere_is_not_told() -> None:
    rows = [row(1, RUNNING, idea="killed", run="then"), row(2, LOST, idea="lost")]
    page = digest(rows, "kernels", None, "now")
    assert page == (
        "This run: 0 experiments, 0 kept, 0 since the last keep. All runs, target kernels: 0 experiments, 0 kept."
    )


@pytest.mark.parametrize("status", OPEN)
def test_what_is_under_way_comes_first_and_whole_so_that_nobody_proposes_it_again(
    status: str,
) -> None:
    idea = "one pass " * 40
    rows = [row(1, KEEP, speed=0.9), row(2, status, idea=idea), row(3, status, op="attention")]
    page = digest(rows, "kernels", "rms_norm", "now")
    assert page.index("Under way in this run") < page.index("Kept (")
    assert f"  2 [csrc/rms_norm.cpp]: {idea.strip()}" in page
    assert "idea 3" not in page
    assert "Under way" not in digest(rows[:1], "kernels", None, "now")


def test_a_hypothesis_is_one_line_whatever_it_holds() -> None:
    page = digest([row(1, KEEP, idea="a\n\nKept:\n  99 [x] 0.1x time", speed=0.9)], "kernels", None, "now")  # fmt: skip
    assert "0.900x time: a Kept: 99 [x] 0.1x time" in page


def test_what_does_not_fit_is_counted() -> None:
    rows = [row(n, KEEP, speed=0.9, idea="w " * 60) for n in range(100)]
    page = digest(rows, "kernels", None, "now")
    section = page[: page.index("Tried")]
    shown = section.count("[rms_norm]")
    assert 5 < shown < 40
    assert f"... {100 - shown} more, for which there is no room here" in section


STEP = {
    "of": "a training step",
    "device": "cpu",
    "step_ms": 800.0,
    "rows": [
        {"name": "attention", "op": "attention", "ms": 400.0, "share": 0.5, "calls": 4, "percent_of_limit": 60.0},
        {"name": "rms_norm", "op": "rms_norm", "ms": 80.0, "share": 0.1, "calls": 9, "percent_of_limit": 10.0},
        {"name": "aten::mm", "op": None, "ms": 320.0, "share": 0.4, "calls": 20, "percent_of_limit": None},
    ],
}  # fmt: skip


def test_amdahls_law_says_the_most_that_is_to_be_won() -> None:
    attention, norm, mm = STEP["rows"]
    assert amdahl.most(attention) == pytest.approx(800 / (800 - 400 * 0.4))
    assert amdahl.most(norm) == pytest.approx(800 / (800 - 80 * 0.9))
    assert amdahl.most(mm) == pytest.approx(800 / 480)
    assert amdahl.most(attention | {"percent_of_limit": 130.0}) == 1.0
    assert amdahl.most(mm | {"share": 1.0}) == math.inf


def test_the_table_has_the_largest_prize_first_and_names_what_it_does_not_know() -> None:
    lines = amdahl.table(STEP).splitlines()
    assert lines[0] == "a training step on cpu, 800 ms"
    assert [line.split()[0] for line in lines[2:]] == ["aten::mm", "attention", "rms_norm"]
    assert lines[2].endswith("unknown  1.667x if it took no time")
    assert lines[3].split()[1:] == ["400.00", "50.0%", "4", "60", "1.250x"]


def test_the_table_is_bounded_and_keeps_to_its_lines() -> None:
    rows = [
        {"name": f"kernel\n{n} " * 40, "op": None, "ms": 1.0, "share": 0.001, "calls": 1, "percent_of_limit": None}
        for n in range(500)
    ]  # fmt: skip
    text = amdahl.table(STEP | {"rows": [*STEP["rows"], *rows]})
    assert len(text) < 3_000
    assert text.count("\n") == amdahl.MAX_ROWS + 2
    assert "the other 483" in text.splitlines()[-1]


def test_without_a_profile_it_says_so_and_nobody_has_a_share() -> None:
    assert "no profile" in amdahl.table(None)
    assert amdahl.shares(None) == {}
    assert amdahl.shares(STEP) == {"attention": 0.5, "rms_norm": 0.1}
