"""A kept change is taken out again and has to win its place once more; what does not is dropped in a commit of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from lab_tree import CPP, Rules, Transcript, constant, git, impatient, past
from scripted_nights import Scripted, idea

from agent import campaign, claims, standard
from agent.__main__ import main
from agent.lab import Lab, Unusable
from agent.prune import due
from agent.records import CRASH, DROP, KEEP, LOST, REFUSE, Experiment, Outcome, Settings
from agent.seeds import SELECTING
from bench.interval import Spread
from bench.trial_result import TrialResult

SETTINGS = Settings(target="all", proposer="sweep", seconds=5.0, data="corpus-1", experiments=2)
ROWS = {"csrc/scale.cpp": CPP.replace("kRows = 1", "kRows = 4")}
RATE = {"model/optim.py": "LR = 0.02  # tune: 0.02 0.04 0.08\n"}


class Lucky(Rules):
    """Each change looks better in the trials that choose; `real` says whether it is, in those that do not."""

    def __init__(self, real: bool = False) -> None:
        super().__init__()
        self.real, self.seeds = real, set[tuple[float, int]]()

    def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
        rate = constant(tree, "model/optim.py", "LR")
        self.seeds.add((rate, seed))
        if self.real or seed < SELECTING:
            return found
        return TrialResult(**{**vars(found), "val_bpb": found.val_bpb - rate})


def kept(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, judge: Rules, *files: Mapping[str, str]
) -> None:
    """A run that has kept these changes."""
    proposer = Scripted([idea(each) for each in files], ahead=0)
    with monkeypatch.context() as patched:
        patched.setattr(campaign.proposers, "create", lambda name, workshop: proposer)
        campaign.run(lab, SETTINGS, Transcript(), judge)
    ledger = lab.ledger()
    assert ledger.counts(ledger.run().id) == {KEEP: len(files)}


def removals(lab: Lab) -> list[Experiment]:
    return [e for e in lab.ledger().experiments() if e.proposer == "prune"]


def test_a_keep_that_was_luck_is_taken_out_in_a_commit_of_its_own(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Lucky()
    kept(lab, monkeypatch, judge, RATE, ROWS)
    before = lab.ledger().run()
    campaign.prune(lab, None, Transcript(), judge)
    after = lab.ledger().run()
    assert [(e.notes["without"], e.outcome.status) for e in removals(lab)] == [
        (2, REFUSE),
        (1, KEEP),
    ]
    assert "no worse without it" in removals(lab)[1].outcome.reason
    assert git(lab.root, "rev-parse", f"lab/{after.id}^") == before.incumbent
    assert git(lab.root, "rev-parse", f"lab/{after.id}") == after.incumbent
    assert "LR = 0.04" in git(lab.root, "show", f"lab/{after.id}:model/optim.py")
    assert "kRows = 4" in git(lab.root, "show", f"lab/{after.id}:csrc/scale.cpp")
    assert [e.number for e in claims.standing(lab.ledger().experiments())] == [2]


def test_a_keep_that_pays_on_seeds_that_chose_nothing_stays(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Lucky(real=True)
    kept(lab, monkeypatch, judge, RATE, ROWS)
    before = lab.ledger().run().incumbent
    campaign.prune(lab, None, Transcript(), judge)
    assert lab.ledger().run().incumbent == before
    rows, rate = removals(lab)
    assert rows.outcome.status == REFUSE
    assert "slower" in rows.outcome.reason
    assert rate.outcome.status == DROP
    assert "it still pays" in rate.outcome.reason


def test_a_removal_is_tried_on_seeds_that_no_selection_has_used(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(lab, monkeypatch, Lucky(), RATE)
    judge = Lucky()
    campaign.prune(lab, None, Transcript(), judge)
    without = {seed for rate, seed in judge.seeds if rate == 0.04}
    with_it = {seed for rate, seed in judge.seeds if rate == 0.02 and seed >= SELECTING}
    assert without == with_it  # paired
    assert len(without) == removals(lab)[0].outcome.pairs
    assert min(without) >= SELECTING


def test_a_change_that_a_later_one_has_rewritten_cannot_be_taken_out_alone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {"csrc/scale.cpp": CPP.replace("kRows = 1", "kRows = 2")}
    kept(lab, monkeypatch, Rules(), two, ROWS)
    campaign.prune(lab, None, Transcript(), Rules())
    assert [(e.notes["without"], e.outcome.status) for e in removals(lab)] == [
        (2, REFUSE),
        (1, CRASH),
    ]
    assert "cannot be taken out alone" in removals(lab)[1].outcome.reason


def test_a_prune_that_was_stopped_goes_on_and_asks_nothing_twice(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(lab, monkeypatch, Lucky(), RATE, ROWS)
    assert "ended: stopped" in campaign.prune(lab, None, Transcript(), impatient(Lucky(), 2))
    campaign.prune(lab, None, Transcript(), Lucky())
    ends = [(e.notes["without"], e.outcome.status) for e in removals(lab)]
    assert ends == [(2, REFUSE), (1, LOST), (1, KEEP)]
    campaign.prune(lab, None, Transcript(), Lucky())
    assert len(removals(lab)) == 3


def test_limits_of_the_run_do_not_end_a_prune_and_stay_with_the_run(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(lab, monkeypatch, Lucky(), RATE, ROWS)
    screen = Transcript()
    summary = campaign.prune(lab, None, screen, Lucky())
    assert any("until nothing is left to try" in line for line in screen.lines)
    assert "ended: proposer prune has nothing left to try" in summary
    assert lab.ledger().run().settings.experiments == 2


def test_a_keep_that_saved_code_wins_its_place_by_being_shorter() -> None:
    kept, without = (
        [TrialResult(True, val_bpb=bpb, tokens_per_second=1e3)] * 3 for bpb in (2.0, 2.0005)
    )
    decide, noise = standard.NO_WORSE.decide, Spread(0.001, 30)
    found = [decide(Rules(), "model", None, kept, without, noise, words=n) for n in (30, 0)]
    assert [verdict.decision for verdict in found] == ["drop", "keep"]
    assert "it still pays; with it: no worse, and 30 words shorter" in found[0].reason


def test_a_run_that_kept_nothing_has_nothing_to_prune(lab: Lab) -> None:
    campaign.run(lab, SETTINGS, Transcript(), Rules(fail_trial="nan", noise_bpb=0.5))
    with pytest.raises(Unusable, match="has no keep"):
        campaign.prune(lab, None, Transcript(), Rules())


def test_the_command_takes_the_latest_run_and_says_why_there_is_nothing_to_do(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune"], lab) == 2
    assert "no run" in capsys.readouterr().err
    campaign.run(lab, SETTINGS, Transcript(), Rules(fail_trial="nan", noise_bpb=0.5))
    assert main(["prune"], lab) == 2
    assert "has no keep" in capsys.readouterr().err


def test_a_removal_that_failed_before_it_was_made_is_asked_for_again(lab: Lab) -> None:
    keep = past(1, KEEP)
    failed = replace(keep, id=2, number=2, proposer="prune", outcome=Outcome(CRASH, "disk full"))
    assert list(due([keep, failed])) == [keep]
