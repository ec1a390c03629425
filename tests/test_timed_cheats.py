"""Cheats against the clock (tests/cheats/*_timed_*): each gains from a naive timer and nothing from the microbench gate, with that gate alone.

A cheat's docstring says `Gate: microbench (KIND).` where its refusal is certain, and no kind where it may as well be found no faster than the
plain version that it wraps: a memo of contents that never come again answers rightly, and pays for its keys.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import naive
import numpy as np
import pytest
import torch

from bench import roofline
from bench.conduct import Conduct, no_memory_hog
from bench.contracts import Case, Input, contract
from bench.judge import Arena, Refused
from bench.protocol import Mapped
from bench.runner.blocks import Blocks
from bench.runner.calls import Calls
from bench.runner.lending import Lent
from bench.sandbox import processes
from bench.savings import Savings
from bench.speed import Comparison
from bench.staging import PAGE, Contents, Stage
from bench.timing import compare

pytestmark = pytest.mark.alone

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


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[str, str | None], Path]:
    """The project's kernels with one op replaced by a text, or by its own plain torch version."""

    def make(op: str, text: str | None) -> Path:
        folder = tmp_path / ("plain" if text is None else "other")
        for name in ("kernels", "csrc"):
            ignored = shutil.ignore_patterns("build", "__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
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
    found = naive.judge(op_of(path), tree(op_of(path), path.read_text()))
    assert found.accepted, found.said
    assert getattr(found, part[1]) < 1 / GAIN, found


@pytest.mark.parametrize("path", CHEATS, ids=lambda p: p.stem)
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


@pytest.mark.parametrize(
    ("op", "source"),
    [
        ("rms_norm", "rms_norm_autotuned.py"),
        ("rms_norm", "rms_norm_workspace.py"),
        ("rms_norm", TABLE),
        ("attention", MASK),
    ],
    ids=("autotuned", "workspace", "lazily_built_table", "mask_by_shape"),
)
def test_honest_oddity_is_timed_and_not_refused(
    op: str, source: str, tree: Callable[..., Path]
) -> None:
    text = (ROOT / "tests" / "honest" / source).read_text() if source.endswith(".py") else source
    found = compare(op, tree(op, None), tree(op, text), limit_s=1.0, seed=SEED, cases=[CASES[op]])
    assert found.ratio > 0
    assert found.arms["candidate"]["peak_mb"] > 50
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


@pytest.mark.parametrize(
    ("alone_ms", "honest"),
    [(0.7, True), (0.95, True), (1.2, False)],
    ids=("all_of_it", "half_of_it_as_threads_are_woken_first", "nothing"),
)
def test_a_call_asked_alone_has_to_save_its_share(alone_ms: float, honest: bool) -> None:
    noise = np.random.default_rng(0).normal(0, 0.02, (2, 30))
    row = {"incumbent": [1e-3] * 30, "candidate": [0.5e-3] * 30}
    alone = {
        "incumbent": [1e-3 * (1.2 + x) for x in noise[0]],
        "candidate": [1e-3 * (alone_ms + x) for x in noise[1]],
    }
    savings = Savings.of(row, alone)
    assert not savings.unclear
    if honest:
        savings.check(CASES["rms_norm"])
        return
    with pytest.raises(Refused, match="asked alone"):
        savings.check(CASES["rms_norm"])


def test_contents_are_new_before_every_block_and_the_same_in_all_arms() -> None:
    case = contract("linear_cross_entropy").trial["cpu"][0]
    contents = Contents(contract("linear_cross_entropy"), case, random.Random(1))
    arenas = [Arena(), Arena()]
    stages = [Stage(contents, arena) for arena in arenas]
    for stage in stages:
        stage.fill(5)
    before = {name: t.clone() for name, t in stages[0].inputs(1)[0].items()}
    for stage in stages:
        stage.change([0, 1], 6)
    inputs, upstream = stages[0].inputs(1)
    twins, twin_upstream = stages[1].inputs(1)
    for name, t in [*inputs.items(), ("upstream", upstream[0])]:
        assert torch.equal(t, twins[name] if name in twins else twin_upstream[0])
    for name, t in inputs.items():
        pages = t.view(torch.uint8).flatten() != before[name].view(torch.uint8).flatten()
        assert bool(pages.view(-1, PAGE).any(1).all()), f"a page of {name} is as it was"
    assert int(inputs["targets"].min()) >= 0
    assert int(inputs["targets"].max()) < case.inputs["targets"].below


def test_input_sets_that_lie_in_other_memory_are_new_and_the_same_in_all_arms() -> None:
    case = contract("linear_cross_entropy").trial["cpu"][0]
    contents = Contents(contract("linear_cross_entropy"), case, random.Random(1))
    stages = [Stage(contents, Arena()) for _ in range(2)]
    for stage in stages:
        stage.fill(5)
        stage.poison()
    before = [{name: t.clone() for name, t in stages[0].inputs(i)[0].items()} for i in (0, 1)]
    for stage in stages:
        stage.vacate([1])
    assert not stages[0].inputs(1)[0]["W"].flatten()[PAGE:-PAGE].any()
    assert not stages[0].answer()["dW"].flatten()[PAGE:-PAGE].any()
    for stage in stages:
        stage.refill(1, 6)
    kept, new = (stages[0].inputs(i)[0] for i in (0, 1))
    for name in new:
        assert torch.equal(kept[name], before[0][name])
        assert torch.equal(new[name], stages[1].inputs(1)[0][name])
        assert not torch.equal(new[name], before[1][name])


@pytest.fixture
def process() -> Callable[[str], subprocess.Popen[bytes]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", code]))
        return started[-1]

    yield start
    for child in started:
        for pid in processes.tree(child.pid):  # a child of its own would outlive it
            os.kill(pid, signal.SIGKILL)
        child.wait()


def test_work_of_a_runner_that_is_not_asked_shows_and_its_children_count(process) -> None:
    spin = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    for code, honest in (("import time; time.sleep(60)", True), (spin, False)):
        child = process(code)
        time.sleep(0.5)
        conduct = Conduct("candidate", SimpleNamespace(pid=child.pid))
        conduct.begin()
        time.sleep(1.5)
        if honest:
            conduct.end(1)
            continue
        with pytest.raises(Refused, match="asked for nothing"):
            conduct.end(1)
        assert processes.peak_bytes(processes.tree(child.pid)) > 4 << 20


def test_memory_beyond_twice_the_incumbents_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    incumbent, candidate = (
        Conduct(name, SimpleNamespace(pid=1)) for name in ("incumbent", "candidate")
    )
    sizes = {"incumbent": 400 << 20, "candidate": 1000 << 20}
    monkeypatch.setattr(Conduct, "peak_bytes", lambda self: sizes[self.name])
    no_memory_hog(incumbent, candidate)
    sizes["candidate"] = 1100 << 20
    with pytest.raises(Refused, match="1100 MB where the incumbent took 400 MB"):
        no_memory_hog(incumbent, candidate)


def test_more_processors_than_torch_has_threads_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conduct = Conduct("candidate", SimpleNamespace(pid=1), turn_cpu_s=3.8, turn_s=2.0)
    conduct._cpu, conduct._started = 0.0, time.perf_counter()
    monkeypatch.setattr(processes, "tree", lambda pid: [])
    monkeypatch.setattr(processes, "cpu_seconds", lambda pids: 3.8)
    conduct.end(2)
    with pytest.raises(Refused, match=r"1\.9 processors where torch has 1"):
        conduct.end(1)


def test_the_judges_buffers_show_nothing_of_which_call_is_copied_until_the_last_is_made() -> None:
    asked = contract("rms_norm")
    arena = Arena()
    contents = Contents(asked, CASES["rms_norm"], random.Random(1))
    stage = Stage(contents, arena)
    stage.fill(2)
    stage.poison()
    lent = Lent("cpu")
    lent.memory = Mapped(arena.fd)
    blocks = Blocks(lent, Calls(lent))
    seen: list[bool] = []

    def norm(x: torch.Tensor, **scalars: float) -> torch.Tensor:
        seen.extend(bool(t.isnan().all()) for t in stage.answer().values())
        return x * 2.0

    blocks.calls.functions["rms_norm", "None/eager"] = norm
    blocks.do_stage({"calls": stage.calls})
    request = {"op": "rms_norm", "impl": None, "mode": "eager", "sets": [2, 0, 1, 3], "keep": 1}
    blocks.do_block({**request, "backward": True})
    assert seen == [True] * 8
    inputs, (upstream,) = stage.inputs(0)
    answer = stage.answer()
    assert torch.equal(answer["y"], 2 * inputs["x"])
    assert torch.equal(answer["dx"], 2 * upstream)
