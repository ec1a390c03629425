"""Placebos change tokens and nothing that runs, each comes to its verdict, and what is kept of them is counted with its interval."""

from __future__ import annotations

import ast
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from lab_tree import Rules, Transcript, compared, git, impatient, make, write

from agent import bare_code, campaign, gates, placebo_cpp, placebo_python, report, standard
from agent.judging import Progress
from agent.lab import Lab
from agent.ledger import Ledger
from agent.proposers import placebo
from agent.records import DROP, KEEP, Change, Settings
from bench.speed import Comparison
from bench.trial_result import TrialResult

ROOT = Path(__file__).resolve().parent.parent
AA = Settings(target="all", proposer="placebo", seconds=5.0, data="corpus-1", experiments=12)
SOURCES = sorted(
    str(file.relative_to(ROOT))
    for folder, pattern in (("kernels", "*.py"), ("model", "*.py"), ("csrc", "*.c*"))
    for file in (ROOT / folder).glob(pattern)
    if file.name not in ("__init__.py", "jit.py")
)
LOCALS = {
    "kernels/scale.py": '''"""Scale."""
from kernels import jit


def scale(x, factor=2.0, *, impl=None):
    doubled = x * factor
    return doubled


def _other(x):
    y = x + 1
    return y


IMPLEMENTATIONS = {"torch": scale}
''',
    "csrc/scale.cpp": """// scale
constexpr int kRows = 1;  // tune: 1 2 4 8
constexpr int kUnroll = 1;  // tune: 1 2

float first(float x) {
  const float twice = x + x;
  return twice;
}

float second(float x) {
  const float half = x / 2;
  return half;
}
""",
    "model/optim.py": "LR = 0.04  # tune: 0.02 0.04 0.08\n\n\ndef step(x):\n    moved = x - LR\n    return moved\n",
}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    root = make(tmp_path / "checkout")
    write(root, LOCALS)
    git(root, "commit", "-qam", "with locals")
    return Lab(root)


class Noisy(Rules):
    """Trials as noisy as they come: by seed and tree, but nothing else. `gain`: what every placebo seems to win."""

    def __init__(self, gain: float = 0.0) -> None:
        super().__init__()
        self.gain = gain

    def trial(
        self, tree: Path, seed: int, progress: Progress | None, split: str = "val"
    ) -> TrialResult:
        text = "".join(file.read_text() for file in sorted(tree.rglob("*.*")))
        bpb = (
            2.0
            + random.Random(f"{text} {seed}").gauss(0.0, 0.001)
            - self.gain * ("is called" in text)
        )
        return TrialResult(True, val_bpb=bpb, tokens_per_second=1000.0, num_steps=7, seed=seed, peak_memory_mb=1.0)  # fmt: skip


def structure(path: str, text: str) -> object:
    """What is left of a source when local names and the order of functions are taken away."""
    if path.endswith(".py"):
        tree = ast.parse(text)
        return sorted(re.sub(r"(id|arg)='\w+'", "", ast.dump(node)) for node in tree.body)
    return sorted(re.findall(r"[^\w\s]|\d+", bare_code.without_comments(text)))


@pytest.mark.parametrize("path", SOURCES)
def test_a_placebo_of_each_shipped_source_changes_tokens_and_no_structure(path: str) -> None:
    before = (ROOT / path).read_text()
    made = [placebo.change(path, before, random.Random(seed)) for seed in range(2)]
    texts = [found[0] for found in made if found is not None]
    assert texts or not (placebo_cpp if path.startswith("csrc") else placebo_python).rename(before, "x", random.Random(0))  # fmt: skip
    was = structure(path, before)
    for after in texts:
        change = Change(path, "100644", "100644", before.encode(), after.encode())
        assert not bare_code.is_idle([change])
        assert structure(path, after) == was
    assert len(set(texts)) == len(texts)


def test_most_shipped_sources_offer_a_placebo_in_both_languages() -> None:
    offering = {p for p in SOURCES if placebo.change(p, (ROOT / p).read_text(), random.Random(0))}
    assert {Path(p).suffix for p in offering} >= {".py", ".cpp"}
    assert len(offering) >= 10


def test_python_renames_every_place_of_a_local_and_nothing_else() -> None:
    text = "def f(x, *, y=1):\n    é = 'y'; y2 = x.y2 + g(y2=x)\n    return [y2 for _ in é if y2]\n"
    found = {placebo_python.rename(text, "abcd", random.Random(seed)) for seed in range(40)}
    texts = {each[0] for each in found if each}
    assert "def f(x, *, y=1):\n    é = 'y'; y2_abcd = x.y2 + g(y2=x)\n    return [y2_abcd for _ in é if y2_abcd]\n" in texts  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    global x\n    x = 1\n",
        "def f():\n    x = 1\n    return f'{x}'\n",
        "def f():\n    x = 1\n    return locals()\n",
        "def f(x):\n    x = 1\n    return x\n",
        "def f():\n    try:\n        pass\n    except E as x:\n        x = 1\n",
    ],
)
def test_python_leaves_a_name_that_is_more_than_a_local(text: str) -> None:
    assert placebo_python.rename(text, "abcd", random.Random(0)) is None


def test_python_swaps_functions_only_where_neither_needs_the_other_to_be_defined() -> None:
    free = "def a():\n    return b()\n\n\ndef b():\n    return 1\n"
    swapped = placebo_python.reorder(free, random.Random(0))
    assert swapped is not None
    assert swapped[0] == "def b():\n    return 1\n\n\ndef a():\n    return b()\n"
    for bound in ("def a():\n    pass\n\n\n@a\ndef b():\n    pass\n", "def a():\n    pass\n\n\ndef b(x=a()):\n    pass\n"):  # fmt: skip
        assert placebo_python.reorder(bound, random.Random(0)) is None


def test_cpp_leaves_members_calls_macros_and_strings_alone() -> None:
    text = '// half\nvoid f() {\n  float half = x.n;\n  float n = 1;\n  float call = call(2);\n  say("half", half);\n}\n'
    assert placebo_cpp.rename(text, "abcd", random.Random(0)) == (
        text.replace("float half", "float half_abcd").replace(", half)", ", half_abcd)"),
        "half is called half_abcd",
    )


def test_cpp_swaps_two_functions_unless_the_second_calls_the_first() -> None:
    one, two = "float a(float x) {\n  return x;\n}\n", "float b(float x) {\n  return x + 1;\n}\n"
    assert placebo_cpp.reorder(f"{one}\n{two}", random.Random(0)) == (f"{two}\n{one}", "b stands before a")  # fmt: skip
    assert placebo_cpp.reorder(f"{one}\n{two.replace('x + 1', 'a(x)')}", random.Random(0)) is None


def placebos(ledger: Ledger) -> list[tuple[str, str]]:
    return [(e.hypothesis, e.outcome.status) for e in ledger.experiments()]


def test_every_placebo_comes_to_its_verdict_and_the_rate_is_printed(lab: Lab) -> None:
    summary = campaign.run(lab, AA, Transcript(), Noisy())
    ledger = lab.ledger()
    assert [status for _, status in placebos(ledger)] == [DROP] * 12
    assert all(e.outcome.pairs for e in ledger.experiments())
    names = [*(name for name, _ in gates.GATES), "verdict"]
    assert all([gate.name for gate in e.gates] == names for e in ledger.experiments())
    rate = "false keeps: 0 of 12 placebos that reached their verdict, 0.0 % [0.0 %, 26.5 %]"
    assert rate in summary
    assert rate in report.status(ledger, ledger.path, lab.root)


def test_placebos_of_one_seed_are_always_the_same(lab: Lab, tmp_path: Path) -> None:
    campaign.run(lab, replace(AA, experiments=4), Transcript(), Noisy())
    campaign.run(lab, replace(AA, experiments=4), Transcript(), Noisy())
    campaign.run(lab, replace(AA, experiments=4, seed=7), Transcript(), Noisy())
    said = [hypothesis for hypothesis, _ in placebos(lab.ledger())]
    assert said[:4] == said[4:8]
    assert not {*said[:4]} & {*said[8:]}


def test_a_judge_that_is_fooled_is_found_out(lab: Lab) -> None:
    summary = campaign.run(lab, replace(AA, target="model"), Transcript(), Noisy(gain=0.02))
    kept = lab.ledger().counts(lab.ledger().run().id)[KEEP]
    assert kept >= 1
    assert f"false keeps: {kept} of 12 placebos" in summary


class Flattering(Noisy):
    """A timer that calls every change of a kernel slower or faster."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio

    def compare(self, op: str, incumbent: Path, candidate: Path) -> Comparison:
        return compared(self.ratio, self.ratio - 0.01, self.ratio + 0.01)


@pytest.mark.parametrize(
    ("ratio", "status", "word"), [(0.9, KEEP, "faster"), (1.1, DROP, "slower")]
)
def test_a_kernel_is_kept_only_where_the_timer_and_the_verdict_both_let_it(
    lab: Lab, ratio: float, status: str, word: str
) -> None:
    settings = replace(AA, target="kernels", experiments=3)
    summary = campaign.run(lab, settings, Transcript(), Flattering(ratio))
    assert [found for _, found in placebos(lab.ledger())] == [status] * 3
    assert f"the timer called 3 of 3 ops of placebos {word}, 100.0 % [29.2 %, 100.0 %]" in summary
    for experiment in lab.ledger().experiments():
        (timed,) = (gate for gate in experiment.gates if gate.name == "microbench")
        assert (standard.TIMER_REFUSES in timed.evidence) == (status == DROP)


def test_a_placebo_run_that_was_stopped_tells_what_is_known_and_goes_on_to_the_same_end(
    lab: Lab,
) -> None:
    summary = campaign.run(lab, AA, Transcript(), impatient(Noisy(), 7))
    assert re.search(r"false keeps: 0 of \d placebos", summary)
    assert "not judged: 1 without a verdict" in summary
    campaign.resume(lab, None, {}, Transcript(), Noisy())
    stopped = [hypothesis for hypothesis, status in placebos(lab.ledger()) if status == DROP]
    campaign.run(lab, AA, Transcript(), Noisy())
    assert [hypothesis for hypothesis, _ in placebos(lab.ledger())[-12:]] == stopped


def test_no_other_proposer_reads_what_placebos_came_to(lab: Lab) -> None:
    campaign.run(lab, replace(AA, experiments=2), Transcript(), Noisy())
    seen: list[str] = []

    class Reading(placebo.Placebo):
        name = "reading"

        def propose(self, context):  # type: ignore[no-untyped-def]
            seen.extend(past.proposer for past in context.history)
            return None

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(campaign.proposers, "create", lambda name, workshop: Reading())
        campaign.run(lab, replace(AA, proposer="sweep"), Transcript(), Noisy())
    assert seen == []
