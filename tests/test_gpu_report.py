"""The report of a GPU without one: what the table says, what is left by a kill, and that one part's failure is one line."""

from __future__ import annotations

import inspect
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import arms, gpu_parts, gpu_report, gpu_table, hardware
from bench.contracts import contract
from bench.goals import GOALS
from bench.gpu_report import Journal, Part, Run, main
from bench.judge import Judge, Refused
from bench.peers import PEERS
from bench.runner.calls import Calls
from bench.runner.events import Events, _Call, _kept_graphs
from bench.runner.lending import Refusal
from bench.timing import Arm

GOAL = GOALS[0]
CASE = {"part": f"time {GOAL.op}", "op": GOAL.op, "case": GOAL.case.label()}


def arm(name: str, ms: float) -> dict[str, object]:
    return {**CASE, "arm": name, "events": {GOAL.passes: ms}}


@pytest.mark.parametrize(
    ("arms", "met"),
    [
        ([], "not measured"),
        ([arm("torch eager", 0.2)], "not measured"),
        ([arm("triton", GOAL.goal_ms), arm("torch eager", 0.2)], "yes"),
        ([arm("triton", 1.1 * GOAL.goal_ms)], "no"),
        ([arm("triton", GOAL.goal_ms), arm("quack", 0.9 * GOAL.goal_ms)], "no"),
        ([arm("triton", 0.2), arm("cuda", GOAL.goal_ms)], "yes"),
    ],
)
def test_a_goal_is_met_within_it_and_by_nobody_slower_than_a_peer(arms, met):
    assert gpu_table.measured(arms)[0].met == met


def test_the_table_says_what_was_measured_what_was_not_and_why():
    lines = [
        arm("triton", 0.0911),
        arm("torch eager", 0.117),
        {**CASE, "arm": "quack", "absent": "quack is not installed: pip install quack-kernels"},
        {**CASE, "judge": {"triton": 0.2345}, "blocks": 9},
        {"part": "check attention", "ended": "refused", "why": "dq is wrong", "seconds": 3.0},
    ]
    text = gpu_table.render(lines)
    assert (
        "| 0.0911 (triton) | 0.1170 (torch eager) | 0.094 (torch.compile, quack) | 0.089 | 0.092 | yes |"
        in text
    )
    assert text.count("not measured | not measured |") == len(GOALS) - 1
    assert "| triton | 0.0911 |  |  | 0.2345 |  |" in text
    assert "- rms_norm, quack: quack is not installed: pip install quack-kernels" in text
    assert "| check attention | refused | 3 | dq is wrong |" in text
    assert "1 of 16 goals met, 15 not measured; refused: check attention" == gpu_table.summary(
        lines
    )


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def run(out: Path, scripts: dict[str, str], budget_s: float = 60.0, seconds: float = 20.0):
    """Parts by name, all in one group, each a Python script; what was told, and whether all was well."""
    told: list[str] = []
    carried = Run(
        Journal(out), lambda part: script(scripts[part.name]), told.append, budget_s=budget_s
    )
    good = carried.all([[Part(name, None, seconds) for name in scripts]])
    return good, sorted(told), Journal(out)


def test_what_a_kill_cut_short_is_run_again_and_what_has_ended_is_not(tmp_path):
    lines = [
        {"part": "done", "begun": 1.0}, {"part": "done", "n": 1}, {"part": "done", "ended": "done", "why": "", "seconds": 1.0},
        {"part": "cut", "begun": 1.0}, {"part": "cut", "n": 2},
    ]  # fmt: skip
    (tmp_path / "raw.jsonl").write_text(
        "".join(f"{json.dumps(x)}\n" for x in lines) + '{"part": "c'
    )
    good, told, journal = run(tmp_path, {"done": "raise SystemExit(3)", "cut": 'print(\'{"n": 3}\')'})  # fmt: skip
    assert good
    assert [line.split(" in ")[0] for line in told] == ["cut: done"]
    assert [line["n"] for line in journal.latest() if "n" in line] == [1, 3]


def test_a_part_that_fails_is_one_line_and_the_others_go_on(tmp_path):
    scripts = {
        "bad": "import sys; print('no such kernel', file=sys.stderr); sys.exit(1)",
        "wrong": 'print(\'{"passed": false, "reason": "dq is wrong"}\'); raise SystemExit(1)',
        "right": "print('{\"n\": 1}')",
    }
    good, told, _ = run(tmp_path, scripts)
    assert not good
    assert [line.split(" in ")[0] + line.partition(" s")[2] for line in told] == [
        "bad: refused: no such kernel", "right: done", "wrong: refused: dq is wrong",
    ]  # fmt: skip
    assert (tmp_path / "report.md").is_file()


def test_what_takes_too_long_is_ended_and_keeps_what_it_had_found(tmp_path):
    slow = "print('{\"n\": 1}', flush=True); import time; time.sleep(60)"
    good, told, journal = run(tmp_path, {"slow": slow}, seconds=0.5)
    assert not good
    assert "it had not ended after 1 s" in told[0]
    _, told, _ = run(tmp_path, {"slow": slow}, seconds=0.5)
    assert "it had not ended after 2 s" in told[0]  # as much more in the next call
    assert {"part": "slow", "n": 1} in journal.latest()
    _, told, _ = run(tmp_path, {"slow": slow}, budget_s=0.0)
    assert "the budget was spent before it began" in told[0]


def test_a_part_that_the_budget_does_not_reach_in_two_calls_is_named_once(tmp_path):
    for _ in range(2):
        _, _, journal = run(tmp_path, {"slow": "pass"}, budget_s=0.0)
    assert gpu_table.summary(journal.latest()).endswith("not measured; stopped: slow")


def test_a_run_that_was_cut_keeps_the_shapes_that_only_an_earlier_one_had_measured(tmp_path):
    def begun(*found):
        return [
            {"part": "time x", "begun": 1.0},
            *({"part": "time x", "case": c, "arm": "triton", "ms": ms} for c, ms in found),
        ]

    lines = [*begun(("a", 1), ("b", 2)), *begun(("a", 3))]
    (tmp_path / "raw.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    found = {line["case"]: line["ms"] for line in Journal(tmp_path).latest() if "case" in line}
    assert found == {"a": 3, "b": 2}


def test_a_part_that_the_budget_cuts_or_whose_runner_dies_is_run_again_with_no_more_time(tmp_path):
    slow = "import time; time.sleep(60)"
    _, told, journal = run(tmp_path, {"slow": slow}, budget_s=1.5, seconds=1.0)
    assert "the budget ended it after" in told[0]
    assert journal.cut_short(Part("slow", None, 1.0)) == 0
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    _, told, journal = run(tmp_path, {"slow": killed}, seconds=2.0)
    assert "slow: stopped" in told[0]
    assert not journal.has_ended(Part("slow", None, 2.0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_says_so_and_measures_nothing(tmp_path, capsys):
    assert main(["--out", str(tmp_path)]) == 2
    assert "no GPU: torch sees no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "raw.jsonl").exists()


def test_figures_of_another_tree_are_not_mixed_with_these(tmp_path, capsys):
    other = {"part": "identity", "identity": {"device": "another"}}
    (tmp_path / "raw.jsonl").write_text(json.dumps(other) + "\n")
    assert main(["--out", str(tmp_path), "--device", "cpu"]) == 2
    assert "give another --out" in capsys.readouterr().err


def test_every_goal_is_a_call_of_its_op_and_lies_between_floor_and_peer():
    for goal in GOALS:
        inspect.signature(contract(goal.op).reference).bind(*goal.case.inputs, **goal.case.scalars)
        assert goal.floor_ms < goal.goal_ms < goal.peer_ms, goal


def test_the_plan_measures_every_op_and_reaches_what_has_a_goal_in_the_budget():
    groups = gpu_report.plan()
    names = [str(part) for group in groups for part in group]
    assert names[0] == "facts"
    assert len(names) == len(set(names)) == 3 + 5 * len(gpu_report.ops())
    until = names.index("profile")
    longest = [max(part.seconds for part in group) for group in groups if str(group[0]) in names[: until + 1]]  # fmt: skip
    assert sum(longest) <= gpu_report.BUDGET_S < 9 * 60


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: f"{peer.op}-{peer.name}")
def test_a_peer_has_the_signature_of_its_op(peer):
    theirs = inspect.signature(peer.function).parameters
    assert list(theirs) == list(inspect.signature(contract(peer.op).reference).parameters)
    assert peer.why_not() == "" or f"pip install {peer.install}" in peer.why_not()


@pytest.mark.skipif(not PEERS[0].why_not(), reason="it is installed here")
def test_a_peer_is_asked_through_a_runner_and_says_there_what_it_lacks(tmp_path):
    peer, asked = PEERS[0], contract(PEERS[0].op)
    with Judge(peer.tree(tmp_path)) as judge:
        judge.ask("load", op=peer.op, tree=str(judge.tree))
        call = asked.described(asked.large(random.Random(0)))
        with pytest.raises(Refused, match=f"No module named '{peer.package}'"):
            judge.ask("warm", op=peer.op, impl=None, mode="eager", call=call)


@pytest.mark.parametrize(("factor", "said"), [(1, ""), (1.1, "relative error")])
def test_what_others_have_written_is_not_measured_where_it_is_wrong(tmp_path, factor, said):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    (tmp_path / "kernels" / "rms_norm.py").write_text(
        "import torch\n\n\ndef rms_norm(x, weight=None, eps=1e-6):\n"
        f"    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps) * {factor}\n"
    )
    case = contract("rms_norm").trial["cpu"][0]
    found = arms.why_not("rms_norm", case, Arm("theirs", tmp_path), "cpu")
    assert (said in found) if said else found == ""
    assert arms.why_not("rms_norm", case, Arm("ours", arms.ROOT, "torch"), "cpu") == ""


def test_events_are_a_gpus_and_a_warm_call_runs_forward_and_backward():
    asked = contract("linear_cross_entropy")
    events = Events(SimpleNamespace(device=torch.device("cpu")), Calls(None))
    call = {**asked.described(asked.telling(random.Random(0))[0]), "scalars": {}}
    seen = []
    events.calls.functions["op", "None/eager"] = lambda h, W, targets: seen.append(h) or h.sum() * W.sum()  # fmt: skip
    request = {"op": "op", "impl": None, "mode": "eager", "call": call}
    events.do_warm(request)
    assert seen[0].requires_grad
    with pytest.raises(Refusal, match="CUDA events"):
        events.do_events(request)


def test_a_line_that_is_no_finding_and_a_part_that_breaks_end_nothing(tmp_path):
    scripts = {
        "talks": "print('a library says hello'); print('{\"n\": 1}')",
        "breaks": f"import sys; print('out of memory', file=sys.stderr); sys.exit({gpu_parts.FAILED})",
    }
    good, told, journal = run(tmp_path, scripts)
    assert not good
    assert [line.split(" in ")[0] for line in told] == ["breaks: stopped", "talks: done"]
    assert {"part": "talks", "text": "a library says hello"} in journal.latest()
    assert [journal.has_ended(Part(name, None, 1.0)) for name in scripts] == [True, False]


def test_the_graph_of_a_compiled_peer_is_kept_for_backward_again_and_again():
    """torch.compile gives away the memory of what backward reads, and refuses where the graph is to be kept."""
    events = Events(SimpleNamespace(device=torch.device("cpu")), Calls(None))
    norm = torch.compile(
        lambda x, **_: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6),
        backend="aot_eager",  # it gives away the same, and generates no code
    )
    events.calls.functions["rms_norm", "None/inductor"] = norm
    call = contract("rms_norm").described(contract("rms_norm").trial["cpu"][1])
    asked = _Call(events, {"op": "rms_norm", "impl": None, "mode": "inductor", "call": call})
    with _kept_graphs():
        results = asked.forward()
        for _ in range(2):
            asked.backward(results)


def test_the_facts_name_the_processor_and_not_its_architecture_alone():
    assert next(gpu_parts.facts("cpu"))["device"] == hardware.name("cpu")


def test_no_goal_of_an_h100_is_called_met_on_another_gpu() -> None:
    facts = {"part": "facts", "device": "NVIDIA H200"}
    (row,) = (r for r in gpu_table.measured([facts, arm("triton", GOAL.goal_ms)]) if r.ours)
    assert row.met == gpu_table.OTHER_GPU
    facts["device"] = "NVIDIA H100 80GB HBM3"
    (row,) = (r for r in gpu_table.measured([facts, arm("triton", GOAL.goal_ms)]) if r.ours)
    assert row.met == "yes"


def test_a_peer_that_is_wrong_leaves_the_figures_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Arm("cpp", arms.ROOT, "cpp")
    peer = Arm("liger", arms.ROOT / "elsewhere", "torch")

    def measure(
        asked: object, case: object, given: list[Arm], *_: object, **__: object
    ) -> SimpleNamespace:
        if peer in given:
            raise Refused("wrong", "an output of a timed call (liger) is wrong")
        return SimpleNamespace(row={each.name: [1e-3] * 5 for each in given})

    monkeypatch.setattr(gpu_parts, "measure", measure)
    asked = contract("rms_norm")
    found = gpu_parts._judged(asked, asked.trial["cpu"][0], [own, peer], [None, None])
    assert "liger" in found["without"]
    assert "refused" not in found


def test_the_table_says_why_others_were_left_out() -> None:
    line = {**CASE, "judge": {"triton": 0.2}, "blocks": 9, "without": "an output (liger) is wrong"}
    assert "judged without what others have written: an output (liger) is wrong" in gpu_table.render([line])  # fmt: skip


def test_a_line_that_is_no_text_ends_nothing(tmp_path):
    talks = "import sys; sys.stdout.buffer.write(b'\\xff hello\\n'); print('{\"n\": 1}')"
    good, told, journal = run(tmp_path, {"talks": talks})
    assert good
    assert [line["text"] for line in journal.latest() if "text" in line] == ["\ufffd hello"]


@pytest.mark.parametrize(
    ("said", "status"), [("no export", 1), ("out of memory", gpu_parts.FAILED)]
)
def test_a_machine_that_cannot_measure_is_asked_again_only_where_it_was_full(
    said: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judged(op: str, device: str):
        raise Refused("machine", said)
        yield

    monkeypatch.setitem(gpu_parts.OF_AN_OP, "judge", judged)
    assert gpu_parts.main(["judge", "rms_norm", "--device", "cpu"]) == status


def test_the_help_of_the_parts_keeps_its_table(capsys):
    with pytest.raises(SystemExit):
        gpu_parts.main(["--help"])
    assert "\n    facts      the device," in capsys.readouterr().out
