"""None of the honest oddities in tests/honest/ is refused: by the static gate, by the build, by the correctness gate.

The many seeds are those of tests/calibrate.py; here every file meets one that all share.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from calibrate import Row, honest_files, op_of, place_of, together
from warm import Warm

from agent import gates
from agent.judging import Bench
from agent.records import Candidate, Change
from bench.contracts import ops, written

FILES = honest_files()
# A check takes 6 to 16 s, of newton_schulz, attention and the loss beside other tests 20 to 40: three files of other ops, one of them C++, with
# every run of the suite, the rest with `make proof`.
CHECKED = [
    file
    if i % 9 == 7 and not file.name.startswith(("newton", "attention", "linear"))
    else pytest.param(file, marks=pytest.mark.proof)
    for i, file in enumerate(FILES)
]
ROOT = Path(__file__).resolve().parent.parent
SEED = 7  # the gate draws a secret one; a test that fails should fail again


def test_the_oddities_cover_every_op_and_both_languages() -> None:
    covered = {op_of(file) for file in FILES}
    there = set(written(ROOT))
    assert there <= covered <= set(ops()), f"no file here for {sorted(there - covered)}: write one"
    languages = Counter(file.suffix for file in FILES)
    assert languages[".cpp"] >= 7


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_an_oddity_says_what_is_odd_and_why_it_is_right(file: Path) -> None:
    text = file.read_text()
    said = text.split('"""')[1] if file.suffix == ".py" else text.split("#include")[0]
    said = " ".join(said.replace("//", "").split())
    assert "Odd: " in said
    assert "Right: " in said


# g++ reads torch's headers for four instruction sets, 1.3 s a file: of C++ two with every run of the suite, the rest with `make proof`.
READ = [
    pytest.param(file, marks=pytest.mark.proof)
    if file.suffix == ".cpp" and file.stem not in ("rms_norm_intrinsics", "rms_norm_chrono")
    else file
    for file in FILES
]


@pytest.mark.parametrize("file", READ, ids=lambda f: f.name)
def test_the_static_gate_lets_it_pass(file: Path) -> None:
    change = Change(place_of(file), "100644", "100644", b"", file.read_bytes())
    candidate = Candidate("kernels", ROOT, ROOT, (change,))  # where its headers are
    finding = gates.static(candidate, gates.Context(Bench("cpu"), complete=False))
    assert finding.passed, finding.reason


@pytest.mark.slow
@pytest.mark.parametrize("file", CHECKED, ids=lambda f: f.name)
def test_the_correctness_gate_lets_it_pass(file: Path, warm: Warm) -> None:
    with warm.replaced(place_of(file), file.read_bytes()):
        if file.suffix == ".cpp":
            warm.build(place_of(file))
        finding = warm.check(op_of(file), SEED)
    assert finding.passed, finding.reason


def test_seeds_of_two_campaigns_add_up() -> None:
    few = Row("a.py", "d", 5, 1, "wrong:1", "0.40")
    more = Row("a.py", "d", 15, 3, "nan:2 wrong:1", "-")
    assert together(few, more) == Row("a.py", "d", 20, 4, "nan:2 wrong:2", "0.40")
