"""What judges and what is judged stay as they are meanwhile: a change in between costs the verdict, never the ledger."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from lab_tree import CPP, Rules, Transcript, constant, make, write

from agent import campaign, gate_command, gates, integrity, trial_command
from agent.lab import Lab
from agent.loop import LoopError
from agent.records import KEEP, LOST, OPEN, REFUSE, Candidate, Change, Settings
from bench.finding import Finding
from bench.trial_result import TrialResult

SETTINGS = Settings(proposer="sweep", seconds=5.0, data="corpus-1", experiments=7)
RULE = "bench/rule.py"


class Meddling(Rules):
    """Edits `file` when it has been asked to build for the nth time; `within` the tree under judgement, or else the checkout."""

    def __init__(self, root: Path, file: str, nth: int, within: bool = False) -> None:
        super().__init__()
        self.root, self.file, self.nth, self.within = root, file, nth, within

    def build(self, tree: Path, changed: Sequence[str]) -> Finding:
        found = super().build(tree, changed)
        if self.calls.count("build") == self.nth:
            write(tree if self.within else self.root, {self.file: "LIMIT = 100\n"})
        return found


def test_a_seal_sees_every_kind_of_change(lab: Lab) -> None:
    (lab.root / "bench/a.py").write_text("a = 1\n")
    seal = integrity.of_judge(lab.root)
    assert seal.changed() == []
    (lab.root / "bench/__pycache__").mkdir()
    (lab.root / "bench/__pycache__/a.pyc").write_text("compiled")
    assert seal.changed() == []
    (lab.root / "bench/a.py").chmod(0o755)
    assert seal.changed() == ["bench/a.py"]
    write(lab.root, {RULE: "LIMIT = 2\n", "bench/new.py": "", "agent/new.py": ""})
    (lab.root / "bench/a.py").unlink()
    assert seal.changed() == ["agent/new.py", "bench/a.py", "bench/new.py", RULE]
    with pytest.raises(integrity.Tampered, match="agent/new.py, bench/a.py"):
        integrity.verify(seal)


def test_equal_files_have_equal_digests_and_others_not(lab: Lab) -> None:
    before = integrity.of_judge(lab.root)
    assert before.digest == integrity.of_judge(lab.root).digest
    write(lab.root, {RULE: "LIMIT = 2\n"})
    assert before.digest != integrity.of_judge(lab.root).digest


def test_a_judge_that_changes_during_a_run_stops_it_and_loses_one_experiment(lab: Lab) -> None:
    with pytest.raises(
        LoopError,
        match=r"bench/rule.py changed .*only the experiment under way is lost: python -m agent --resume",
    ):
        campaign.run(lab, SETTINGS, Transcript(), Meddling(lab.root, RULE, nth=4))
    ledger = lab.ledger()
    before = ledger.experiments()
    assert before[-1].outcome.status == LOST
    assert "bench/rule.py" in before[-1].outcome.reason
    sealed = ledger.run().settings.judge
    screen = Transcript()
    campaign.resume(lab, None, {}, screen, Rules())
    experiments = lab.ledger().experiments()
    assert [e.outcome for e in experiments[: len(before)]] == [e.outcome for e in before]
    assert sum(e.outcome.status != LOST for e in experiments) == 7
    assert any("the judge has changed" in line for line in screen.lines)
    assert lab.ledger().run().settings.judge == integrity.of_judge(lab.root).digest != sealed


def test_a_judge_that_changes_while_what_was_kept_is_measured_again_confirms_nothing(
    lab: Lab,
) -> None:
    class AtTheEnd(Rules):
        def compare(self, op, incumbent, candidate):  # type: ignore[no-untyped-def]
            if not any(past.outcome.status in OPEN for past in lab.ledger().history()):
                write(lab.root, {RULE: "LIMIT = 100\n"})
            return super().compare(op, incumbent, candidate)

    with pytest.raises(LoopError, match="bench/rule.py changed"):
        campaign.run(lab, SETTINGS, Transcript(), AtTheEnd())
    run = lab.ledger().run()
    assert lab.ledger().measured.confirmations(run.id, run.incumbent) == []


def test_a_tree_that_changes_during_a_gate_is_refused(lab: Lab) -> None:
    judge = Meddling(lab.root, "csrc/scale.h", nth=2, within=True)
    campaign.run(lab, replace(SETTINGS, experiments=1), Transcript(), judge)
    (experiment,) = lab.ledger().experiments()
    assert experiment.outcome.status == REFUSE
    assert "csrc/scale.h changed while it was judged" in experiment.outcome.reason
    assert experiment.gates[-1].name == "build"


def test_a_tree_that_changes_during_its_trial_is_refused(lab: Lab) -> None:
    class Rewriting(Rules):
        def trial(self, tree, seed, progress, split="val") -> TrialResult:  # type: ignore[no-untyped-def]
            if constant(tree, "csrc/scale.cpp", "kRows") != 1:
                write(tree, {"kernels/scale.py": "fast = True\n"})
            return super().trial(tree, seed, progress, split)

    campaign.run(lab, replace(SETTINGS, experiments=3), Transcript(), Rewriting())
    tried = [e.outcome for e in lab.ledger().experiments() if e.outcome.reason.startswith("trial:")]
    assert tried
    assert all("kernels/scale.py changed" in outcome.reason for outcome in tried)
    assert KEEP not in {e.outcome.status for e in lab.ledger().experiments()}


@pytest.mark.parametrize(
    "kind", ["symbolic link", "link out of the tree", "hard link", "pipe", "linked folder"]
)
def test_a_tree_of_other_things_than_plain_files_is_refused(tmp_path: Path, kind: str) -> None:
    root = make(tmp_path / "tree")
    place = root / "csrc/more.h"
    (tmp_path / "outside.h").write_text("int x;\n")
    if kind == "symbolic link":
        os.symlink("scale.cpp", place)
    elif kind == "link out of the tree":
        os.symlink(tmp_path / "outside.h", place)
    elif kind == "hard link":
        os.link(tmp_path / "outside.h", place)
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        os.symlink(tmp_path, root / "csrc/more")
    change = Change("csrc/scale.cpp", "100644", "100644", b"", CPP.encode())
    candidate = Candidate("kernels", root, root, (change,))
    (result,) = gates.run(candidate, gates.Context(Rules()))
    assert not result.passed
    assert "csrc/more" in result.reason
    assert "plain files alone" in result.reason


def test_a_command_says_that_its_judge_changed_and_gives_no_verdict(
    lab: Lab, tmp_path: Path
) -> None:
    file = tmp_path / "mine.cpp"
    file.write_text(CPP.replace("kRows = 1", "kRows = 4"))
    judge = Meddling(lab.root, RULE, nth=2)
    with pytest.raises(integrity.Tampered, match="bench/rule.py changed"):
        gate_command.judge_file(lab, "scale", file, True, Transcript(), judge)
    judge = Meddling(lab.root, "bench/other.py", nth=1)
    with pytest.raises(integrity.Tampered, match="bench/other.py changed"):
        trial_command.run(lab, judge, 5.0, 0, Transcript())
