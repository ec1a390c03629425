"""A profile shows where time really goes, and an inspection what compilers really made: on the project's own kernels, and on spoilt copies."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from warm import Timers

from agent import step_table
from agent.judging import Bench, Unfit
from agent.lab import Lab
from agent.research import answers
from agent.research.menu import ToolLimits
from bench import aot, hardware, inspection, roofline, step_profile, timing
from bench.contracts import contract, ops
from bench.judge import Refused
from bench.runner.inspecting import loops
from bench.runner.profiling import is_python, split, waited, watch_data
from bench.step_profile import of_op, of_step

ROOT = Path(__file__).resolve().parent.parent
Tree = Callable[..., Path]
FILES = {"norm": "kernels/rms_norm.py", "cpp": "csrc/rms_norm.cpp", "train": "model/train.py"}
# The public function calls the chosen implementation as many times over as it says.
REPEATED = "    for _ in range({times}):\n        {call}\n    return {call}"
CALL = "IMPLEMENTATIONS[choose(IMPLEMENTATIONS, impl, x.device)](x, weight, eps)"
CHAIN = "\nfloat chain(const float* x, long n) {\n  float s = 0;\n  for (long i = 0; i < n; ++i) s = s * x[i] + 1;\n  return s;\n}\n"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A copy of the project's editable folders in which, by path, one text is replaced by another."""

    def make(**changes: tuple[str, str]) -> Path:
        root = Lab().copy_tree(tmp_path / "tree")
        for name, (old, new) in changes.items():
            file = root / FILES[name]
            assert file.read_text().count(old) == 1
            file.write_text(file.read_text().replace(old, new))
        return root

    return make


def slow(times: int) -> tuple[str, str]:
    return f"    return {CALL}", REPEATED.format(times=times, call=CALL)


# ---- time


def test_backward_is_the_ops_own_and_every_microsecond_is_counted_once() -> None:
    x, w = torch.randn(200, 200, requires_grad=True), torch.randn(200, 200, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        before = (x * 2).tanh()
        with record_function("op square"):
            y = before.square().cumsum(0)
        (y + w.exp()).sum().backward()
    events = list(profiler.events() or ())
    of_ops, rest = split(events, ["square"], on_gpu=False)
    names = " ".join(rest)
    assert "CumsumBackward" not in names
    assert "PowBackward" not in names
    assert "ExpBackward0" in names
    assert "TanhBackward0" in names
    assert "aten::tanh" in names
    us, backward_us, calls = of_ops["square"]
    assert 0 < backward_us < us
    assert calls == 1
    assert rest["aten::tanh"][1] == 0
    assert rest["TanhBackward0"][1] == rest["TanhBackward0"][0] > 0
    roots = sum(event.cpu_time_total for event in events if event.cpu_parent is None)
    assert us + sum(row[0] for row in rest.values()) == pytest.approx(roots)


def test_a_loop_that_waits_for_its_batches_shows_and_what_is_drawn_ahead_does_not() -> None:
    module = ModuleType("loop")
    watch_data(module)
    batches = (time.sleep(0.02) for _ in range(3))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        with ThreadPoolExecutor(1) as ahead:
            ahead.submit(module.next, batches).result()
        module.next(batches)
    events = list(profiler.events() or ())
    us, draws = waited(events)
    assert us > 15_000
    assert draws == 1
    assert split(events, [], on_gpu=False)[1]["data loader"][0] == us


def test_python_around_kernels_is_told_from_operators_and_from_nodes_in_cpp() -> None:
    python = "op rms_norm", "kernels::rms_norm", "Plain", "PlainBackward", "Optimizer.step#Muon"
    cpp = "aten::mm", "MmBackward0", "rms_norm_1f7b::forward", "autograd::engine::evaluate_function: PlainBackward"  # fmt: skip
    assert all(map(is_python, python))
    assert not any(map(is_python, cpp))


def test_an_op_inside_another_is_counted_as_part_of_it() -> None:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        with record_function("op outer"), record_function("op inner"):
            torch.ones(300, 300).sum()
    of_ops, rest = split(profiler.events() or (), ["inner", "outer"], on_gpu=False)
    assert set(of_ops) == {"outer"}
    assert not any("sum" in name for name in rest)


@pytest.mark.slow
@pytest.mark.usefixtures("built")
def test_a_step_is_split_by_op_and_a_slow_op_shows(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A ceiling that was measured while other work ran is too low: the best of two looks counts.
    monkeypatch.setattr(roofline, "SAMPLES", 4)
    # One step against nine: a stall in the short run has to be as long as eight to leave nothing of a difference.
    monkeypatch.setattr(step_profile, "LENGTHS", (1, 1, 9))
    roofline.ceilings("cpu", again=True)
    half = ("2048,  # tune on cpu", "1024,  # tune on cpu")  # of a step's tokens
    found = of_step(tree(norm=slow(40), train=half), 8192, 0, device="cpu")
    rows = {row["name"]: row for row in found["rows"]}
    assert {row["op"] for row in found["rows"]} == {None, *ops()}
    assert sum(row["share"] for row in found["rows"]) == pytest.approx(1, abs=0.05)
    assert [row["ms"] for row in found["rows"]] == sorted(
        (r["ms"] for r in found["rows"]), reverse=True
    )
    # The model as it stands: four layers, three banks, one head.
    assert (rows["attention"]["calls"], rows["newton_schulz"]["calls"]) == (4, 3)
    assert rows["linear_cross_entropy"]["calls"] == 1
    assert 0 < rows["attention"]["backward_ms"] < rows["attention"]["ms"]
    assert rows["adamw"]["backward_ms"] == rows["newton_schulz"]["backward_ms"] == 0
    assert 0 < found["data_ms"] < 0.5 * found["step_ms"]
    assert 0 <= found["python_ms"] < found["step_ms"]
    assert set(found["implementations"].values()) == {"cpp"}
    assert "linear_cross_entropy" in step_table.table(found)
    # of the others, few microseconds decide
    heavy = ("attention", "linear_cross_entropy", "newton_schulz", "relu2_mlp")
    assert all(0 < rows[op]["percent_of_limit"] < 200 for op in heavy)
    assert rows["rms_norm"]["percent_of_limit"] < 0.2 * rows["add_rms_norm"]["percent_of_limit"]
    assert rows["rms_norm"]["share"] > rows["add_rms_norm"]["share"]
    assert "rms_norm" in answers.profile(found)


@pytest.mark.slow
@pytest.mark.usefixtures("built")
def test_an_op_is_timed_implementation_by_implementation_beside_the_incumbent(
    tree: Tree, tmp_path: Path, timers: Timers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_profile, "CASE_S", 0.5)
    for module in (step_profile, timing):
        monkeypatch.setattr(module, "Judge", timers.fork)
    beside = Lab().copy_tree(tmp_path / "beside")
    found = of_op("rms_norm", tree(norm=slow(15)), beside=beside, device="cpu")
    for case in {row["case"] for row in found["rows"]}:
        rows = {(row["tree"], row["name"]): row for row in found["rows"] if row["case"] == case}
        assert set(rows) == {("draft", "torch"), ("draft", "cpp"), ("incumbent", "cpp")}
        assert rows["draft", "cpp"]["ms"] > 2 * rows["incumbent", "cpp"]["ms"]
        assert [row["default"] for row in rows.values()] == [False, True, True]
        fast = rows["incumbent", "cpp"]
        assert fast["percent_of_limit"] == pytest.approx(
            100 * fast["limit_ms"] / fast["ms"], rel=0.01
        )
    timed = contract("rms_norm").timed("cpu", hardware.trains_in("cpu"), random.Random(0))
    assert found["inside_case"] == timed[0].label()
    inside = {row["name"].rpartition("::")[2]: row for row in found["inside"]}
    assert inside["forward"]["backward_ms"] == 0 < inside["forward"]["ms"]
    assert inside["backward"]["backward_ms"] == inside["backward"]["ms"] > 0
    said = answers.profile(found)
    assert "incumbent's cpp, which the trial runs" in said
    assert f"/ {inside['backward']['ms']:.4f} / 1 / rms_norm" in said
    assert said.count("of the incumbent's time") == len({row["case"] for row in found["rows"]})


def test_ceilings_that_a_call_beats_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    percent = [344.0]

    def measured(device: str, *, again: bool) -> None:
        assert (device, again) == ("cpu", True)
        percent.append(80.0)

    monkeypatch.setattr(step_profile, "ceilings", measured)
    for _ in range(2):  # once they are right, they stay
        found = step_profile._below_ceilings(
            lambda: {"rows": [{"percent_of_limit": percent[-1]}, {"percent_of_limit": None}]}, "cpu"
        )
        assert found["rows"][0]["percent_of_limit"] == 80.0
    assert percent == [344.0, 80.0]


def test_a_tree_that_does_not_train_has_no_profile_and_says_why(tree: Tree) -> None:
    broken = tree(
        train=(
            "        clock = _Clock(self.device, seconds, steps)",
            "        raise ValueError('no clock')",
        )
    )
    bench = Bench("cpu", SimpleNamespace(vocab_size=8192, bos=8191))
    with pytest.raises(Unfit, match="no clock"):
        bench.profile(None, broken)


# ---- what compilers made


def test_kernels_and_loops_of_an_op_are_described_within_one_answer(tree: Tree) -> None:
    last = '  m.impl("backward", TORCH_BOX(&backward));\n}\n'
    found = inspection.of_op("rms_norm", tree(cpp=(last, last + CHAIN)))
    (scalar,) = [row for row in found["loops"] if "s * x[i] + 1" in row["text"]]
    assert not any(text.startswith("vectorized") for text in scalar["outcomes"])
    forward = found["kernels"][0]
    assert forward["kernel"] == "_rms_norm_fwd_kernel"
    assert forward["arch"] == 90
    assert 16 < forward["registers"] <= 255
    assert forward["stack_bytes"] == 0
    assert any("LDG.E.128" in line for line in forward["sass"])
    assert any("ld.global.v4" in line for line in forward["ptx"])
    assert forward["mix"]["FFMA"] > 0
    assert forward["constants"]["BLOCK_D"] == 512
    backward = next(row for row in found["kernels"] if "bwd" in row["kernel"])
    assert backward["loop_instructions"] < 400  # the loop over rows alone
    assert any("vectorized using" in text for row in found["loops"] for text in row["outcomes"])
    said = answers.inspection(found, "cpu")
    assert said.index("norm_rows.h:") < said.index("_rms_norm_fwd_kernel")
    said = answers.inspection(found, "cuda")
    assert said.index("_rms_norm_fwd_kernel") < said.index("norm_rows.h:")
    assert len(said) < ToolLimits().characters["inspect"]
    assert "norm_rows.h:" in said
    assert "0 bytes of stack (spills)" in said


def test_a_kernel_that_spills_shows(tree: Tree) -> None:
    spilling = ("_ROWS, _BLOCK_D, _WARPS = _tile(512)", "_ROWS, _BLOCK_D, _WARPS = 16, 512, 1")
    root = tree(norm=spilling)
    (root / "csrc" / "rms_norm.cpp").unlink()  # g++ would take 5 s for it
    found = inspection.of_op("rms_norm", root)
    assert all(row["stack_bytes"] > 0 for row in found["kernels"] if "bwd" in row["kernel"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"norm": ("    rstd = 1.0 / tl.sqrt(", "    rstd = nothing / tl.sqrt(")}, "nothing"),
        # fatal: else g++ goes on and reads torch's headers
        ({"cpp": ("#include", '#include "nothing.h"\n#include')}, "rms_norm.cpp:"),
    ],
)
def test_what_does_not_compile_is_answered_in_the_compilers_words(
    tree: Tree, change: dict[str, tuple[str, str]], said: str
) -> None:
    spoilt = tree(**change)
    with pytest.raises(Unfit, match=said) as raised:
        Bench().inspect("rms_norm", spoilt)
    assert str(spoilt.resolve()) not in str(raised.value)


def test_remarks_on_files_elsewhere_and_reasons_of_other_loops_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text("one\ntwo\nthree\n")
    said = "\n".join([
        f"{tmp_path}/a.cpp:1:9: optimized: loop vectorized using 64 byte vectors",
        f"{tmp_path}/a.cpp:1:9: missed: not vectorized: of something else",
        f"{tmp_path}/a.cpp:2:5: missed: couldn't vectorize loop",
        "/usr/include/vector:3:1: missed: not vectorized: not ours",
        f"{tmp_path}/a.cpp:3:1: missed: not vectorized: control flow in loop.",
    ])  # fmt: skip
    assert loops(said, tmp_path) == [
        {
            "file": "a.cpp",
            "line": 1,
            "text": "one",
            "outcomes": {"vectorized using 64 byte vectors": 1},
        },
        {
            "file": "a.cpp",
            "line": 2,
            "text": "two",
            "outcomes": {"not vectorized: control flow in loop.": 1},
        },
    ]


ENDLESS = {"seconds": 1.0, "ops": {}, "rest": {"aten::mm": [1.0, 0.0, float("inf")]}, "calls": {}, "data": [0.0, 0], "python_us": 0.0}  # fmt: skip


class Claims:
    """A runner whose word is not to be trusted."""

    arena = SimpleNamespace(
        place=lambda *_: {"shape": [4]}, view=lambda _: torch.zeros(4, dtype=torch.int32)
    )

    def __init__(self, tree: Path, **_: object) -> None:
        self.tree = tree

    def __enter__(self):  # type: ignore[no-untyped-def]
        return self

    def __exit__(self, *_: object) -> None: ...

    def ask(self, do: str, **_: object) -> dict[str, object]:
        runs = [{**ENDLESS, "rest": {}}, ENDLESS]
        return {"runs": runs, "plain": [1.0, 2.0], "implementations": [[""]], "threads": 1, "default": ""}  # fmt: skip


def test_a_profile_of_another_form_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = SimpleNamespace(bring=lambda _: None, take=lambda _: None)
    monkeypatch.setattr(step_profile, "Judge", Claims)
    monkeypatch.setattr(step_profile, "Compiled", SimpleNamespace(of=lambda *_: kept))
    with pytest.raises(Refused, match="not what was asked for"):
        of_step(tmp_path, 8, 7, device="cpu")
    with pytest.raises(Refused, match="names of one word"):
        of_op("rms_norm", tmp_path, device="cpu")


def test_a_tool_that_cannot_read_a_build_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "cuobjdump"
    tool.write_text("#!/bin/sh\necho 'an unknown architecture' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setattr(aot, "_TOOLS", tmp_path)
    with pytest.raises(RuntimeError, match="cuobjdump: an unknown architecture"):
        aot._told(b"", "cuobjdump")
