"""The gain of a run is what its champion shows on seeds and documents that chose nothing; every figure of it has bounds and runs."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from lab_tree import Rules, Transcript, compared, constant, past
from scripted_nights import Scripted, idea, rate

from agent import campaign, champion, gain_report, night_report
from agent.__main__ import main
from agent.champion import PAIRS
from agent.lab import Lab
from agent.ledger import Ledger
from agent.proposers import Context
from agent.records import (
    KEEP,
    Confirmation,
    Experiment,
    GateResult,
    Outcome,
    Proposal,
    Run,
    Settings,
)
from agent.seeds import SELECTING, fresh
from bench.finding import Finding
from bench.trial_result import TrialResult

MODEL = Settings(target="model", proposer="sweep", seconds=5.0, data="corpus-1", experiments=2)
LUCK = 0.05


class Lucky(Rules):
    """A model that is better than the start looks LUCK better still in the trials that choose. `asked`: split and seed of every trial."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int]] = []

    def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
        self.asked.append((split, seed))
        better = constant(tree, "model/optim.py", "LR") < 0.04
        return replace(found, val_bpb=found.val_bpb - LUCK) if better and split == "val" else found


def test_the_gain_is_that_of_the_re_run_and_the_luck_of_the_choice_is_named(lab: Lab) -> None:
    summary = campaign.run(lab, MODEL, Transcript(), Lucky())
    (line,) = (line for line in summary.splitlines() if line.startswith("test_bpb"))
    assert ": -0.0200 [-0.0200, -0.0200]" in line
    after = summary.splitlines()[summary.splitlines().index(line) + 1]
    assert "1 keep claimed -0.0700 [" in after
    assert "winner's curse +0.0500 [" in after
    assert ", 3 pairs of trials" in summary
    assert "1 of 1 keeps that claim bits stand at a false-discovery rate of 10 %" in summary
    ledger = lab.ledger()
    block = list(gain_report.lines(ledger, ledger.run(), ledger.experiments()))
    assert line in block
    assert "\n".join(block) in summary


def test_a_tie_that_went_to_less_code_claims_no_bits() -> None:
    verdict = GateResult("verdict", True, "", {"e_value": 50.0}, 0.1)
    kept = [
        Experiment(**vars(past(n, KEEP, outcome=Outcome(KEEP, why))), gates=(verdict,))
        for n, why in ((1, "better beyond the noise: x"), (2, "no worse, and 30 words shorter: x"))
    ]
    first, second = night_report.false_discoveries(kept)
    assert "1 of 1 keeps that claim bits stand" in first
    assert "among 2 verdicts" in first
    assert second.strip() == "experiment 1 at 2.00 %"


def test_selection_never_sees_the_test_split_and_the_re_run_no_seed_of_selection(lab: Lab) -> None:
    judge = Lucky()
    campaign.run(lab, MODEL, Transcript(), judge)
    selected = [seed for split, seed in judge.asked if split == "val"]
    again = [seed for split, seed in judge.asked if split == "test"]
    assert max(selected) < SELECTING <= min(again)
    assert len(again) == 2 * PAIRS  # start and champion
    assert len(set(again)) == PAIRS


def test_the_order_of_start_and_champion_alternates(lab: Lab) -> None:
    screen = Transcript()
    campaign.run(lab, MODEL, screen, Lucky())
    said = [line.split(",")[0].strip() for line in screen.lines if "test_bpb" in line]
    assert said == ["start", "champion", "champion", "start", "start", "champion"]


class Stopping(Lucky):
    """Ctrl-C in the n-th trial of the test split."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
        if split == "test" and len([s for s, _ in self.asked if s == "test"]) == self.at:
            raise KeyboardInterrupt
        return super().trained(found, tree, seed, split)


def test_a_re_run_that_was_stopped_tells_what_is_known_and_goes_on_with_the_next_pair(
    lab: Lab,
) -> None:
    summary = campaign.run(lab, MODEL, Transcript(), Stopping(at=3))
    assert ", 1 pair of trials" in summary
    assert "-0.0200 [bounds unknown]" in summary
    judge = Lucky()
    said = campaign.rerun(lab, None, Transcript(), judge)
    assert ", 3 pairs of trials" in said
    # of six, one pair is known; half a pair from before a stop is not a pair
    assert [split for split, _ in judge.asked] == ["test"] * 4
    judge = Lucky()
    again = campaign.rerun(lab, None, Transcript(), judge)
    assert re.sub("spent: .*", "", again) == re.sub("spent: .*", "", said)  # looking takes time too
    assert judge.asked == []


def test_a_keep_that_was_never_run_again_is_a_claim_and_no_gain(lab: Lab) -> None:
    summary = campaign.run(lab, MODEL, Transcript(), Stopping(at=0))
    assert "gain: not known" in summary
    assert "claimed by 1 keep, too good by being chosen: -0.0700 [" in summary


class Timed(Stopping):
    """Every trial takes a minute."""

    def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
        return replace(super().trained(found, tree, seed, split), total_seconds=60.0)


@pytest.mark.parametrize(
    ("worked_s", "why", "measured"),
    [
        (2850, "proposer sweep has nothing left to try", 3),
        (3200, "the last 12:00 of 1 hour are set aside for running again what was kept", 3),
        (3400, "the last 12:00 of 1 hour are set aside for running again what was kept", 0),
    ],
)
def test_the_re_run_belongs_to_the_hours_that_were_asked_for(
    lab: Lab, worked_s: int, why: str, measured: int
) -> None:
    campaign.run(lab, MODEL, Transcript(), Timed(at=0))
    with sqlite3.connect(lab.ledger().path) as db:
        db.execute("UPDATE stretches SET began = until - ?", (worked_s,))
    screen, changes = Transcript(), {"hours": 1.0, "experiments": 4}
    summary = campaign.resume(lab, None, changes, screen, Timed(at=99))
    assert f"ended: {why}" in summary
    ledger = lab.ledger()
    assert len(ledger.measured.pairs(ledger.run().id)) == measured
    later = f"python -m agent report --rerun {ledger.run().id}"
    assert any(later in line for line in screen.lines) == (not measured)
    assert (later in summary) == (not measured)


def test_hours_of_the_device_end_a_run(lab: Lab) -> None:
    campaign.run(lab, MODEL, Transcript(), Stopping(at=0))
    with sqlite3.connect(lab.ledger().path) as db:
        db.execute("UPDATE stretches SET device_seconds = 7300")
    changes = {"gpu_hours": 2.0, "experiments": None}
    summary = campaign.resume(lab, None, changes, Transcript(), Stopping(at=0))
    assert "ended: 2 hours of the device are over" in summary


def test_a_champion_that_no_longer_trains_has_no_gain(lab: Lab) -> None:
    class Fragile(Lucky):
        def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
            found = super().trained(found, tree, seed, split)
            return found if split == "val" else replace(found, ok=False, failure="nan")

    screen = Transcript()
    assert "gain: not known" in campaign.run(lab, MODEL, screen, Fragile())
    assert any("the start failed when it was run again" in line for line in screen.lines)


def slower(context: Context) -> Proposal:
    """One model after another, each better by what every keep needs."""
    return idea(rate(round(0.038 - 0.002 * len(context.history), 3)), "slower")


def test_ctrl_c_ends_a_run_without_minutes_of_training_and_tells_how_to_have_them_later(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pressed(Lucky):
        def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
            if constant(tree, "model/optim.py", "LR") < 0.038:
                raise KeyboardInterrupt
            return super().trained(found, tree, seed, split)

    rates = Scripted([slower] * 2, ahead=0)
    monkeypatch.setattr(campaign.proposers, "create", lambda name, workshop: rates)
    judge = Pressed()
    summary = campaign.run(lab, MODEL, Transcript(), judge)
    assert "ended: stopped" in summary
    assert "gain: not known" in summary
    assert "report --rerun" in summary
    assert "test" not in [split for split, _ in judge.asked]


def test_every_few_keeps_the_champion_is_run_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = Scripted([slower] * 3, ahead=0)
    monkeypatch.setattr(campaign.proposers, "create", lambda name, workshop: rates)
    monkeypatch.setattr(champion, "EVERY", 2)
    summary = campaign.run(lab, replace(MODEL, experiments=3), Transcript(), Rules(noise_bpb=1e-4))
    ledger = lab.ledger()
    assert ledger.counts(ledger.run().id) == {KEEP: 3}
    assert [pair.keeps for pair in ledger.measured.pairs(ledger.run().id)] == [2] * PAIRS + [
        3
    ] * PAIRS
    assert "after 2 keeps it was -0.0040 [-0.0040, -0.0040] BPB" in summary


def test_every_gain_that_status_and_report_print_has_its_bounds_and_its_runs(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign.run(lab, Settings(proposer="sweep", seconds=5.0, data="corpus-1", experiments=7), Transcript(), Rules())  # fmt: skip
    for command in ("status", "report"):
        assert main([command], lab) == 0
        lines = capsys.readouterr().out.splitlines()
        gains = [line for line in lines if re.search(r"\d\.\d{3}x|[-+]\d\.\d{4} .*BPB", line)]
        ours = [line for line in gains if "microbench:" not in line and "BPB not worse" not in line]
        assert len(ours) >= 4
        for line in ours:
            assert re.search(r"\[[-+]?\d", line), line
            assert re.search(r"\d+ (pair|blocks)", line), line
        assert any("3 pairs of trials" in line for line in lines)


def test_report_of_a_run_that_kept_nothing_says_so(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign.run(lab, MODEL, Transcript(), Rules(noise_bpb=0.5))
    assert main(["report", lab.ledger().run().id], lab) == 0
    assert "gain: none; nothing was kept\n" in capsys.readouterr().out


def test_fresh_seeds_are_the_same_again_and_others_for_another_purpose() -> None:
    assert fresh(3, "run", "test", "abc") == fresh(3, "run", "test", "abc")
    assert not {*fresh(3, "run", "test", "abc")} & {*fresh(3, "run", "test", "abd")}
    assert all(SELECTING <= seed < 2**31 for seed in fresh(1000, "x"))


def test_pairs_that_another_judge_scored_are_run_again_and_never_pooled(lab: Lab) -> None:
    campaign.run(lab, MODEL, Transcript(), Lucky())
    (lab.root / "bench/rule.py").write_text("LIMIT = 2\n")
    judge = Lucky()
    campaign.rerun(lab, None, Transcript(), judge)
    assert [split for split, _ in judge.asked] == ["test"] * 2 * PAIRS
    ledger = lab.ledger()
    assert len({pair.judge for pair in ledger.measured.pairs(ledger.run().id)}) == 1


def test_a_re_run_that_trips_is_said_and_ends_no_night(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tripping(Lucky):
        def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
            if split == "test":
                raise OSError("no file descriptors are left")
            return super().trained(found, tree, seed, split)

    monkeypatch.setattr(champion, "EVERY", 1)
    screen = Transcript()
    summary = campaign.run(lab, MODEL, screen, Tripping())
    ledger = lab.ledger()
    assert ledger.finished(ledger.run().id) == 2
    assert "gain: not known" in summary
    words = "the gain is not measured to the end: OSError: no file descriptors are left; see "
    said = [line for line in screen.lines if line.startswith(words)]
    assert len(said) == 2  # after the keep, and at the end
    assert said[0].endswith(f"report --rerun {ledger.run().id}")


class Emptied(Lucky):
    """A judge whose cache of built objects was deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.built: set[str] = set()

    def build(self, tree: Path, changed: Sequence[str]) -> Finding:
        self.built.add(tree.name)
        return super().build(tree, changed)

    def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
        assert tree.name in self.built
        return super().trained(found, tree, seed, split)


def test_start_and_champion_are_built_before_they_are_run_again(lab: Lab) -> None:
    campaign.run(lab, MODEL, Transcript(), Stopping(at=0))
    judge = Emptied()
    campaign.rerun(lab, None, Transcript(), judge)
    assert [split for split, _ in judge.asked] == ["test"] * 2 * PAIRS


def test_what_an_op_s_keeps_claimed_is_told_with_their_number_alone(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.start_run(Run("r", Settings(), "b", "b", "b", 0.0))
    for op in ("norm", "loss"):
        opened = ledger.open_experiment("r", Proposal(op, {}, "sweep"), "b", op, "", op)
        evidence = {op: asdict(compared(0.8, 0.7, 0.9))}
        ledger.add_gate(opened, GateResult("microbench", True, "", evidence, 1.0))
        ledger.close_experiment(opened, Outcome(KEEP, ""), op)
    found = Confirmation("loss", 0.9, 0.8, 0.95, 50, True)
    ledger.measured.add_confirmation("r", "loss", found)
    lines = gain_report.lines(ledger, ledger.run(), ledger.experiments())
    (line,) = (line for line in lines if "blocks; winner's curse" in line)
    assert "1 keep claimed 0.800x" in line


def test_pairs_of_another_machine_are_run_again_and_never_pooled(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign.run(lab, MODEL, Transcript(), Stopping(at=3))
    monkeypatch.setattr("agent.trials.machine", lambda device: "elsewhere/cpu")
    judge = Lucky()
    said = campaign.rerun(lab, None, Transcript(), judge)
    assert [split for split, _ in judge.asked] == ["test"] * 2 * PAIRS
    assert ", 3 pairs of trials" in said
