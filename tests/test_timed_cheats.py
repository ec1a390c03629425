"""Cheats against the clock (tests/cheats/*_timed_*): each gains from a naive timer and nothing from the microbench gate, with that gate alone.

A cheat's docstring says `Gate: microbench (KIND).` where its refusal is certain, and no kind where it may as well be found no faster than the
plain version that it wraps: a memo of contents that never come again answers rightly, and pays for its keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import naive
import pytest
from warm import Timers

from agent.lab import Lab
from bench import roofline, rounds, timing
from bench.contracts import Case, Input
from bench.judge import Refused
from bench.speed import Comparison
from bench.timing import LEAST, ROUNDS, compare

ROOT = Path(__file__).resolve().parent.parent
CHEATS = sorted((ROOT / "tests" / "cheats").glob("*_timed_*.py"))
SEED = 7
GAIN = 1.2  # from the naive timer, at least
NO_GAIN = 0.9  # of the plain version's time: what noise may show on a machine that does other work
# Small enough for many calls a block, and for memory that malloc keeps: beyond 128 KB a process waits for pages in every call, or never.
CASES = {
    "adamw": Case(
        {
            **{name: Input((128, 192)) for name in ("param", "grad", "exp_avg")},
            "exp_avg_sq": Input((128, 192), positive=True),
        }
    ),
    "attention": Case({name: Input((2, 3, 128, 64)) for name in "qkv"}),
    "linear_cross_entropy": Case(
        {
            "h": Input((256, 64)),
            "W": Input((512, 64), scale=0.1),
            "targets": Input((256,), "int64", below=512),
        },
        {"softcap": 15.0},
    ),
    "newton_schulz": Case({"G": Input((2, 128, 128))}),
    "rms_norm": Case({"x": Input((128, 192))}),
}
TABLE = '''"""RMSNorm whose constants stand in a table that is built when a width first comes, kept by lru_cache and by shape."""
import functools
import torch


@functools.lru_cache
def reciprocal(D):
    return torch.tensor(1.0 / D)


_TABLES = {}


def rms_norm(x, weight=None, eps=1e-6):
    table = _TABLES.setdefault((x.shape, eps), reciprocal(x.shape[-1]) * eps * x.shape[-1])
    xf = x.float()
    y = xf * torch.rsqrt(xf.square().mean(-1, keepdim=True) + table)
    return (y if weight is None else y * weight.float()).to(x.dtype)
'''
MASK = '''"""Attention that keeps its mask by shape."""
import functools
import math
import torch


@functools.lru_cache(maxsize=8)
def hidden(T, causal, window):
    i, j = torch.arange(T).view(T, 1), torch.arange(T).view(1, T)
    seen = j <= i if causal else torch.ones(T, T, dtype=torch.bool)
    return ~seen if window is None else ~(seen & (i - j < window) & (j - i < window))


def attention(q, k, v, causal=True, window=None):
    group, D = q.shape[1] // k.shape[1], q.shape[-1]
    k, v = (t.repeat_interleave(group, 1).float() for t in (k, v))
    scores = q.float() @ k.transpose(-1, -2) / math.sqrt(D)
    scores = scores.masked_fill(hidden(q.shape[2], causal, window), -math.inf)
    return (scores.softmax(-1) @ v).to(q.dtype)
'''


def op_of(path: Path) -> str:
    return path.name.split("_timed_")[0]


@pytest.fixture(autouse=True)
def waiting(
    timers: Timers, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Comparisons take runners that have started already; tests/test_lab.py starts its own.

    One that ends the same whatever the times are is short.
    """
    monkeypatch.setattr(timing, "Judge", timers.judge)
    if request.node.get_closest_marker("alone") is None:
        monkeypatch.setattr(timing, "LEAST", 3)
        monkeypatch.setattr(timing, "PART_S", 0.1)
        monkeypatch.setattr(rounds, "WARM_UP_S", 0.1)


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[str, str | None], Path]:
    """The project's kernels with one op replaced by a text, or by its own plain torch version."""

    def make(op: str, text: str | None) -> Path:
        folder = Lab().copy_tree(tmp_path / ("plain" if text is None else "other"))
        file = folder / "kernels" / f"{op}.py"
        plain = '\n\nIMPLEMENTATIONS = {"torch": IMPLEMENTATIONS["torch"]}\n'
        file.write_text(file.read_text() + plain if text is None else text)
        return folder

    return make


@pytest.mark.proof
@pytest.mark.parametrize("path", CHEATS, ids=lambda p: p.stem)
def test_gains_from_a_naive_timer(path: Path, tree: Callable[..., Path]) -> None:
    part = re.search(r"Gains: time (forward|backward)\.", path.read_text())
    assert part, "the docstring says `Gains: time forward.` or backward"
    folder = tree(op_of(path), path.read_text())
    for _ in range(3):  # a slow second beside other tests hides what a cheat gains
        found = naive.judge(op_of(path), folder)
        if getattr(found, part[1]) < 1 / GAIN:
            break
    assert found.accepted, found.said
    assert getattr(found, part[1]) < 1 / GAIN, found


# Refused for what they return or change, whatever else runs.
CERTAIN = (
    "_lazy",
    "_global_state",
    "_timed_rests",
    "_kept_logits",
    "_all_at_once",
    "_shape_replay",
    "_version_memo",
)
# A second cheat of a row of the catalogue, which `make proof` tries.
TWINS = (
    "_content_memo",
    "_corner_memo",
    "_sampled_memo",
    "_cheap_in_bursts",
    "_cheap_after_calls",
    "_keeps_everything",
    "_slow_library",
)


def _marked(path: Path) -> object:
    marks = [] if path.stem.endswith(CERTAIN) else [pytest.mark.alone]
    marks += [pytest.mark.proof] if path.stem.endswith(TWINS) else []
    return pytest.param(path, id=path.stem, marks=marks)


@pytest.mark.parametrize("path", [_marked(path) for path in CHEATS])
def test_gains_nothing_from_the_microbench_gate(path: Path, tree: Callable[..., Path]) -> None:
    op, text = op_of(path), path.read_text()
    said = re.search(r"Row: (?:[TPH]\d\d(?:, )?)+\. Gate: microbench(?: \((.+)\))?\.", text)
    assert said, "the docstring names a row and the gate"
    kind, found = outcome(op, tree(op, None), tree(op, text))
    if said[1] is not None:
        assert kind in said[1].split(" or "), found
    else:
        assert kind in ("", "wrong", "memory"), found


def outcome(op: str, incumbent: Path, candidate: Path) -> tuple[str, object]:
    """The kind of the refusal; "" for no gain; "gain"."""
    try:
        found = compare(op, incumbent, candidate, limit_s=1.0, seed=SEED, cases=[CASES[op]])
    except Refused as refused:
        return refused.kind, refused
    return "gain" if found.faster and found.ratio < NO_GAIN else "", found


@pytest.mark.alone
@pytest.mark.parametrize(
    ("op", "source"),
    [
        ("rms_norm", "rms_norm_autotuned.py"),
        pytest.param("rms_norm", "rms_norm_workspace.py", marks=pytest.mark.proof),
        pytest.param("rms_norm", TABLE, marks=pytest.mark.proof),
        pytest.param("attention", MASK, marks=pytest.mark.proof),
    ],
    ids=("autotuned", "workspace", "lazily_built_table", "mask_by_shape"),
)
def test_honest_oddity_is_timed_and_not_refused(
    op: str, source: str, tree: Callable[..., Path]
) -> None:
    text = (ROOT / "tests" / "honest" / source).read_text() if source.endswith(".py") else source
    found = compare(op, tree(op, None), tree(op, text), limit_s=1.0, seed=SEED, cases=[CASES[op]])
    # a mask that is kept may be faster, and honestly so
    assert found.blocks >= LEAST * ROUNDS
    assert found.low < found.ratio < found.high
    assert Comparison(**asdict(found)) == found


def test_a_speed_up_of_more_than_ten_waits_for_a_person(tree: Callable[..., Path]) -> None:
    slow = tree(
        "rms_norm",
        TABLE.replace("    xf =", "    time.sleep(0.1)\n    xf =").replace(
            "import torch", "import time\nimport torch"
        ),
    )
    small = Case({"x": Input((256, 192))})
    with pytest.raises(Refused, match="needs a person") as refused:
        compare("rms_norm", slow, tree("rms_norm", None), limit_s=0.5, seed=SEED, cases=[small])
    assert refused.value.kind == "quarantine"


def test_a_block_faster_than_the_machine_is_refused_and_the_ceiling_is_measured_again_first(
    tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def floor(moved: float, flops: float, device: str, *, again: bool = False) -> float:
        asked.append(again)
        return 1.0

    monkeypatch.setattr(roofline, "floor_seconds", floor)
    with pytest.raises(Refused, match="at least 1000000 us") as refused:
        compare("rms_norm", tree("rms_norm", None), tree("rms_norm", TABLE), limit_s=0.5, cases=[CASES["rms_norm"]])  # fmt: skip
    assert refused.value.kind == "impossible"
    assert asked == [False, True]
