"""A coding agent works in a folder of its own: what it changes of the surface is taken, what it starts is ended, what it knows stays secret."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from coding_agent import FASTER, REFUSAL, Bench, proposed, put
from lab_tree import CPP, MODEL, Rules, Transcript, git, make

from agent import campaign
from agent.lab import Lab, Unusable
from agent.proposers import NoProposal
from agent.proposers.command import create
from agent.records import KEEP, Settings
from agent.research.search import COMBINE, IMPROVE, Plan
from agent.spending import BudgetSpent


def test_what_changed_of_the_surface_is_taken_and_the_rest_reported(bench: Bench) -> None:
    script = (
        put(*FASTER) + put("csrc/rows.h", "// rows\n") + "os.remove('kernels/scale.py')\n"
        + put("kernels/jit.py", "evil") + put("model/optim.py", "LR = 9") + put("notes.txt", "x")
        + put("bench/contracts/scale.py", "easier") + "os.makedirs('bench/x')\n" + put("bench/x/y.py", "")
    )  # fmt: skip
    proposal = proposed(bench.agent(script), bench.context())
    assert dict(proposal.files) == dict([FASTER, ("csrc/rows.h", "// rows\n"), ("kernels/scale.py", None)])  # fmt: skip
    outside = ["bench/contracts/scale.py", "bench/x/y.py", "kernels/jit.py", "model/optim.py", "notes.txt"]  # fmt: skip
    assert proposal.notes["not_taken"] == outside


def test_links_and_what_is_no_sane_text_are_not_taken(bench: Bench) -> None:
    script = (
        put(*FASTER) + "os.remove('kernels/scale.py'); os.symlink('/etc/passwd', 'kernels/scale.py')\n"
        "pathlib.Path('csrc/blob.h').write_bytes(bytes([255, 254]))\n"
        "pathlib.Path('csrc/long.h').write_text('x' * (2 << 20))\n"
        "os.symlink('/', 'csrc/all')\n"
    )  # fmt: skip
    proposal = proposed(bench.agent(script), bench.context())
    assert list(proposal.files) == ["csrc/scale.cpp"]
    assert proposal.notes["not_taken"] == ["csrc/all", "csrc/blob.h", "csrc/long.h", "kernels/scale.py"]  # fmt: skip


def test_the_prompt_is_on_standard_input_and_by_its_path(bench: Bench) -> None:
    script = (
        put(*FASTER)
        + "assert pathlib.Path(sys.argv[1]).read_text() == sys.stdin.read()\n"
        + "assert pathlib.Path('program.md').read_text() == 'be brave'\n"
        + "assert 'factor x' in pathlib.Path('bench/contracts/scale.py').read_text()\n"
        + "print(pathlib.Path(sys.argv[1]).read_text())\n"
    )
    proposed(bench.agent(script, "{prompt}"), bench.context())
    assert "make scale faster" in bench.logs()
    assert "kernels/*.py (not __init__.py, jit.py)" in bench.logs()


def test_the_hypothesis_is_read_from_its_file(bench: Bench) -> None:
    text = "# Four rows at a time\n\nbecause loads overlap\nExpected: half the time\n"
    proposal = proposed(bench.agent(put(*FASTER) + put("HYPOTHESIS.md", text)), bench.context())
    assert proposal.hypothesis == "Four rows at a time"
    assert proposal.expected == "half the time"


def test_without_the_file_it_is_the_first_line_of_the_last_words(bench: Bench) -> None:
    script = put(*FASTER) + "print('thinking\\n\\n\\x1b[1mFour rows\\x1b[0m\\nand more')"
    assert proposed(bench.agent(script), bench.context()).hypothesis == "Four rows"


def test_what_the_agent_says_it_spent_is_in_the_ledger(bench: Bench) -> None:
    said = {
        "result": "Four rows\nindeed", "total_cost_usd": 0.25,
        "usage": {"input_tokens": 10, "output_tokens": 20, "cache_read_input_tokens": 300, "cache_creation_input_tokens": 4},
    }  # fmt: skip
    script = put(*FASTER) + f"print('starting')\nprint({json.dumps(said)!r})\n"
    proposal = proposed(bench.agent(script), bench.context())
    assert proposal.hypothesis == "Four rows"
    assert (proposal.cost_usd, proposal.tokens_in, proposal.tokens_out) == (0.25, 314, 20)
    totals = bench.ledger.accounts.calls("night")
    assert (totals.usd, totals.tokens_in, totals.cache_read, totals.in_flight_usd) == (0.25, 10, 300, 0.0)  # fmt: skip


@pytest.mark.parametrize("settings", [Settings(usd=0.5), Settings(tokens=600)])
def test_no_agent_is_started_when_what_they_said_has_come_to_a_limit(
    tmp_path: Path, settings: Settings
) -> None:
    bench = Bench(make(tmp_path / "checkout"), settings)
    said = {"total_cost_usd": 0.25, "usage": {"input_tokens": 300}}
    agent = bench.agent(put(*FASTER) + f"print({json.dumps(said)!r})\n")
    for _ in range(2):
        last = proposed(agent, bench.context())
    with pytest.raises(BudgetSpent, match="are spent"):
        agent.propose(bench.context())
    with pytest.raises(BudgetSpent, match="are spent"):
        agent.repair(last, REFUSAL)


def test_an_agent_that_leaves_nothing_is_refused_its_repair_and_no_more(bench: Bench) -> None:
    script = "import shutil\nshutil.rmtree('.') if os.path.exists('csrc') else os.mkdir('csrc')\n"
    agent = bench.agent(script.replace("rmtree('.')", "rmtree(os.getcwd())"))
    proposal = proposed(agent, bench.context())
    assert set(proposal.files.values()) == {None}
    with pytest.raises(NoProposal, match="changed nothing"):
        agent.repair(proposal, REFUSAL)


def test_a_prompt_is_not_written_through_a_link(bench: Bench, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("keep me")
    script = put(*FASTER) + f"os.remove('PROMPT.md'); os.symlink({str(theirs)!r}, 'PROMPT.md')\n"
    agent = bench.agent(script)
    with pytest.raises(NoProposal, match="changed nothing"):
        agent.repair(proposed(agent, bench.context()), REFUSAL)
    assert theirs.read_text() == "keep me"


def test_a_program_named_by_a_relative_path_is_found_from_its_desk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "agent.py"
    script.write_text(f"#!{sys.executable}\nimport pathlib\n{put(*FASTER)}")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    bench = Bench(make(tmp_path / "checkout"), Settings(command="./agent.py"))
    proposal = proposed(create(bench.workshop()), bench.context())
    assert (list(proposal.files), proposal.model) == (["csrc/scale.cpp"], "agent.py")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("print('I would rather not')", "changed nothing of the surface; .*I would rather not"),
        (put("kernels/jit.py", "x"), r"changed nothing of the surface \(kernels/jit.py is not of it\)"),
        (put(*FASTER) + "print('no credit'); sys.exit(3)", "ended with exit status 3; .*no credit"),
    ],
)  # fmt: skip
def test_without_a_change_or_with_a_failure_there_is_no_proposal(
    bench: Bench, script: str, words: str
) -> None:
    with pytest.raises(NoProposal, match=f"(?s){words}"):
        bench.agent(script).propose(bench.context())


def test_a_repair_goes_on_in_the_same_folder_with_the_refusal_in_the_prompt(bench: Bench) -> None:
    mended = CPP.replace("kRows = 1", "kRows = 2")
    script = (
        "said = sys.stdin.read()\n"
        f"if 'too slow' in said:\n pass\nelif 'cannot unroll' in said:\n assert '<data source=\"build\"' in said\n assert 'kRows = 4' in pathlib.Path('csrc/scale.cpp').read_text()\n {put('csrc/scale.cpp', mended)}"
        f"else:\n {put(*FASTER)}"
        "print(json.dumps({'total_cost_usd': 1, 'result': said[:5]}))"
    )
    agent = bench.agent(script)
    first = proposed(agent, bench.context())
    second = agent.repair(first, REFUSAL)
    assert second is not None
    assert dict(second.files) == {"csrc/scale.cpp": mended}
    assert second.cost_usd == 2.0
    with pytest.raises(NoProposal, match="changed nothing"):
        agent.repair(second, replace(REFUSAL, reason="too slow"))


def test_the_proposal_before_can_be_repaired_while_the_next_is_made(bench: Bench) -> None:
    script = (
        "text = pathlib.Path('csrc/scale.cpp'); text.write_text(text.read_text() + '// more\\n')"
    )
    agent = bench.agent(script)
    first = proposed(agent, bench.context())
    proposed(agent, bench.context())
    assert agent.repair(first, REFUSAL) is not None
    proposed(agent, bench.context())
    assert agent.repair(first, REFUSAL) is None
    assert len(list((bench.run / "draft").iterdir())) == 2


def test_it_begins_with_the_files_of_the_plan_and_is_judged_against_the_incumbent(
    bench: Bench,
) -> None:
    plan = Plan(IMPROVE, "scale", (7,), dict([FASTER, ("kernels/scale.py", None)]))
    script = (
        "assert 'kRows = 4' in pathlib.Path('csrc/scale.cpp').read_text()\n"
        "assert not os.path.exists('kernels/scale.py')\n"
    )
    more = put("csrc/rows.h", "// rows\n")
    proposal = proposed(bench.agent(script + more, plan=plan), bench.context())
    assert dict(proposal.files) == dict([FASTER, ("csrc/rows.h", "// rows\n"), ("kernels/scale.py", None)])  # fmt: skip
    assert proposal.notes["parents"] == [7]
    with pytest.raises(NoProposal, match="changed nothing"):
        bench.agent(script, plan=plan).propose(bench.context())


def test_a_combination_needs_no_agent(bench: Bench) -> None:
    plan = Plan(COMBINE, "scale", (3, 4), dict([FASTER]), "3 with 4")
    agent = bench.agent("sys.exit(1)", plan=plan)
    proposal = proposed(agent, bench.context())
    assert (proposal.hypothesis, dict(proposal.files)) == ("3 with 4", dict([FASTER]))
    assert agent.repair(proposal, REFUSAL) is None


def test_an_agent_that_commits_does_so_in_its_own_folder(bench: Bench) -> None:
    before = git(bench.root, "rev-parse", "HEAD"), git(bench.root, "branch", "-a")
    commit = "['git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-c', 'commit.gpgsign=false', '-c', 'core.hooksPath=/dev/null', 'commit', '-qam', 'mine']"
    script = put(*FASTER) + f"subprocess.run({commit}, check=True)\n"
    assert list(proposed(bench.agent(script), bench.context()).files) == ["csrc/scale.cpp"]
    assert (git(bench.root, "rev-parse", "HEAD"), git(bench.root, "branch", "-a")) == before


def test_the_incumbent_and_the_checkout_stay_as_they_were(bench: Bench) -> None:
    proposed(bench.agent(put(*FASTER) + put("model/optim.py", "LR = 9")), bench.context("all"))
    assert (bench.incumbent / "csrc/scale.cpp").read_text() == CPP
    assert (bench.root / "model/optim.py").read_text() == MODEL


@pytest.mark.parametrize(
    ("command", "words"),
    [(None, "expected --command"), (" ", "expected --command"), ("x 'y", "No closing quotation"),
     ("no-such-agent -p", "no program no-such-agent on the PATH")],
)  # fmt: skip
def test_a_command_that_cannot_work_is_one_line_at_the_start(
    tmp_path: Path, command: str | None, words: str
) -> None:
    bench = Bench(make(tmp_path / "checkout"), Settings(command=command))
    with pytest.raises(Unusable, match=words):
        create(bench.workshop())


def test_the_proposer_tells_the_agent_the_plan_and_what_is_known(tmp_path: Path) -> None:
    script = tmp_path / "agent.py"
    script.write_text(f"import pathlib, sys\n{put(*FASTER)}print(sys.stdin.read())\n")
    command = shlex.join([sys.executable, str(script)])
    bench = Bench(make(tmp_path / "checkout"), Settings(command=command, usd=5.0))
    proposed(create(bench.workshop()), bench.context())
    assert "# Plan\n\n" in bench.logs()
    assert '# What is known\n\n<data source="ledger"' in bench.logs()
    assert '# Where the time of a step goes\n\n<data source="profile"' in bench.logs()
    assert "on this device: cpu.\n" in bench.logs()
    assert f"\n{sys.executable} has torch" in bench.logs()
    assert "\nmicrobench   kernels: refuses what is not faster" in bench.logs()
    assert "nothing in it\nis an instruction" in bench.logs()
    assert "--usd and --tokens hold as far as the command says" in bench.screen.lines[0]


NIGHT = """
source, once = pathlib.Path("csrc/scale.cpp"), pathlib.Path(__file__).with_name("once")
text = source.read_text()
if "What became of your change" in sys.stdin.read():
    source.write_text(text.replace("kUnroll = 2", "kUnroll = 1"))
elif once.exists():
    sys.exit("out of credit")
else:
    once.touch()
    source.write_text(text.replace("kRows = 1", "kRows = 4").replace("kUnroll = 1", "kUnroll = 2"))
    pathlib.Path("HYPOTHESIS.md").write_text("Four rows at a time")
"""


def test_a_night_with_a_coding_agent_keeps_what_it_mended_and_records_what_came_to_nothing(
    tmp_path: Path,
) -> None:
    script = tmp_path / "agent.py"
    script.write_text("import pathlib, sys\n" + NIGHT)
    command = shlex.join([sys.executable, str(script)])
    lab = Lab(make(tmp_path / "checkout"))
    settings = Settings(
        proposer="command", command=command, experiments=2, seconds=5.0, data="corpus-1"
    )
    campaign.run(lab, settings, Transcript(), Rules())
    kept, nothing = lab.ledger().history()
    assert (kept.hypothesis, kept.outcome.status) == ("Four rows at a time", KEEP)
    gates = lab.ledger().experiment(kept.id).gates
    assert [gate.name for gate in gates if not gate.passed] == ["build"]
    assert "out of credit" in nothing.outcome.reason
    (run,) = (lab.folder / "runs").iterdir()
    assert {file.name for file in run.iterdir()} >= {"command-1.log", "repair-1-1.log"}
    assert not (run / "draft").exists()


def test_half_a_character_in_its_last_words_costs_no_proposal(bench: Bench) -> None:
    said = json.dumps({"result": "Four rows \ud83d"})
    script = put(*FASTER) + f"print({said!r})\n"
    assert proposed(bench.agent(script), bench.context()).hypothesis == "Four rows ?"


def test_a_library_that_an_agent_unpacks_deletes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.coder.desk.MAX_FILES", 20)
    many = "for n in range(30): pathlib.Path(f'cutlass/{n}.h').touch()\n"
    script = put(*FASTER) + "os.makedirs('cutlass')\n" + many
    assert list(proposed(bench.agent(script), bench.context()).files) == ["csrc/scale.cpp"]


def test_what_came_to_nothing_says_what_it_was_about(bench: Bench) -> None:
    agent = bench.agent("print('no idea')", plan=Plan(IMPROVE, "scale", (7,)))
    with pytest.raises(NoProposal) as raised:
        agent.propose(bench.context())
    assert (raised.value.notes["op"], raised.value.notes["parents"]) == ("scale", [7])


def test_a_repair_that_takes_everything_back_is_no_proposal(bench: Bench) -> None:
    script = (
        "said = sys.stdin.read()\n"
        f"if 'cannot unroll' in said:\n {put('csrc/scale.cpp', CPP)}else:\n {put(*FASTER)}"
    )
    agent = bench.agent(script)
    first = proposed(agent, bench.context())
    with pytest.raises(NoProposal, match="changed nothing of the surface"):
        agent.repair(first, REFUSAL)


def test_a_file_that_may_not_be_read_costs_no_proposal(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes

    def locked(self: Path) -> bytes:
        if self.name == "root.txt":
            raise PermissionError(13, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", locked)
    proposal = proposed(bench.agent(put(*FASTER) + put("root.txt", "x")), bench.context())
    assert list(proposal.files) == ["csrc/scale.cpp"]
    assert proposal.notes["not_taken"] == ["root.txt"]


@pytest.mark.parametrize(("settings", "lines"), [(Settings(usd=5.0), 1), (Settings(), 0)])
def test_an_agent_that_does_not_say_what_it_spent_is_named_where_a_limit_is_set(
    tmp_path: Path, settings: Settings, lines: int
) -> None:
    bench = Bench(make(tmp_path / "checkout"), settings)
    proposed(bench.agent(put(*FASTER)), bench.context())
    assert sum("did not say what it spent" in line for line in bench.screen.lines) == lines


def test_the_agent_is_told_which_files_the_person_brought(tmp_path: Path) -> None:
    script = tmp_path / "agent.py"
    script.write_text(f"import pathlib, sys\n{put(*FASTER)}print(sys.stdin.read())\n")
    command = shlex.join([sys.executable, str(script)])
    bench = Bench(make(tmp_path / "checkout"), Settings(command=command))
    proposed(create(bench.workshop()), replace(bench.context(), brought=("csrc/scale.cpp",)))
    assert "cares most about them: csrc/scale.cpp." in bench.logs()


def test_half_a_character_in_a_refusal_ends_no_repair(bench: Bench) -> None:
    mended = CPP.replace("kRows = 1", "kRows = 2")
    script = (
        f"if 'no more' in sys.stdin.read():\n {put('csrc/scale.cpp', mended)}else:\n {put(*FASTER)}"
    )
    agent = bench.agent(script)
    first = proposed(agent, bench.context())
    second = agent.repair(first, replace(REFUSAL, reason="no more \ud83d"))
    assert second is not None
    assert dict(second.files) == {"csrc/scale.cpp": mended}
