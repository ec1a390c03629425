"""What the loop does with a verdict: noise is learned where something promises, drift voids what came before it, a flag sends a kernel back to its gate."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from lab_tree import Rules, Transcript, constant

from agent import added_code, campaign
from agent.lab import Lab
from agent.records import DROP, KEEP, REFUSE, Change, Settings
from bench.finding import Finding
from bench.plan import ENOUGH_NOISE
from bench.trial_result import TrialResult
from bench.verdict import Verdict

MODEL = Settings(proposer="sweep", target="model", seconds=5.0, data="corpus-1", experiments=2)
KERNEL = replace(MODEL, target="kernels", experiments=1)


def statuses(lab: Lab) -> list[str]:
    return [experiment.outcome.status for experiment in lab.ledger().experiments()]


def test_a_promising_model_is_tried_again_only_when_the_noise_is_known(lab: Lab) -> None:
    campaign.run(lab, MODEL, Transcript(), Rules())
    kept = next(e for e in lab.ledger().experiments() if e.outcome.status == KEEP)
    assert kept.gates[-1].name == "verdict"
    assert kept.gates[-1].evidence["degrees"] >= ENOUGH_NOISE


@dataclass
class Faster(Rules):
    """The machine gets faster by a fifth after so many trials, and the bits with it."""

    after: int = 0
    bits: float = 0.05

    def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
        done = sum(call.startswith("trial") for call in self.calls)
        if done <= self.after:
            return found
        faster = found.tokens_per_second * 1.2
        return replace(found, val_bpb=found.val_bpb - self.bits, tokens_per_second=faster)


class Worthless(Faster):
    """No setting does anything to the bits."""

    def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
        found = super().trained(found, tree, seed, split)
        return replace(found, val_bpb=found.val_bpb - constant(tree, "model/optim.py", "LR"))

    def decide(self, *arguments: Any, **more: Any) -> Verdict:
        verdict = super().decide(*arguments, **more)
        # an eager judge, so that it is the re-run that stops the keep
        eager = verdict.decision == "again" and verdict.evidence["mean_bpb"] < -0.02
        return replace(verdict, decision="keep") if eager else verdict


@pytest.mark.parametrize("bits", [0.05, 1.0])  # a gain, and one beyond belief
def test_a_keep_that_a_faster_machine_made_does_not_survive_the_incumbents_re_run(
    lab: Lab, bits: float
) -> None:
    screen = Transcript()
    campaign.run(lab, replace(MODEL, experiments=1), screen, Worthless(after=2, bits=bits))
    assert statuses(lab) == [DROP]
    assert "quarantined" not in lab.ledger().experiments()[0].outcome.reason
    assert any("the machine has changed: the incumbent's tokens/s changed by +20%" in s for s in screen.lines)  # fmt: skip


def age(lab: Lab, seconds: float) -> None:
    with sqlite3.connect(lab.ledger().path) as db:
        db.execute("UPDATE trials SET at = at - ?", (seconds,))


@pytest.mark.parametrize(("old_s", "again"), [(900.0, False), (3600.0, True)])
def test_an_old_trial_of_the_incumbent_is_run_again_before_a_candidate_meets_it(
    lab: Lab, old_s: float, again: bool
) -> None:
    """Twelve lengths of a short trial are no age: a machine changes by the hour."""
    one = replace(MODEL, experiments=1)
    campaign.run(lab, one, Transcript(), Rules())
    age(lab, old_s)
    screen = Transcript()
    campaign.run(lab, one, screen, Rules())
    trained = [line.split(":")[0].strip() for line in screen.lines if ", seed " in line]
    first = ["incumbent again, seed 0"] if again else []
    assert trained[: len(first) + 1] == [*first, "candidate, seed 0"]


@dataclass
class Stumbling(Rules):
    """Its first trial fails."""

    failed: bool = False

    def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
        if self.failed:
            return found
        self.failed = True
        return TrialResult(False, "crash", "the machine was out of memory")


def test_one_bad_moment_of_the_incumbent_voids_nothing(lab: Lab) -> None:
    one = replace(MODEL, experiments=1)
    campaign.run(lab, one, Transcript(), Rules())
    age(lab, 3600.0)
    screen = Transcript()
    campaign.run(lab, one, screen, Stumbling())
    assert any("incumbent once more, seed 0: val_bpb" in line for line in screen.lines)
    assert not any("void" in line for line in screen.lines)


def test_one_bad_moment_of_the_start_ends_no_run(lab: Lab) -> None:
    screen = Transcript()
    campaign.run(lab, replace(MODEL, experiments=1), screen, Stumbling())
    assert any("incumbent once more, seed 0: val_bpb" in line for line in screen.lines)
    assert len(statuses(lab)) == 1


def test_where_the_machine_is_another_all_that_was_remembered_is_measured_anew(lab: Lab) -> None:
    campaign.run(lab, MODEL, Transcript(), Rules())
    age(lab, 3600.0)
    rules, screen = Faster(after=0), Transcript()
    campaign.run(lab, MODEL, screen, rules)
    assert any("all trials from before are void" in line for line in screen.lines)
    kept = [e.outcome.bpb_change for e in lab.ledger().experiments() if e.outcome.status == KEEP]
    assert kept == pytest.approx([-0.02, -0.02])  # by one clock: the machine's 0.05 is in neither
    with sqlite3.connect(lab.ledger().path) as db:
        told = db.execute("SELECT at < ?, void FROM trials", (time.time() - 1800,)).fetchall()
    assert set(told) == {(1, 1), (0, 0)}  # in the file, so that --resume knows it too


@dataclass
class TooGood(Rules):
    """A kernel that gains 0.1 BPB, which the tokens do not explain; the second look of the gate finds what `again` says."""

    again: bool = True

    def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
        curve = [[1e5 * i, 3.0 - i / 80] for i in range(1, 41)]
        better = 0.1 * (constant(tree, "csrc/scale.cpp", "kRows") > 1)
        return replace(
            found, val_bpb=found.val_bpb - better, total_tokens_M=4.0 + 2 * better, losses=curve
        )

    def correctness(self, op: str, tree: Path) -> Finding:
        looks = self.calls.count("correctness")
        finding = super().correctness(op, tree)
        return finding if looks == 0 or self.again else Finding(False, "a captured case is wrong")


def flagged(lab: Lab, again: bool) -> Any:
    campaign.run(
        lab, replace(KERNEL, experiments=3), Transcript(), TooGood(noise_bpb=1e-4, again=again)
    )
    asked = [e for e in lab.ledger().experiments() if "verdict" in [g.name for g in e.gates]]
    assert asked, "no candidate came to a verdict"
    return asked[0]


def test_a_flagged_kernel_is_refused_where_the_gate_finds_it_wrong_after_all(lab: Lab) -> None:
    experiment = flagged(lab, again=False)
    assert experiment.outcome.status == REFUSE
    assert "captured case is wrong (asked again: -0.1000 BPB [" in experiment.outcome.reason
    assert [gate.name for gate in experiment.gates][-2:] == ["verdict", "correctness"]
    assert lab.ledger().run().incumbent == lab.ledger().run().start


def test_a_flagged_kernel_that_is_right_is_kept_with_the_flag_in_its_reason(lab: Lab) -> None:
    experiment = flagged(lab, again=True)
    assert experiment.outcome.status == KEEP
    assert "flagged, and found correct again: -0.1000 BPB" in experiment.outcome.reason
    assert [gate.name for gate in experiment.gates][-2:] == ["verdict", "correctness"]


def change(path: str, before: str, after: str) -> Change:
    return Change(path, "100644", "100644", before.encode(), after.encode())


@pytest.mark.parametrize(
    ("path", "before", "after", "added"),
    [
        ("model/a.py", "x = 1\ny = 2\n", "x = 1\n", -2),
        ("model/a.py", "x = 1\ny = 2\n", "x, y = 1, 2\n", 0),
        ("model/a.py", "f('a b c', f'{x} d')\n", "f('', f'{x}')\n", 0),
        ("model/a.py", "f(1, 2, 3)\n", "f(*'1 2 3'.split())\n", 1),
        ("model/a.py", "x = 1  # one\n\n\ny = 2\n", "y = 2\nx = 1\n", 0),
        ("model/a.py", 'def f():\n    """Long."""\n    return 1\n', "def f():\n    return 1\n", 0),
        ("model/a.py", "f(a,\n  b)\n", "f(a, b)\n", 0),
        ("model/a.py", "x = 1\n", f"x = {' + '.join('1' * 1000)}\n", 999),
        ("csrc/a.cpp", "int a; // first; second\nint b;\n", "int a;\n", -2),
        ("csrc/a.cpp", "int a;\n", "int a;\nint b;\n", 2),
    ],
)
def test_words_of_code_are_counted_and_not_their_layout(
    path: str, before: str, after: str, added: int
) -> None:
    assert added_code.added([change(path, before, after)]) == added
