"""Every cheat of tests/cheats/ gains something from a naive judge (tests/naive.py) and is refused by the gate that it names, with that gate alone.

A cheat says of itself, in its docstring or first comment:

    Row: N02. Gate: correctness.      rows of the catalogue of cheats; the gate, and in brackets the kind of its refusal where that is a
                                      crash or the name of an exception
    Gains: time forward.              or: time backward; a pass (of an answer that is wrong, or of none)
"""

from __future__ import annotations

import functools
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import naive
import pytest
from calibrate import honest_files, op_of, place_of
from warm import Warm

from agent import gates
from agent.judging import Bench
from agent.lab import Lab
from agent.records import Candidate, Change
from bench import builds
from bench.finding import Finding

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "cheats"
# trial_* are judged by tests/test_trial_cheats.py, *_timed_* by tests/test_timed_cheats.py
KERNELS = [
    path
    for path in sorted((*FOLDER.glob("*.py"), *FOLDER.glob("*.cpp")))
    if not path.name.startswith("trial_") and "_timed_" not in path.name
]
SEED = 7  # the gate draws a secret one; a test that fails should fail again
FASTER = 0.95
# Refusals by accident, unless the cheat says that it is what it comes to.
ACCIDENTS = (
    "timeout crash ImportError ModuleNotFoundError SyntaxError NameError AttributeError".split()
)
# Files that stand in an op's place, here and in tests/honest/.
CPP = [*(path for path in KERNELS if path.suffix == ".cpp"), *(f for f in honest_files() if f.suffix == ".cpp")]  # fmt: skip


@dataclass(frozen=True)
class Cheat:
    path: Path
    gate: str
    kind: str  # "" where the docstring names none
    gains: str

    @property
    def op(self) -> str:
        return op_of(self.path)

    @property
    def place(self) -> str:
        return place_of(self.path)

    def put(self, tree: Path) -> Path:
        """The project's kernels with one file replaced."""
        Lab().copy_tree(tree)
        shutil.copy(self.path, tree / self.place)
        return tree


def read(path: Path) -> Cheat:
    """What a cheat says of itself. Raises AssertionError where it leaves something out."""
    head = path.read_text()[:1500]
    assert re.search(r"Row: [A-Z]\d\d", head), f"{path.name} names no row of the catalogue"
    gate = re.search(r"Gate: (\w+)(?: \((\w+)\))?\.", head)
    gains = re.search(r"Gains: (time forward|time backward|a pass)\b", head)
    assert gate, f"{path.name} names no gate"
    assert gains, f"{path.name} does not say what it gains"
    return Cheat(path, gate[1], gate[2] or "", gains[1])


@pytest.mark.parametrize("path", CPP, ids=lambda p: p.name)
def test_a_file_in_cpp_registers_all_that_its_op_may_call(path: Path) -> None:
    """Else it is refused for what it lacks, and nobody sees whether for what it does."""
    registered, asked = (
        set(re.findall(r'm\.def\("(\w+)\(', file.read_text()))
        for file in (path, ROOT / "csrc" / f"{op_of(path)}.cpp")
    )
    assert asked
    assert asked <= registered


@functools.cache
def honest_cpp(op: str) -> naive.Result:
    return naive.judge(op, ROOT)


@pytest.mark.proof
@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.name)
def test_gains_from_a_naive_judge(path: Path, tmp_path: Path) -> None:
    cheat = read(path)
    found = naive.judge(cheat.op, cheat.put(tmp_path))
    assert found.accepted, found.said
    if cheat.gains == "a pass":
        return
    part = cheat.gains.removeprefix("time ")
    # C++ is compared with the C++ that it replaces, Python with the plain reference.
    honest = getattr(honest_cpp(cheat.op), part) if path.suffix == ".cpp" else 1.0
    assert getattr(found, part) / honest < FASTER, found


# Cheats that take long, of rows of which others are tried with every run of the suite; these are tried by `make proof`.
TWINS = (
    "linear_cross_entropy_knows_its_head.py newton_schulz_mirrors_whole_tiles.cpp rms_norm_samples_half_a_row.cpp rms_norm_keeps_one_rstd.cpp "
    "rms_norm_answers_by_pointer.cpp rms_norm_weight_does_not_learn.cpp add_rms_norm_zeroes_its_inputs.cpp add_rms_norm_drops_the_join.cpp "
    "linear_cross_entropy_four_fifths_of_the_words.py qk_norm_rope_norms_keys_by_queries.cpp"
).split()


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=pytest.mark.proof) if p.name in TWINS else p for p in KERNELS],
    ids=lambda p: p.name,
)
def test_is_refused_by_the_gate_it_names(path: Path, warm: Warm) -> None:
    cheat = read(path)
    with warm.replaced(cheat.place, path.read_bytes()) as tree:
        if cheat.gate == "static":
            finding = by_static(cheat, tree)
        elif cheat.gate == "build":
            finding = builds.build(tree, [cheat.place])
        else:
            assert cheat.gate == "correctness"
            finding = by_correctness(cheat, warm)
    assert not finding.passed, f"{path.name} passed: {finding.reason} {finding.evidence}"
    kind = finding.evidence.get("kind", "")
    assert kind == cheat.kind if cheat.kind else kind not in ACCIDENTS, finding.reason


def by_static(cheat: Cheat, tree: Path) -> Finding:
    change = Change(cheat.place, "100644", "100644", b"", cheat.path.read_bytes())
    candidate = Candidate("kernels", ROOT, tree, (change,))
    context = gates.Context(Bench(), complete=False)
    (result,) = gates.run(candidate, context, [("static", gates.static)])
    assert "does not parse" not in result.reason
    assert "public signature" not in result.reason
    return Finding(result.passed, result.reason, dict(result.evidence))


def by_correctness(cheat: Cheat, warm: Warm) -> Finding:
    if cheat.path.suffix == ".cpp":
        warm.build(cheat.place)
    return warm.check(cheat.op, SEED)


def test_there_are_cheats_for_every_gate() -> None:
    """But scope, which reads paths, and parity, before which the microbench stands."""
    heads = [
        path.read_text()[:1500] for path in sorted((*FOLDER.glob("*.py"), *FOLDER.glob("*.cpp")))
    ]
    named = {found[1] for head in heads if (found := re.search(r"Gate: (\w+)", head))}
    assert named == {name for name, _ in gates.GATES} - {"scope", "parity"} | {"trial"}
