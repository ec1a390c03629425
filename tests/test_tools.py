"""A researcher's tools see and change what they may and nothing else, end at their limits, and say what would mend a wrong call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from lab_tree import CPP, Rules, Transcript, make, write

from agent.bare_code import patch_hash
from agent.lab import Lab
from agent.machine import Machine
from agent.proposers import Context, Workshop
from agent.records import DROP, KEEP, GateResult, Outcome, Proposal, Run, Settings
from agent.research.draft import Draft
from agent.research.menu import ToolLimits
from agent.research.messages import ToolCall, ToolResult
from agent.research.tools import Submission, Toolbox

PATH = "csrc/scale.cpp"
SUBMISSION = {"hypothesis": "more rows a pass", "expected": "half the time", "op": "scale"}


@dataclass
class Bench:
    """A toolbox on a small checkout, and what it was made of."""

    workshop: Workshop
    context: Context
    rules: Rules

    def toolbox(self, target: str = "kernels", op: str | None = None, **limits: Any) -> Toolbox:
        draft = Draft(self.context.incumbent, self.workshop.folder, target, op)
        return Toolbox(draft, self.workshop, self.context, ToolLimits(**limits))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    root = make(tmp_path / "checkout")
    write(
        root,
        {
            "bench/contracts/scale.py": "# what scale means\n",
            ".lab/secret.txt": "s\n",
            "results/a.py": "x\n",
        },
    )
    home = Lab(root)
    repository, ledger = home.repository(), home.ledger()
    commit = repository.resolve("HEAD")
    settings = Settings(device="cpu")
    ledger.start_run(Run("r", settings, commit, commit, commit, time.time()))
    rules, folder = Rules(), tmp_path / "scratch"
    folder.mkdir()
    workshop = Workshop(
        settings, "r", folder, ledger, repository, rules, Machine("cpu"), Transcript(), threading.Event()
    )  # fmt: skip
    context = Context(
        "r", commit, root, "kernels", None, "cpu", 0, agenda="Fuse what is bound by memory.\n"
    )
    yield Bench(workshop, context, rules)
    ledger.close()


def ask(toolbox: Toolbox, name: str, **arguments: Any) -> ToolResult:
    done = toolbox.call(ToolCall("1", name, arguments))
    assert isinstance(done, ToolResult)
    return done


def told(toolbox: Toolbox, name: str, **arguments: Any) -> str:
    """The answer to a call that is right."""
    done = ask(toolbox, name, **arguments)
    assert not done.is_error, done.text
    return done.text


def refused(toolbox: Toolbox, name: str, **arguments: Any) -> str:
    done = ask(toolbox, name, **arguments)
    assert done.is_error, done.text
    return done.text


def rows(toolbox: Toolbox, number: int) -> None:
    told(toolbox, "edit", path=PATH, old="kRows = 1;", new=f"kRows = {number};")


# ---- what can be read


def test_read_numbers_lines_and_gives_the_ones_that_are_asked_for(bench: Bench) -> None:
    tools = bench.toolbox()
    assert told(tools, "read", path=PATH).splitlines()[1] == f"    2\t{CPP.splitlines()[1]}"
    assert told(tools, "read", path=PATH, first=3, last=3).startswith(
        "    3\tconstexpr int kUnroll"
    )
    assert "has 3 lines" in refused(tools, "read", path=PATH, first=9)


def test_contracts_agenda_and_frozen_kernel_files_can_be_read_but_not_changed(bench: Bench) -> None:
    tools = bench.toolbox(target="all")
    for path in ("bench/contracts/scale.py", "program.md", "kernels/jit.py"):
        told(tools, "read", path=path)
        assert "cannot be changed" in refused(tools, "write", path=path, text="x = 1\n")


OUTSIDE = (
    "../secret.txt", "kernels/../../secret.txt", "/etc/passwd", "/proc/self/environ", ".git/config", ".lab/secret.txt",
    ".lab/ledger.sqlite", "results/a.py", "bench/rule.py", "README.md", "kernels", "kernels/", "", ".", "kernels/./scale.py",
    "kernels//scale.py", "kernels/sub/scale.py", "csrc/scale.so", "kernels/link.py", "bench/contracts/../rule.py",
    f"kernels/{'a' * 300}.py",
)  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_path_leads_out(bench: Bench, path: str) -> None:
    (bench.context.incumbent / "kernels/link.py").symlink_to("../.lab/secret.txt")
    tools = bench.toolbox(target="all")
    assert "no such file" in refused(tools, "read", path=path)
    assert refused(tools, "edit", path=path, old="s", new="t")
    if path != "kernels/link.py":
        assert "cannot be changed" in refused(tools, "write", path=path, text="x = 1\n")
    assert "secret" not in told(tools, "search", pattern="secret|^s$")


def test_a_new_file_over_a_link_replaces_the_link_and_not_what_it_points_to(bench: Bench) -> None:
    secret = bench.context.incumbent / ".lab/secret.txt"
    (bench.context.incumbent / "kernels/link.py").symlink_to("../.lab/secret.txt")
    tools = bench.toolbox()
    told(tools, "write", path="kernels/link.py", text="x = 1\n")
    ask(tools, "check")
    assert secret.read_text() == "s\n"
    written = bench.workshop.folder / "draft/kernels/link.py"
    assert written.read_text() == "x = 1\n"
    assert not written.is_symlink()


def test_search_names_file_and_line_and_keeps_to_its_glob(bench: Bench) -> None:
    tools = bench.toolbox()
    assert told(tools, "search", pattern=r"k(Rows|Unroll) = [0-9]+") == (
        "csrc/scale.cpp:2: constexpr int kRows = 1;  // tune: 1 2 4 8\n"
        "csrc/scale.cpp:3: constexpr int kUnroll = 1;  // tune: 1 2"
    )
    assert "nothing matches" in told(tools, "search", pattern="kRows", files="kernels/*")
    assert "no file matches" in refused(tools, "search", pattern="x", files="/etc/*")
    assert "grep" in refused(tools, "search", pattern="(")


def test_a_pattern_that_would_never_end_does_not_hold_the_session(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.research.tools.SEARCH_S", 1.0)
    tools = bench.toolbox()
    told(tools, "write", path=PATH, text="a" * 4000 + "!\n")
    started = time.monotonic()
    ask(tools, "search", pattern=r"^(([a-z])+.)+\2[A-Z](([a-z])+)+$")
    assert time.monotonic() - started < 20


# ---- edits


def test_an_edit_is_seen_by_read_search_and_diff_and_leaves_the_incumbent_alone(
    bench: Bench,
) -> None:
    tools = bench.toolbox()
    rows(tools, 4)
    assert "kRows = 4" in told(tools, "read", path=PATH)
    assert "kRows = 4" in told(tools, "search", pattern="kRows = 4")
    diff = told(tools, "diff")
    assert "-constexpr int kRows = 1;" in diff
    assert "+constexpr int kRows = 4;" in diff
    assert (bench.context.incumbent / PATH).read_text() == CPP


def test_text_that_is_not_there_is_answered_with_the_nearest_and_its_lines(bench: Bench) -> None:
    answer = refused(bench.toolbox(), "edit", path=PATH, old="constexpr int kRow = 1;", new="x")
    assert "the old text is not there" in answer
    assert "    2\tconstexpr int kRows = 1;" in answer


@pytest.mark.parametrize("repeat", [1, 80])
def test_the_nearest_of_a_long_text_is_found_by_its_lines_in_no_time(
    bench: Bench, repeat: int
) -> None:
    text = [f"x{n} = {n}{n * n} * y{n} + {'z' * (n % 7)}" for n in range(1500 // repeat)]
    lines = [line * repeat for line in text]
    tools = bench.toolbox()
    told(tools, "write", path=PATH, text="\n".join(["// first", *lines]))
    old = "\n".join([lines[0] + ";", *lines[1:]])
    began = time.process_time()
    answer = refused(tools, "edit", path=PATH, old=old, new="x")
    assert time.process_time() - began < 10
    assert "    2\tx0 = 00 * y0 + " in answer


def test_text_that_differs_in_white_space_alone_is_told_so(bench: Bench) -> None:
    tools = bench.toolbox()
    old = "constexpr  int kRows = 1; // tune: 1 2 4 8\nconstexpr int kUnroll = 1;  // tune: 1 2"
    answer = refused(tools, "edit", path=PATH, old=old, new="x")
    assert "only in white space" in answer
    assert "    3\t" in answer


def test_text_that_is_there_twice_is_answered_with_both_lines(bench: Bench) -> None:
    answer = refused(bench.toolbox(), "edit", path=PATH, old="constexpr int", new="const int")
    assert "2 times (lines 2, 3)" in answer


def test_an_edit_to_the_same_or_of_nothing_is_refused(bench: Bench) -> None:
    tools = bench.toolbox()
    assert "are the same" in refused(tools, "edit", path=PATH, old="kRows", new="kRows")
    assert "is empty" in refused(tools, "edit", path=PATH, old="", new="x")


def test_a_file_is_made_and_deleted_again_without_a_trace(bench: Bench) -> None:
    tools = bench.toolbox()
    told(tools, "write", path="csrc/fast.h", text="#pragma once\n")
    assert "+++ b/csrc/fast.h" in told(tools, "diff")
    told(tools, "write", path="csrc/fast.h", text="")
    assert "nothing is changed" in told(tools, "diff")
    assert "no such file" in refused(tools, "write", path="csrc/none.h", text="")


def test_a_deleted_file_is_gone_from_the_tree_that_is_judged(bench: Bench) -> None:
    draft = Draft(bench.context.incumbent, bench.workshop.folder, "kernels", None, {PATH: None})
    assert not (draft.tree() / PATH).exists()
    assert (draft.tree() / "kernels/scale.py").exists()
    assert draft.files() == {PATH: None}
    assert "+++ /dev/null" in draft.diff()


def test_with_one_op_only_its_files_can_be_changed(bench: Bench) -> None:
    tools = bench.toolbox(op="scale")
    answer = refused(tools, "write", path="csrc/other.cpp", text="int x;\n")
    assert "kernels/scale.py, csrc/scale.cpp, csrc/scale.cu" in answer
    assert "cannot be changed" in refused(tools, "write", path="model/optim.py", text="LR = 0.02\n")


# ---- wrong calls and limits


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("shell", {"command": "ls"}, "no tool 'shell': expected one of read, search"),
        ("read", {}, "missing: path"),
        ("read", {"path": PATH, "file": PATH}, "unknown: file"),
        ("read", {"path": 3}, "path is a string"),
        ("read", {"path": PATH, "first": 0}, "first is an integer from 1 to"),
        ("read", {"path": PATH, "first": True}, "first is an integer from 1 to"),
        ("write", {"path": PATH, "text": "\ud800"}, "UTF-8"),
        ("write", {"path": PATH, "text": "a\0"}, "UTF-8"),
        ("write", {"path": PATH, "text": "x" * 300_000}, "at most 64,000"),
        ("profile", {"op": "attention"}, "expected one of scale"),
        ("inspect", {"op": "attention"}, "expected one of scale"),
    ],
)
def test_a_wrong_call_is_answered_with_what_was_expected(
    bench: Bench, name: str, arguments: dict[str, Any], expected: str
) -> None:
    assert expected in refused(bench.toolbox(), name, **arguments)


def test_arguments_that_are_no_object_are_answered_with_their_problem(bench: Bench) -> None:
    done = bench.toolbox().call(ToolCall("1", "read", None, "unterminated string"))
    assert isinstance(done, ToolResult)
    assert done.is_error
    assert "unterminated string" in done.text


def test_a_tool_ends_at_its_calls_and_the_others_go_on(bench: Bench) -> None:
    tools = bench.toolbox(calls=ToolLimits().calls | {"diff": 2})
    told(tools, "diff"), told(tools, "diff")
    assert "2 times in a session" in refused(tools, "diff")
    assert told(tools, "read", path=PATH)


def test_a_long_file_is_cut_at_a_line_and_read_on_from_there(bench: Bench) -> None:
    write(
        bench.context.incumbent, {"kernels/long.py": "".join(f"x_{n} = {n}\n" for n in range(3000))}
    )
    tools = bench.toolbox()
    first = told(tools, "read", path="kernels/long.py")
    assert len(first) <= ToolLimits().characters["read"]
    following = int(first.rsplit("first=", 1)[1].rstrip("]"))
    assert f"x_{following - 2} =" in first
    assert f"x_{following - 1} =" not in first
    assert f"x_{following - 1} =" in told(tools, "read", path="kernels/long.py", first=following)


def test_an_answer_that_is_cut_says_so(bench: Bench) -> None:
    tools = bench.toolbox(characters=ToolLimits().characters | {"diff": 50})
    rows(tools, 4)
    answer = told(tools, "diff")
    assert "more characters than the 50 of an answer" in answer
    assert len(answer) < 150


def test_each_description_states_its_limits(bench: Bench) -> None:
    limits = ToolLimits()
    for tool in bench.toolbox().tools:
        assert f"At most {limits.calls[tool.name]} calls" in tool.description
        assert f"{limits.characters[tool.name]:,} characters" in tool.description
        assert tool.schema["additionalProperties"] is False


# ---- the lab


def test_check_runs_the_cheap_gates_on_the_draft_and_records_nothing(bench: Bench) -> None:
    tools = bench.toolbox()
    rows(tools, 4)
    answer = told(tools, "check")
    assert all(f"{name} passed" in answer for name in ("scope", "static", "build", "correctness"))
    assert bench.rules.calls == ["build", "correctness"]
    assert bench.workshop.ledger.history() == []


def test_the_words_of_a_gate_that_refuses_reach_the_model(bench: Bench) -> None:
    tools = bench.toolbox()
    told(tools, "edit", path=PATH, old="kUnroll = 1;", new="kUnroll = 2;")
    answer = refused(tools, "check")
    assert "build REFUSED" in answer
    assert "scale.cpp:3: error: cannot unroll" in answer
    assert "correctness" not in answer
    assert "correctness" not in bench.rules.calls


def test_check_refuses_what_an_earlier_experiment_was(bench: Bench) -> None:
    past(bench, 4, "more rows", Outcome(DROP, "not faster"))
    tools = bench.toolbox()
    rows(tools, 4)
    assert "experiment 1 of this run" in refused(tools, "check")


def test_a_proposal_that_comes_back_is_no_duplicate_of_itself(bench: Bench) -> None:
    tools = bench.toolbox()
    rows(tools, 4)
    past(bench, 4, "more rows", Outcome(DROP, "not faster"))
    told(tools, "check")


def test_check_diff_and_submit_of_an_unchanged_draft_say_that_nothing_is_changed(
    bench: Bench,
) -> None:
    tools = bench.toolbox()
    assert "edit a file first" in refused(tools, "check")
    assert "nothing is changed" in told(tools, "diff")
    assert "edit a file first" in refused(tools, "submit", **SUBMISSION)
    assert bench.rules.calls == []


def test_building_and_measuring_wait_for_the_machine(bench: Bench) -> None:
    """While something else is on the machine nothing of the lab is asked to build or to run."""
    tools = bench.toolbox()
    rows(tools, 4)
    done: list[str] = []
    calls: list[Callable[[], str]] = [
        lambda: told(tools, "check"), lambda: told(tools, "profile", op="scale"), lambda: told(tools, "inspect", op="scale"),
    ]  # fmt: skip
    for call in calls:
        bench.rules.calls.clear()
        with bench.workshop.machine.hold("device"):
            thread = threading.Thread(target=lambda call=call: done.append(call()))
            thread.start()
            thread.join(0.3)
            assert bench.rules.calls == []
        thread.join(20)
        assert bench.rules.calls != []
    assert len(done) == 3


def test_profile_shows_the_draft_and_a_draft_that_does_not_build_is_not_profiled(
    bench: Bench,
) -> None:
    tools = bench.toolbox()
    rows(tools, 4)
    assert "0.2500 ms [0.2500, 0.2500], 100 % of the limit: draft's torch" in told(
        tools, "profile", op="scale"
    )
    assert bench.rules.calls == ["build", "profile scale"]
    assert "50.0% / 1 / 100 % / scale" in told(tools, "profile")
    told(tools, "edit", path=PATH, old="kUnroll = 1;", new="kUnroll = 2;")
    assert "cannot unroll" in refused(tools, "profile")


# ---- the past


def past(bench: Bench, number: int, hypothesis: str, outcome: Outcome, gate: str = "") -> None:
    """An experiment that set kRows, in the ledger."""
    ledger, repository, commit = (
        bench.workshop.ledger,
        bench.workshop.repository,
        bench.context.commit,
    )
    files = {PATH: CPP.replace("kRows = 1;", f"kRows = {number};")}
    proposal = Proposal(hypothesis, files, "sweep", expected="a third less")
    made = repository.commit(commit, files, hypothesis)
    changes, patch = repository.changes(commit, made), repository.patch(commit, made)
    opened = ledger.open_experiment("r", proposal, commit, made, patch, patch_hash(changes))
    if gate:
        ledger.add_gate(opened, GateResult(gate, False, outcome.reason, {}, 0.2))
    ledger.close_experiment(opened, outcome)


def test_history_tells_what_the_microbench_found_for_each_shape(bench: Bench) -> None:
    past(bench, 2, "two rows a pass", Outcome(KEEP, "faster", speed=0.8))
    ledger = bench.workshop.ledger
    shape = {"case": "x[4] float32", "ratio": 0.8, "low": 0.7, "high": 0.9, "incumbent_ms": 2.0, "candidate_ms": 1.6}  # fmt: skip
    halves = {"incumbent_forward_ms": 1.0, "candidate_forward_ms": 0.6}
    found = {"scale": {"shapes": [shape | halves, shape]}}
    (first,) = ledger.history()
    ledger.add_gate(first.id, GateResult("microbench", True, "faster", found, 0.2))
    told_again = told(bench.toolbox(), "history", number=1)
    assert "  0.800x [0.700, 0.900], 2 to 1.6 ms (forward 1 to 0.6): x[4] float32" in told_again
    assert "  0.800x [0.700, 0.900], 2 to 1.6 ms: x[4] float32" in told_again


@pytest.fixture
def experienced(bench: Bench) -> Toolbox:
    past(bench, 2, "two rows a pass", Outcome(KEEP, "faster", speed=0.8))
    past(bench, 8, "eight rows a pass", Outcome("refuse", "microbench: slower"), "microbench")
    context = replace(bench.context, history=bench.workshop.ledger.history())
    draft = Draft(context.incumbent, bench.workshop.folder, "kernels", None)
    return Toolbox(draft, bench.workshop, context)


def test_history_lists_what_was_tried_and_how_it_ended(experienced: Toolbox) -> None:
    listed = told(experienced, "history")
    assert "1 [scale] keep, 0.800x time: two rows a pass | faster" in listed
    assert "2 [scale] refuse by microbench: eight rows a pass | microbench: slower" in listed


def test_history_is_filtered_by_words_and_op(experienced: Toolbox) -> None:
    assert "eight rows" in told(experienced, "history", words="Slower eight")
    assert "two rows" not in told(experienced, "history", words="slower")
    assert "none of 2" in told(experienced, "history", op="attention")
    assert "the last 1 of 2" in told(experienced, "history", most=1)


def test_history_shows_one_experiment_with_its_gates_and_its_patch(experienced: Toolbox) -> None:
    shown = told(experienced, "history", number=2)
    assert "expected: a third less" in shown
    assert "microbench REFUSED" in shown
    assert "+constexpr int kRows = 8;" in shown
    assert "has no experiment 77" in refused(experienced, "history", number=77)


# ---- the end


def test_submit_gives_the_whole_files_that_differ(bench: Bench) -> None:
    tools = bench.toolbox()
    rows(tools, 4)
    told(tools, "write", path="csrc/same.h", text="x\n")
    told(tools, "write", path="csrc/same.h", text="")
    done = tools.call(ToolCall("1", "submit", SUBMISSION))
    assert done == Submission(
        "more rows a pass",
        "half the time",
        "scale",
        {PATH: CPP.replace("kRows = 1;", "kRows = 4;")},
    )


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"hypothesis": "  \n"}, "hypothesis has 0 characters"),
        ({"expected": ""}, "expected has 0 characters"),
        ({"hypothesis": "x" * 401}, "expected 1 to 400"),
        ({"op": "softmax"}, "expected one of scale, model"),
        ({"op": "model"}, "only kernels are changed"),
    ],
)
def test_a_submission_without_an_idea_or_an_op_is_refused(
    bench: Bench, wrong: dict[str, str], expected: str
) -> None:
    tools = bench.toolbox()
    rows(tools, 4)
    assert expected in refused(tools, "submit", **(SUBMISSION | wrong))
