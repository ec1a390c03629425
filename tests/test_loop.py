"""The loop keeps what a judge by rules says is better, in a real checkout with real commits, and survives being stopped anywhere."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from lab_tree import CPP, PY, Rules, Transcript, constant, git, impatient, write
from scripted_nights import Scripted, idea, night, rate, rows

from agent import campaign, gates
from agent.lab import Lab, Unusable, overlay
from agent.ledger import Ledger
from agent.loop import LoopError
from agent.records import CRASH, DROP, KEEP, LOST, REFUSE, UNFINISHED, Settings
from agent.seeds import SELECTING
from bench.finding import Finding
from bench.speed import Comparison
from bench.trial_result import TrialResult

SETTINGS = Settings(proposer="sweep", seconds=5.0, data="corpus-1", experiments=7)


def fixed(files: Mapping[str, str | None]) -> Scripted:
    """Proposes the same files again and again."""
    return Scripted([idea(files)] * 9, ahead=0)


def statuses(ledger: Ledger, run: str | None = None) -> list[str]:
    return [experiment.outcome.status for experiment in ledger.experiments(run)]


def test_a_run_keeps_the_fastest_setting_on_its_branch_and_leaves_the_checkout(lab: Lab) -> None:
    before = git(lab.root, "rev-parse", "HEAD"), git(lab.root, "status", "--porcelain")
    screen = Transcript()
    summary = campaign.run(lab, SETTINGS, screen, Rules())
    assert (git(lab.root, "rev-parse", "HEAD"), git(lab.root, "status", "--porcelain")) == before
    run = lab.ledger().run()
    assert "kRows = 4;" in git(lab.root, "show", f"lab/{run.id}:csrc/scale.cpp")
    assert git(lab.root, "rev-parse", f"lab/{run.id}") == run.incumbent
    assert not list((lab.folder / "runs").glob("*/trees"))
    found = statuses(lab.ledger())
    assert KEEP in found
    assert REFUSE in found
    assert f"run {run.id} ended: 7 experiments are done" in summary
    assert "confirmed: scale takes 0.500x [0.490, 0.510] the time of the start" in summary
    assert "tokens/s 1,000 -> 4,000: 4.000x [4.000, 4.000]" in summary
    assert "whole night" not in summary  # a kernel claims time, for which there are no e-values
    assert f"git merge lab/{run.id}" in summary
    assert "ledger.sqlite" in summary


def test_a_run_that_goes_on_asks_whom_it_asked_before(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one that searched constants for nothing would begin to spend where a key is set."""
    campaign.run(lab, replace(SETTINGS, proposer="auto", experiments=1), Transcript(), Rules())
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    campaign.resume(lab, None, {"experiments": 2}, Transcript(), Rules())
    assert lab.ledger().run().settings.proposer == "sweep"
    assert {experiment.proposer for experiment in lab.ledger().experiments()} == {"sweep"}
    # whom to ask now is said
    with pytest.raises(Unusable, match="--recording"):
        campaign.resume(lab, None, {"recording": "nowhere"}, Transcript(), Rules())


def test_a_sweep_with_nothing_to_search_ends_before_anything_is_trained(lab: Lab) -> None:
    write(lab.root, {"csrc/scale.cpp": CPP.replace("tune:", "as it is:")})
    git(lab.root, "commit", "-qam", "nothing marked")
    judge = Rules()
    summary = campaign.run(lab, replace(SETTINGS, op="scale"), Transcript(), judge)
    assert "no constant in kernels/scale.py, csrc/scale.cpp" in summary
    assert not [call for call in judge.calls if call.startswith("trial")]


def test_every_gate_of_an_experiment_is_in_the_ledger_up_to_the_refusal(lab: Lab) -> None:
    campaign.run(lab, SETTINGS, Transcript(), Rules())
    for experiment in lab.ledger().experiments():
        names = [gate.name for gate in experiment.gates]
        asked = [*(name for name, _ in gates.GATES), "verdict"]
        assert names == asked[: len(names)]
        assert [gate.passed for gate in experiment.gates[:-1]] == [True] * (len(names) - 1)
        if experiment.outcome.status == REFUSE:
            assert not experiment.gates[-1].passed
            assert experiment.outcome.reason.startswith(names[-1])
        else:
            assert names[-1] == "verdict"
            assert experiment.gates[-1].evidence["pairs"] >= 1
            assert experiment.gates[-1].evidence["e_value"] > 0
            assert experiment.outcome.val_bpb is not None
        assert experiment.patch.startswith("diff --git")


@pytest.mark.parametrize(
    ("files", "gate"),
    [
        ({"README.md": "x"}, "scope"),
        ({"csrc/scale.cpp": CPP + "#include <fstream>\n"}, "static"),
        ({"csrc/scale.cpp": CPP.replace("kUnroll = 1", "kUnroll = 2")}, "build"),
        ({"csrc/scale.cpp": CPP + "int as_slow_as_before;\n"}, "microbench"),
    ],
)
def test_after_a_refusal_nothing_dearer_is_asked(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], gate: str
) -> None:
    rules = Rules()
    night(lab, monkeypatch, fixed(files), rules, experiments=1)
    (experiment,) = lab.ledger().experiments()
    assert experiment.gates[-1].name == gate
    order = ["build", "correctness", "compare", "parity"]
    judged = [call for call in rules.calls if call in order][1:]  # the first builds the incumbent
    asked = {"scope": 0, "static": 0, "build": 1, "microbench": 3}[gate]
    assert experiment.outcome.status == REFUSE
    assert judged == order[:asked]


class Watched(Rules):
    """`asked`: learning rate and seed of every trial that chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[float, int]] = []

    def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
        if seed < SELECTING:
            self.asked.append((constant(tree, "model/optim.py", "LR"), seed))
        return found


def test_another_run_remembers_the_incumbent_s_trials_and_trains_every_candidate_itself(
    lab: Lab,
) -> None:
    """A sweep begins with what an earlier run found best, which was chosen for those very trials."""
    settings = replace(SETTINGS, target="model", experiments=2)
    campaign.run(lab, settings, Transcript(), Rules())
    judge = Watched()
    campaign.run(lab, replace(settings, experiments=1), Transcript(), judge)
    best = lab.ledger().experiments(lab.ledger().run().id)[0]
    assert "the best setting that an earlier run measured" in best.hypothesis
    assert best.outcome.status == KEEP
    assert (0.02, 0) in judge.asked
    # once more before the keep, to see that the machine is the same
    assert [seed for rate, seed in judge.asked if rate == 0.04] == [0]


def test_a_model_must_win_bits_and_a_worse_one_is_dropped(lab: Lab) -> None:
    campaign.run(lab, replace(SETTINGS, target="model", experiments=2), Transcript(), Rules())
    experiments = lab.ledger().experiments()
    ends = {e.notes["values"]["LR"]: e.outcome for e in experiments}
    assert ends["0.02"].status == KEEP
    assert ends["0.02"].bpb_change == pytest.approx(-0.02)
    assert ends["0.08"].status == DROP
    assert "no better" in ends["0.08"].reason


def test_a_trial_that_breaks_is_a_crash_with_its_reason(lab: Lab) -> None:
    campaign.run(lab, SETTINGS, Transcript(), Rules(fail_trial="nan"))
    crashed = [e for e in lab.ledger().experiments() if e.outcome.status == CRASH]
    assert crashed
    assert all(e.outcome.reason == "trial: nan: it broke" for e in crashed)
    assert lab.ledger().run().incumbent == lab.ledger().run().start


@pytest.mark.parametrize(
    ("failure", "mend"),
    [("out_of_memory", "try `python -m agent trial`"), ("late", "longer trials")],
)
def test_a_start_that_does_not_train_ends_the_run_with_what_it_said(
    lab: Lab, failure: str, mend: str
) -> None:
    write(lab.root, {"csrc/scale.cpp": CPP.replace("kRows = 1", "kRows = 2")})
    git(lab.root, "commit", "-qam", "rows")
    with pytest.raises(LoopError, match=f"{failure}: it broke; .*{mend}"):
        campaign.run(lab, SETTINGS, Transcript(), Rules(fail_trial=failure))
    assert not list((lab.folder / "runs").glob("*/trees"))


def test_a_start_that_does_not_build_ends_the_run_before_any_trial(lab: Lab) -> None:
    write(lab.root, {"csrc/scale.cpp": CPP.replace("kUnroll = 1", "kUnroll = 2")})
    git(lab.root, "commit", "-qam", "unroll")
    rules = Rules()
    with pytest.raises(LoopError, match="does not build: scale.cpp:3: error: cannot unroll"):
        campaign.run(lab, SETTINGS, Transcript(), rules)
    assert rules.calls == ["build"]


def test_uncommitted_edits_are_named_and_not_in_the_run(lab: Lab) -> None:
    write(
        lab.root, {"csrc/scale.cpp": CPP.replace("kRows = 1", "kRows = 8"), "kernels/new.py": "x"}
    )
    screen = Transcript()
    campaign.run(lab, replace(SETTINGS, experiments=1), screen, Rules())
    assert any(
        "csrc/scale.cpp, kernels/new.py" in line and "uncommitted" in line for line in screen.lines
    )
    assert "kRows = 1;" in git(lab.root, "show", f"{lab.ledger().run().start}:csrc/scale.cpp")


def test_start_puts_a_person_s_files_in_their_places_and_says_so(lab: Lab) -> None:
    write(
        lab.root,
        {
            "examples/scale.cpp": CPP.replace("kRows = 1", "kRows = 8"),
            "examples/README.md": "not taken",
        },
    )
    screen = Transcript()
    settings = replace(SETTINGS, start=str(lab.root / "examples"), experiments=1)
    campaign.run(lab, settings, screen, Rules())
    run = lab.ledger().run()
    assert "kRows = 8;" in git(lab.root, "show", f"{run.start}:csrc/scale.cpp")
    assert (
        git(lab.root, "rev-parse", f"{run.start}^")
        == run.base
        == git(lab.root, "rev-parse", "HEAD")
    )
    assert any("the run starts from csrc/scale.cpp" in line for line in screen.lines)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"jit.py": "x"}, "kernels/jit.py may not"),
        ({"a.txt": "x"}, "no .py"),
        ({"scale_v2.cpp": CPP}, "no op uses csrc/scale_v2.cpp; name a file as its op: scale"),
        (
            {"scale.py": "def scale(x, factor=2.0): ...\n"},
            "kernels/scale.py has no IMPLEMENTATIONS",
        ),
    ],
)
def test_a_start_that_cannot_be_taken_is_refused(
    lab: Lab, files: dict[str, str], words: str
) -> None:
    write(lab.root / "examples", files)
    with pytest.raises(Unusable, match=words):
        campaign.run(
            lab, replace(SETTINGS, start=str(lab.root / "examples")), Transcript(), Rules()
        )


def test_a_start_that_is_not_there_is_told_before_the_data_are_prepared(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lab, "dataset", lambda *_: pytest.fail("the data were prepared"))
    with pytest.raises(Unusable, match="no such folder"):
        campaign.run(lab, replace(SETTINGS, start="nowhere"), Transcript())


def test_a_start_may_bring_what_an_op_s_own_file_loads(lab: Lab) -> None:
    brought = {
        "scale.py": PY + '\n\nSECOND = load("scale_second")\n',
        "scale_second.cpp": CPP,
        "lanes.h": "#pragma once\n",
    }
    write(lab.root / "examples", brought)
    screen = Transcript()
    settings = replace(SETTINGS, start=str(lab.root / "examples"), experiments=1)
    campaign.run(lab, settings, screen, Rules())
    assert any("csrc/scale_second.cpp" in line for line in screen.lines)


def test_an_op_is_no_part_of_the_model(lab: Lab) -> None:
    settings = replace(SETTINGS, target="model", op="scale")
    with pytest.raises(Unusable, match="--op scale is a kernel, and --target model changes none"):
        campaign.run(lab, settings, Transcript(), Rules())


def test_an_op_without_a_kernel_is_no_target_yet(lab: Lab) -> None:
    class Contracted(Rules):
        def ops(self) -> list[str]:
            return ["scale", "unwritten"]

    with pytest.raises(
        Unusable, match=r"has no kernels/unwritten.py, and a first kernel has nothing"
    ):
        campaign.run(lab, replace(SETTINGS, op="unwritten"), Transcript(), Contracted())


def test_a_run_goes_on_where_its_checkout_was_moved_to(lab: Lab, tmp_path: Path) -> None:
    data = lab.data / "corpus-1"
    data.mkdir(parents=True)
    campaign.run(lab, replace(SETTINGS, data=str(data), experiments=1), Transcript(), Rules())
    lab.root.rename(tmp_path / "elsewhere")
    moved = Lab(tmp_path / "elsewhere")
    campaign.resume(moved, None, {"experiments": 2}, Transcript(), Rules())
    assert moved.ledger().run().settings.data == str(moved.data / "corpus-1")


def test_an_incumbent_that_fails_once_more_is_the_machine_s_fault(lab: Lab) -> None:
    """The start trains, its first trial beside a candidate does not."""

    class Full(Rules):
        failing = 1

        def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
            incumbent = constant(tree, "csrc/scale.cpp", "kRows") == 1
            if not incumbent or self.calls.count("compare") == 0 or not self.failing:
                return found
            self.failing -= 1
            return replace(found, ok=False, failure="out_of_memory")

    judge = Full()
    judge.failing = (
        5  # a recheck, tried twice, then one candidate's pair, tried twice, and the next one's once
    )
    campaign.run(lab, replace(SETTINGS, target="kernels"), Transcript(), judge)
    ended = [e.outcome for e in lab.ledger().experiments()]
    (lost,) = (outcome for outcome in ended if outcome.status == LOST)
    assert f"{UNFINISHED}: MachineFault: the incumbent's own trial failed twice" in lost.reason
    assert KEEP in statuses(lab.ledger())


def test_ctrl_c_ends_with_a_summary_and_resume_goes_on_to_the_same_end(lab: Lab) -> None:
    summary = campaign.run(lab, SETTINGS, Transcript(), impatient(Rules(), 3))
    ledger = lab.ledger()
    assert "ended: stopped" in summary
    assert statuses(ledger)[-1] == LOST
    assert not list((lab.folder / "runs").glob("*/trees"))
    campaign.resume(lab, None, {}, Transcript(), Rules())
    run = ledger.run()
    assert len([s for s in statuses(ledger) if s != LOST]) == 7
    assert "kRows = 4;" in git(lab.root, "show", f"{run.incumbent}:csrc/scale.cpp")
    campaign.resume(lab, run.id, {"experiments": 8}, Transcript(), Rules())
    assert ledger.run().settings.experiments == 8


def test_resume_refuses_settings_that_would_break_comparability(lab: Lab) -> None:
    campaign.run(lab, replace(SETTINGS, experiments=1), Transcript(), Rules())
    with pytest.raises(Unusable, match="keeps seconds"):
        campaign.resume(lab, None, {"seconds": 60.0}, Transcript(), Rules())


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (rows(8), "same change as experiment 1"),
        ({"bench/rule.py": "LIMIT = 100\n"}, "bench/rule.py"),
    ],
)
def test_what_scope_refuses_costs_no_trial(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, files: Mapping[str, str | None], words: str
) -> None:
    # so that nothing is kept and the same patch meets the same parent
    night(lab, monkeypatch, fixed(files), Rules(fail_trial="nan"), experiments=2)
    last = lab.ledger().experiments()[-1]
    assert last.outcome.status == REFUSE
    assert words in last.outcome.reason
    assert [gate.name for gate in last.gates] == ["scope"]


class Broken(Rules):
    """A judge that trips over every candidate's build."""

    def build(self, tree: Path, changed: Sequence[str]) -> Finding:
        if constant(tree, "csrc/scale.cpp", "kRows") != 1:
            raise TypeError("cannot unpack")
        return super().build(tree, changed)


def test_a_judge_that_trips_counts_as_a_crash_and_ends_the_run_only_when_it_repeats(
    lab: Lab,
) -> None:
    with pytest.raises(LoopError, match="3 times in a row: .*TypeError: cannot unpack"):
        campaign.run(lab, SETTINGS, Transcript(), Broken())
    crashed = [e for e in lab.ledger().experiments() if e.outcome.status == CRASH]
    assert len(crashed) == 3
    assert lab.ledger().run().incumbent == lab.ledger().run().start
    assert len(list((lab.folder / "runs").glob("*/error-*.log"))) == 3


class BrokenClock(Rules):
    """A judge that trips wherever it would measure time; what comes before goes well."""

    def compare(self, op: str, incumbent: Path, candidate: Path) -> Comparison:
        raise OSError("no file descriptors are left")


def test_a_judge_that_trips_in_every_measurement_ends_the_run_though_the_first_gates_go_well(
    lab: Lab,
) -> None:
    with pytest.raises(LoopError, match="3 times in a row: .*no file descriptors"):
        campaign.run(lab, replace(SETTINGS, experiments=9), Transcript(), BrokenClock())


@pytest.mark.parametrize("path", ["../outside.py", "kernels/a\0b.py", f"kernels/{'a' * 300}.py"])
def test_a_path_that_git_does_not_take_is_a_refusal(
    path: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    night(lab, monkeypatch, fixed({path: "x"}), experiments=1)
    (experiment,) = lab.ledger().experiments()
    assert experiment.outcome.status == REFUSE
    assert "cannot be written" in experiment.outcome.reason


def test_words_that_cannot_be_written_down_are_a_refusal(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = replace(idea(rows(8), "half \ud83d\x1b[2J"), expected="1 % \udfff")
    proposer = Scripted([half], ahead=0)
    monkeypatch.setattr(campaign.proposers, "create", lambda name, workshop: proposer)
    summary = campaign.run(lab, replace(SETTINGS, experiments=1), Transcript(), Rules())
    (experiment,) = lab.ledger().experiments()
    assert experiment.outcome.status == REFUSE
    assert experiment.hypothesis == "half ?\x1b[2J"
    assert "half ??[2J" in summary  # and what a terminal would obey does not reach it


def test_resume_refuses_an_op_that_is_none_and_takes_settings_that_are_the_run_s_own(
    lab: Lab,
) -> None:
    campaign.run(lab, replace(SETTINGS, experiments=1), Transcript(), Rules())
    with pytest.raises(Unusable, match="--op scael: expected one of scale"):
        campaign.resume(lab, None, {"op": "scael"}, Transcript(), Rules())
    with pytest.raises(Unusable, match="keeps seed of run"):
        campaign.resume(lab, None, {"seed": 3, "seconds": 5.0}, Transcript(), Rules())
    campaign.resume(lab, None, {"seconds": 5.0, "experiments": 2}, Transcript(), Rules())
    assert lab.ledger().run().settings.experiments == 2


def test_a_resumed_run_whose_limit_is_reached_trains_nothing(lab: Lab) -> None:
    campaign.run(lab, replace(SETTINGS, experiments=1), Transcript(), Rules())
    judge = Rules()
    summary = campaign.resume(lab, None, {}, Transcript(), judge)
    assert "1 experiment is done" in summary
    assert [call for call in judge.calls if call.startswith("trial")] == []


def test_a_folder_that_cannot_be_removed_is_said_and_ends_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = lab.folder / "runs/dead/draft"
    left.mkdir(parents=True)
    monkeypatch.setattr("agent.workspace.remove", lambda tree: None)
    screen = Transcript()
    campaign.run(lab, replace(SETTINGS, experiments=1), screen, Rules())
    assert any(f"{left} cannot be removed" in line for line in screen.lines)


@pytest.mark.parametrize(("lost", "said"), [(1, "1 experiment was in flight and is lost"), (2, "2 experiments were in flight and are lost")])  # fmt: skip
def test_what_was_in_flight_is_counted_when_a_run_goes_on(lost: int, said: str, lab: Lab) -> None:
    campaign.run(lab, replace(SETTINGS, experiments=2), Transcript(), Rules())
    with sqlite3.connect(lab.ledger().path) as db:
        db.execute("UPDATE experiments SET status = 'running' WHERE number <= ?", (lost,))
    screen = Transcript()
    campaign.resume(lab, None, {"experiments": 2 - lost or 1}, screen, Rules())
    assert any(line.endswith(said) for line in screen.lines)


def test_a_branch_named_lab_is_named_before_a_run_is_begun(lab: Lab) -> None:
    git(lab.root, "branch", "lab")
    with pytest.raises(Unusable, match="git branch -m lab"):
        campaign.run(lab, SETTINGS, Transcript(), Rules())
    assert lab.ledger().runs() == []


def test_a_ledger_that_is_locked_is_no_fault_of_the_candidate(lab: Lab) -> None:
    class Locked(Rules):
        locked = True

        def compare(self, op: str, incumbent: Path, candidate: Path) -> Comparison:
            if self.locked:
                self.locked = False
                raise sqlite3.OperationalError("database is locked")
            return super().compare(op, incumbent, candidate)

    campaign.run(lab, SETTINGS, Transcript(), Locked())
    found = statuses(lab.ledger())
    assert (found.count(LOST), len(found)) == (1, 8)


def test_git_that_takes_nothing_ends_the_run_before_its_money(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LoopError, match="3 times in a row git did not take what was proposed"):
        night(lab, monkeypatch, fixed({"../outside.py": "x"}), experiments=9)
    assert statuses(lab.ledger()) == [REFUSE] * 3


@pytest.mark.parametrize("raises", [False, True])
def test_half_a_character_in_a_candidate_s_last_words_ends_no_night(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, raises: bool
) -> None:
    class Odd(Rules):
        def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
            if not found.ok and raises:
                raise ValueError("\ud83d")
            return found if found.ok else replace(found, detail="\ud83d")

    night(lab, monkeypatch, fixed(rows(8)), Odd(fail_trial="nan"), experiments=1)
    (experiment,) = lab.ledger().experiments()
    assert experiment.outcome.status == CRASH
    assert ("ValueError: ?" if raises else "trial: nan: ?") in experiment.outcome.reason


def test_a_run_goes_on_though_the_folder_that_it_started_from_is_empty_now(lab: Lab) -> None:
    write(lab.root / "mine", {"scale.cpp": CPP.replace("kRows = 1", "kRows = 8")})
    settings = replace(SETTINGS, start=str(lab.root / "mine"), experiments=1)
    campaign.run(lab, settings, Transcript(), Rules())
    (lab.root / "mine" / "scale.cpp").unlink()
    campaign.resume(lab, None, {"experiments": 2}, Transcript(), Rules())
    assert len(statuses(lab.ledger())) == 2


def test_an_editor_s_lock_among_the_files_of_start_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "scale.cpp").write_text("int x;\n")
    (tmp_path / ".#scale.cpp").symlink_to("person@host.123:456")
    assert list(overlay(tmp_path)) == ["csrc/scale.cpp"]


def test_a_start_that_is_wrong_ends_the_run_before_any_trial(lab: Lab) -> None:
    class Wrong(Rules):
        def correctness(self, op: str, tree: Path) -> Finding:
            return Finding(False, "y: relative error 1.0")

    write(lab.root / "mine", {"scale.cpp": CPP.replace("kRows = 1", "kRows = 8")})
    rules = Wrong()
    with pytest.raises(LoopError, match=r"the start's scale is wrong: y: relative error 1.0"):
        campaign.run(lab, replace(SETTINGS, start=str(lab.root / "mine")), Transcript(), rules)
    assert not [call for call in rules.calls if call.startswith("trial")]


@pytest.mark.parametrize(("usd", "told"), [(None, True), (5.0, False)])
def test_a_night_that_spends_without_a_limit_is_told_so(
    usd: float | None, told: bool, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = night(lab, monkeypatch, Scripted([], name="anthropic"), usd=usd)
    assert any("may spend without a limit" in line for line in screen.lines) is told


def test_an_incumbent_that_no_longer_builds_is_not_called_the_start(lab: Lab) -> None:
    campaign.run(lab, SETTINGS, Transcript(), Rules())
    name = lab.ledger().run().incumbent[:12]

    class Broken(Rules):
        def build(self, tree: Path, changed: Sequence[str]) -> Finding:
            return Finding(False, "no compiler")

    with pytest.raises(
        LoopError, match=f"the incumbent, commit {name}, does not build: no compiler"
    ):
        campaign.resume(lab, None, {"experiments": 9}, Transcript(), Broken())


def test_beside_a_change_of_the_model_a_kernel_need_only_be_no_slower(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_slow = {"csrc/scale.cpp": CPP + "int as_slow_as_before;\n"}
    night(lab, monkeypatch, fixed(as_slow | rate(0.02)), experiments=1)
    (experiment,) = lab.ledger().experiments()
    assert [g.passed for g in experiment.gates if g.name == "microbench"] == [True]
    assert experiment.outcome.status == KEEP


def test_a_run_that_kept_nothing_measures_nothing_again_and_says_so(lab: Lab) -> None:
    screen = Transcript()
    campaign.run(lab, replace(SETTINGS, experiments=1), screen, Rules(fail_trial="nan"))
    assert not any("measured again" in line for line in screen.lines)
