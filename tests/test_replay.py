"""A recording is proposed line by line, repairs included, and goes on after a kill at the first line that the ledger does not hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lab_tree import CPP, make, past

from agent import export
from agent.git import GitError, Repository
from agent.ledger import Ledger
from agent.proposers import Context, NoProposal
from agent.proposers.replay import RecordingError, Replay, read
from agent.records import (
    CRASH,
    DROP,
    KEEP,
    LOST,
    RUNNING,
    GateResult,
    Outcome,
    Past,
    Proposal,
    Run,
    Settings,
)

ROWS = {"path": "csrc/scale.cpp", "old": "kRows = 1", "new": "kRows = 4"}
REFUSAL = GateResult("build", False, "does not compile", {}, 0.1)
WHOLE = {"hypothesis": "whole", "files": {"csrc/scale.cpp": "text", "csrc/old.h": None}}
EDITED = {"hypothesis": "edited", "edits": [ROWS], "model": "m-1", "proposer": "anthropic"}
MENDED = {
    "hypothesis": "mended",
    "edits": [{**ROWS, "new": "kRows = 3"}],
    "repairs": [
        {"edits": [{**ROWS, "old": "kRows = 3", "new": "kRows = 2"}]},
        {"hypothesis": "mended twice", "files": {"model/optim.py": "LR = 0.02\n"}},
    ],
}
NOTHING = {"hypothesis": "nothing", "gave_up": "the model declined"}


def recorded(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file = folder / "night.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return file


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make(tmp_path / "checkout")


def context(tree: Path, history: Sequence[Past] = ()) -> Context:
    return Context("night", "0" * 40, tree, "all", None, "cpu", 0, history)


def replay(tree: Path, *rows: Mapping[str, Any]) -> Replay:
    return Replay(read(recorded(tree, rows)), "this one")


def proposed(maker: Replay, given: Context) -> Proposal:
    proposal = maker.propose(given)
    assert proposal is not None
    return proposal


def row(proposal: Proposal, status: str = DROP, run: str = "night") -> Past:
    """What the ledger remembers of a proposal."""
    return past(
        1, status, run=run, proposer=proposal.proposer, model=proposal.model, hypothesis=proposal.hypothesis,
        paths=tuple(proposal.files), notes=json.loads(json.dumps(dict(proposal.notes))),
    )  # fmt: skip


def test_lines_come_in_order_and_then_nothing_is_left(tree: Path) -> None:
    maker, given = replay(tree, WHOLE, EDITED), context(tree)
    first, second = proposed(maker, given), proposed(maker, given)
    assert dict(first.files) == {"csrc/scale.cpp": "text", "csrc/old.h": None}
    assert dict(second.files) == {"csrc/scale.cpp": CPP.replace("kRows = 1", "kRows = 4")}
    assert maker.propose(given) is None


def test_a_replayed_proposal_says_so_and_costs_nothing(tree: Path) -> None:
    proposal = proposed(replay(tree, EDITED), context(tree))
    assert (proposal.proposer, proposal.model) == ("replay", "")
    assert proposal.notes["recorded"] == {"proposer": "anthropic", "model": "m-1"}
    assert (proposal.cost_usd, proposal.tokens_in, proposal.tokens_out) == (0.0, 0, 0)


def test_repairs_build_on_what_was_refused_until_there_are_no_more(tree: Path) -> None:
    maker = replay(tree, MENDED)
    refused = proposed(maker, context(tree))
    once = maker.repair(refused, REFUSAL)
    assert once is not None
    assert once.files["csrc/scale.cpp"] == CPP.replace("kRows = 1", "kRows = 2")
    assert once.hypothesis == "mended"
    twice = maker.repair(once, REFUSAL)
    assert twice is not None
    assert set(twice.files) == {"csrc/scale.cpp", "model/optim.py"}
    assert twice.hypothesis == "mended twice"
    assert maker.repair(twice, REFUSAL) is None


def test_what_gave_up_gives_up_again(tree: Path) -> None:
    with pytest.raises(NoProposal, match="the model declined") as raised:
        replay(tree, NOTHING).propose(context(tree))
    assert raised.value.hypothesis == "nothing"


@pytest.mark.parametrize(("old", "places"), [("kRows = 9", "0 places"), ("constexpr", "2 places")])
def test_an_edit_that_does_not_fit_the_incumbent_is_no_proposal(
    tree: Path, old: str, places: str
) -> None:
    line = {"hypothesis": "late", "edits": [{**ROWS, "old": old}]}
    with pytest.raises(NoProposal, match=f"line 1 .*{places} of csrc/scale.cpp, expected one"):
        replay(tree, line).propose(context(tree))


def test_a_repair_that_does_not_fit_is_given_up(tree: Path) -> None:
    maker = replay(tree, {**EDITED, "repairs": [{"edits": [ROWS]}]})
    assert maker.repair(proposed(maker, context(tree)), REFUSAL) is None


def test_another_process_goes_on_behind_the_lines_that_ended(tree: Path) -> None:
    rows = (WHOLE, EDITED, MENDED)
    first = proposed(replay(tree, *rows), context(tree))
    assert proposed(replay(tree, *rows), context(tree, [row(first)])).hypothesis == "edited"


def test_a_line_lost_in_flight_comes_again_though_a_later_one_is_held(tree: Path) -> None:
    rows = (WHOLE, EDITED, MENDED)
    maker, given = replay(tree, *rows), context(tree)
    lost, held = proposed(maker, given), proposed(maker, given)
    after = context(tree, [row(lost, LOST), row(held, KEEP)])
    again = replay(tree, *rows)
    assert [proposed(again, after).hypothesis for _ in range(2)] == ["whole", "mended"]


def test_a_line_that_came_to_nothing_is_known_again_by_its_number(tree: Path) -> None:
    first, second = (
        row(Proposal("nothing", {}, "replay", notes={"recording": "this one", "line": n}), CRASH)
        for n in (1, 2)
    )
    maker = replay(tree, NOTHING, NOTHING, EDITED)
    with pytest.raises(NoProposal) as raised:
        maker.propose(context(tree, [first]))
    assert raised.value.notes["line"] == 2
    after = context(tree, [first, second])
    assert proposed(replay(tree, NOTHING, NOTHING, EDITED), after).hypothesis == "edited"


def test_a_lost_line_is_not_taken_for_one_of_its_name_that_came_to_nothing(tree: Path) -> None:
    rows = ({**EDITED, "hypothesis": "nothing"}, NOTHING)
    maker, given = replay(tree, *rows), context(tree)
    lost = row(proposed(maker, given), LOST)
    with pytest.raises(NoProposal) as raised:
        maker.propose(given)
    gone = row(Proposal("nothing", {}, "replay", notes=raised.value.notes), CRASH)
    again = proposed(replay(tree, *rows), context(tree, [lost, gone]))
    assert list(again.files) == ["csrc/scale.cpp"]


def test_rows_of_other_runs_and_other_recordings_hold_no_line(tree: Path) -> None:
    mine = proposed(replay(tree, WHOLE, EDITED), context(tree))
    other = replace(mine, notes={**mine.notes, "recording": "another"})
    history = [row(mine, run="yesterday"), row(other), row(replace(mine, proposer="sweep"))]
    assert proposed(replay(tree, WHOLE, EDITED), context(tree, history)).hypothesis == "whole"


def test_a_line_in_flight_is_held(tree: Path) -> None:
    running = row(proposed(replay(tree, WHOLE, EDITED), context(tree)), RUNNING)
    assert proposed(replay(tree, WHOLE, EDITED), context(tree, [running])).hypothesis == "edited"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("{}", "line 1: .*expected files, edits or gave_up"),
        (json.dumps(WHOLE) + "\n{", "line 2: no proposal"),
        ('{"files": {"a": 1}}', "the whole text of each, or null"),
        ('{"files": {"a": "b"}, "cost": 1}', "unknown cost; expected edits, expected"),
        ('{"edits": [{"path": "a"}]}', "missing 2 required"),
        ('{"files": {"a": "b"}, "repairs": [{"model": "m"}]}', "unknown model"),
        ("[1]", "line 1"),
    ],
)
def test_a_file_that_is_no_recording_is_refused_with_its_line(
    tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "night.jsonl").write_text(text)
    with pytest.raises(RecordingError, match=words):
        read(tmp_path / "night.jsonl")


def test_an_exported_run_reads_as_the_proposals_it_was(tree: Path, tmp_path: Path) -> None:
    repository, ledger = Repository(tree), Ledger(tmp_path / "ledger.sqlite")
    base = repository.resolve("HEAD")
    ledger.start_run(Run("night", Settings(), base, base, base, 0.0))
    faster = CPP.replace("kRows = 1", "kRows = 4")
    one = Proposal("rows", {"csrc/scale.cpp": faster}, "anthropic", model="m-1", expected="half")
    two = Proposal("less", {"model/optim.py": None, "model/new.py": "LR = 1\n"}, "sweep")
    for proposal, status in ((one, KEEP), (two, DROP), (one, LOST)):
        commit = repository.commit(base, proposal.files, "lab")
        opened = ledger.open_experiment("night", proposal, base, commit, "patch", "hash")
        ledger.close_experiment(opened, Outcome(status, "why"))
    nothing = ledger.open_experiment("night", Proposal("", {}, "anthropic"), base, base, "", "")
    ledger.close_experiment(nothing, Outcome(CRASH, "no proposal: the model declined"))
    file = tmp_path / "night.jsonl"
    file.write_text(export.recording(ledger, repository, "night"))
    lines = read(file)
    assert [dict(line.files) for line in lines] == [dict(one.files), dict(two.files), {}]
    assert (lines[0].source, lines[0].model, lines[0].expected) == ("anthropic", "m-1", "half")
    assert lines[2].gave_up == "the model declined"


def test_an_export_of_what_git_has_deleted_says_which_and_where_its_patch_is(
    tree: Path, tmp_path: Path
) -> None:
    repository, ledger = Repository(tree), Ledger(tmp_path / "ledger.sqlite")
    base = repository.resolve("HEAD")
    ledger.start_run(Run("night", Settings(), base, base, base, 0.0))
    gone = Proposal("rows", {"csrc/scale.cpp": CPP}, "anthropic")
    opened = ledger.open_experiment("night", gone, base, "1" * 40, "patch", "hash")
    ledger.close_experiment(opened, Outcome(DROP, "why"))
    with pytest.raises(GitError, match="(?s)experiment 1 of run night: .*in export --json"):
        export.recording(ledger, repository, "night")


def test_a_proposal_that_was_taken_back_whole_spoils_no_recording(
    tree: Path, tmp_path: Path
) -> None:
    repository, ledger = Repository(tree), Ledger(tmp_path / "ledger.sqlite")
    base = repository.resolve("HEAD")
    ledger.start_run(Run("night", Settings(), base, base, base, 0.0))
    commit = repository.commit(base, {}, "lab: taken back")
    opened = ledger.open_experiment("night", Proposal("back", {}, "command"), base, commit, "", "")
    ledger.close_experiment(opened, Outcome(DROP, "nothing that runs is changed"))
    file = tmp_path / "night.jsonl"
    file.write_text(export.recording(ledger, repository, "night"))
    (line,) = read(file)
    assert line.gave_up == "nothing that runs is changed"
