"""A recorded night of good, useless, wrong, cheating, crashing and repeated proposals ends with exactly the right keeps.

The whole loop runs: a real checkout, real commits, the real gates that read a change; only what is measured follows rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from lab_tree import Rules, Transcript, constant, git, impatient, make

from agent import campaign, export
from agent.judging import Unfit
from agent.lab import Lab
from agent.records import LOST, REFUSE, Past, Settings
from bench.finding import Finding
from bench.speed import Comparison
from bench.trial_result import TrialResult

RECORDING = Path(__file__).parent / "nights" / "scale.jsonl"
SETTINGS = Settings(
    target="all", proposer="replay", recording=str(RECORDING), seconds=5.0, data="corpus-1"
)

# What becomes of each line of the recording: its outcome, and the gate that refuses it.
ENDS = """
four rows in one scratch buffer of the whole tensor     crash
four rows, subnormals flushed                           refuse parity
four rows, remembering the last output                  refuse microbench
four rows at an odd alignment                           crash
the compiler unrolls by itself when told to             refuse build
unrolling again, in other words                         refuse scope
two rows a turn, as no system(3) call is dearer than a cache miss   keep
two rows a turn                                         crash
say what the file is for                                refuse scope
the incumbent as it is                                  refuse scope
the last rows are rarely read                           refuse correctness
half the bits are enough                                refuse correctness
four rows, without unrolling                            keep
eight rows a turn                                       refuse microbench
eight rows, with a remark                               refuse scope
a compensated sum beside it                             refuse microbench
a compensated sum, rewritten                            refuse scope
a compensated sum that skips every other one            refuse microbench
no idea that is worth a trial                           crash
read the validation shard at load                       refuse static
a library of our own by ctypes                          refuse static
a kinder allclose                                       refuse static
ask who is calling                                      refuse static
a looser limit                                          refuse scope
a faster build                                          refuse scope
a note to the judge                                     refuse scope
the README, improved                                    refuse scope
a file outside of the checkout                          refuse
the op without its file                                 refuse scope
helpers in a file of their own                          refuse scope
the same name in capitals                               refuse scope
a table, in binary                                      refuse scope
a bracket too few                                       refuse microbench
a file that gets no better                              refuse static
two rows, from an older version                         crash
a larger step                                           drop
a step a hundred times as large                         crash
look at the targets                                     drop
train on and on                                         crash
a smaller step                                          keep
a step a hair smaller                                   drop
a smaller step again                                    keep
back to where we were                                   drop
"""


@dataclass
class Night(Rules):
    """Rules under which a word in a source has a consequence."""

    def correctness(self, op: str, tree: Path) -> Finding:
        said = _said(tree, {"kTail = 0": "x[7]: 3 rows are not written", "bfloat16": "x[4]: error 3.9e-03, allowed 2.4e-07"})  # fmt: skip
        return Finding(False, said) if said else super().correctness(op, tree)

    def compare(self, op: str, incumbent: Path, candidate: Path) -> Comparison:
        if _said(candidate, {"kAlign = 3": "x"}):
            raise ZeroDivisionError("the judge stumbles")
        if said := _said(candidate, {"kRemember": "the output of a timed call is wrong"}):
            raise Unfit(said)
        return super().compare(op, incumbent, candidate)

    def parity(self, incumbent: Path, candidate: Path) -> Finding:
        said = _said(candidate, {"kFlush": "the loss parts from the incumbent's at step 3"})
        return Finding(False, said) if said else super().parity(incumbent, candidate)

    def trained(self, found: TrialResult, tree: Path, seed: int, split: str) -> TrialResult:
        failures = {"kScratch": "out_of_memory", "LR = 4.0": "nan", "while self": "late"}
        if failure := _said(tree, failures):
            return TrialResult(False, failure, "it broke", seed=seed)
        return replace(found, val_bpb=1.0) if _said(tree, {"self.targets": "x"}) else found


def _said(tree: Path, consequences: Mapping[str, str]) -> str:
    """The consequence of the first word that a source of the tree has; empty if none has any."""
    text = "".join(file.read_text() for file in sorted(tree.rglob("*.*")))
    return next((said for word, said in consequences.items() if word in text), "")


def ended(history: Iterable[Past]) -> list[str]:
    """The experiments that ended, in the form of ENDS."""
    rows = [past for past in history if past.outcome.status != LOST]
    return [" ".join(filter(None, (p.hypothesis, p.outcome.status, p.refused_by))) for p in rows]


EXPECTED = [" ".join(line.split()) for line in ENDS.strip().splitlines()]


@dataclass(frozen=True)
class Ran:
    """The night, after it."""

    lab: Lab
    summary: str
    rules: Night

    def past(self, hypothesis: str) -> Past:
        (found,) = (p for p in self.lab.ledger().history() if p.hypothesis == hypothesis)
        return found


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    lab, rules = Lab(make(tmp_path_factory.mktemp("night") / "checkout")), Night()
    summary = campaign.run(lab, SETTINGS, Transcript(), rules)
    return Ran(lab, summary, rules)


def test_every_proposal_ends_as_it_should_by_the_gate_that_should_refuse_it(night: Ran) -> None:
    assert ended(night.lab.ledger().history()) == EXPECTED
    assert len(EXPECTED) >= 30


def test_the_branch_holds_the_keeps_and_nothing_else(night: Ran) -> None:
    run = night.lab.ledger().run()
    subjects = git(night.lab.root, "log", "--format=%s", f"{run.start}..lab/{run.id}").splitlines()
    assert [f"{subject[len('lab: ') :]} keep" for subject in reversed(subjects)] == [
        line for line in EXPECTED if line.endswith(" keep")
    ]
    tree = night.lab.root / ".lab" / "champion"
    night.lab.repository().export(run.incumbent, tree, ("csrc", "model"))
    assert constant(tree, "csrc/scale.cpp", "kRows") == 4
    assert constant(tree, "model/optim.py", "LR") == 0.01
    assert "scale takes 0.500x [0.490, 0.510] the time of the start" in night.summary


def test_nothing_outside_of_the_branch_is_touched(night: Ran) -> None:
    root = night.lab.root
    assert git(root, "status", "--porcelain") == ""
    assert (root / "bench" / "rule.py").read_text() == "LIMIT = 1\n"
    assert not (root.parent / "outside.py").exists()
    assert [p.name for p in root.parent.iterdir()] == ["checkout"]


def test_what_is_refused_is_never_trained(night: Ran) -> None:
    experiments = night.lab.ledger().experiments()
    refused = [e for e in experiments if e.outcome.status == REFUSE]
    assert all(e.outcome.device_seconds == 0 and e.outcome.val_bpb is None for e in refused)


@pytest.mark.parametrize(
    ("hypothesis", "words"),
    [
        ("unrolling again, in other words", "the same change as experiment 5 of this run"),
        ("eight rows, with a remark", "the same change as experiment 14 of this run"),
        ("a compensated sum, rewritten", "experiment 16 of this run in all but names and layout"),
        ("two rows a turn", "'kRows = 1' stands in 0 places"),
        ("four rows at an odd alignment", "the judge could not finish: ZeroDivisionError"),
        ("train on and on", "trial: late: it broke"),
        ("a step a hundred times as large", "trial: nan: it broke"),
        ("look at the targets", "quarantined: 51% fewer bits"),
        ("a step a hair smaller", "no better: -0.0001 BPB"),
        ("no idea that is worth a trial", "no proposal: the model declined"),
    ],
)
def test_the_reason_says_what_happened(night: Ran, hypothesis: str, words: str) -> None:
    assert words in night.past(hypothesis).outcome.reason


def test_what_waits_for_a_person_is_named_with_the_commit_to_take(night: Ran) -> None:
    found = night.past("look at the targets")
    take = f"show {found.number} --run {found.run}; to take it: git cherry-pick {found.commit[:12]}"
    assert take in night.summary
    held = git(night.lab.root, "for-each-ref", "--format=%(objectname)", "refs/lab").split()
    assert found.commit in held


def test_a_repair_takes_the_place_of_what_was_refused(night: Ran) -> None:
    ledger = night.lab.ledger()
    mended = ledger.experiment(night.past("four rows, without unrolling").id)
    assert [gate.name for gate in mended.gates if not gate.passed] == ["build"]
    assert "kUnroll = 2" not in mended.patch
    given_up = ledger.experiment(night.past("a file that gets no better").id)
    assert [gate.name for gate in given_up.gates if not gate.passed] == ["static"] * 3


def test_a_night_that_was_stopped_goes_on_to_the_same_end(lab: Lab) -> None:
    assert "ended: stopped" in campaign.run(lab, SETTINGS, Transcript(), impatient(Night(), 6))
    before = lab.ledger().history()
    assert before[-1].outcome.status == LOST
    campaign.resume(lab, None, {}, Transcript(), Night())
    after = lab.ledger().history()
    assert after[: len(before)] == before
    assert ended(after) == EXPECTED


def test_the_exported_night_is_a_recording_of_the_same_night(night: Ran, tmp_path: Path) -> None:
    ledger = night.lab.ledger()
    file = tmp_path / "night.jsonl"
    file.write_text(export.recording(ledger, night.lab.repository(), ledger.run().id))
    lab = Lab(make(tmp_path / "checkout"))
    campaign.run(lab, replace(SETTINGS, recording=str(file)), Transcript(), Night())
    # Of a file that git did not take only the reason is known.
    same = [line.replace("checkout refuse", "checkout crash") for line in EXPECTED]
    assert ended(lab.ledger().history()) == same
