"""Mutants are other programs than the original, and the gate refuses those that it is known to refuse."""

from __future__ import annotations

import ast
import random

import mutants_cpp
import mutants_oracle
import mutants_python
import pytest
from mutants import ROOT, SHARES, Mutant, judge, mutants, plant, rows

from bench.contracts import Case, Input, contract

SEED = 11


def sample(impl: str, path: str, number: int) -> list[Mutant]:
    """Some of the mutants that the campaign in results/mutants.tsv found refused, of one implementation and folder."""
    # One op each: of a mutant of a header all ops that include it are compiled and examined.
    killed = {row.id for row in rows() if row.outcome == "killed" and " " not in row.ops}
    known = [m for m in mutants() if m.id in killed and m.impl == impl and m.path.startswith(path)]
    return random.Random(SEED).sample(known, min(number, len(known)))


def test_draw_is_large_and_takes_from_every_file() -> None:
    assert len({m.id for m in mutants()}) == len(mutants()) >= 200
    assert {m.path for m in mutants()} == set(SHARES)
    assert sum(m.path.endswith(".py") for m in mutants()) >= 100
    assert sum(not m.path.endswith(".py") for m in mutants()) >= 100


def test_every_mutant_is_another_program_text() -> None:
    texts = {path: (ROOT / path).read_text() for path in SHARES}
    dumps = {path: ast.dump(ast.parse(texts[path])) for path in SHARES if path.endswith(".py")}
    for mutant in mutants():
        original = texts[mutant.path]
        assert mutant.before != mutant.after, mutant.id
        if mutant.path.endswith(".py"):
            assert ast.dump(ast.parse(mutant.source)) != dumps[mutant.path], mutant.id
        else:
            assert mutant.source.count("{") == original.count("{"), mutant.id


def test_python_changes_leave_messages_and_triton_alone() -> None:
    source = (ROOT / "kernels/attention.py").read_text()
    owners = {
        mutants_python.owner(source, source.count("\n", 0, site.start) + 1)
        for site in mutants_python.sites(source)
    }
    assert {"attention", "_torch", "_band", "_gradient"} <= owners
    assert not owners & {"_check", "_visible", "_triton_forward", "AOT"}


def test_cpp_changes_leave_comments_and_tunables_alone() -> None:
    source = "\n".join(
        [
            "// a + b",
            "constexpr int kTile = 4;  // tune: 4 8",
            'const char* s = "c + d";',
            "int f(int x, int y) { return x + y; }",
        ]
    )
    lines = {source.count("\n", 0, site.start) for site in mutants_cpp.sites(source)}
    assert lines == {3}


def test_a_mutant_is_all_that_its_tree_can_run(tmp_path) -> None:
    mutant = next(m for m in mutants() if m.impl == "torch" and "rms_norm" in m.ops)
    tree = plant(mutant, tmp_path)
    assert 'IMPLEMENTATIONS = {"torch": _torch}\n' in (tree / mutant.path).read_text()


SAMPLE = [*sample("torch", "kernels", 2), *sample("cpp", "kernels", 2), *sample("cpp", "csrc", 2)]


def test_the_campaign_still_knows_mutants_of_these_kernels() -> None:
    assert len(SAMPLE) == 6, (
        "the kernels have changed since: python tests/mutants.py runs the mutants that are new"
    )


# One of each implementation and folder with every run of the suite, the other with `make proof`.
JUDGED = [
    pytest.param(mutant, marks=pytest.mark.proof) if i % 2 else mutant
    for i, mutant in enumerate(SAMPLE)
]


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("mutant", JUDGED, ids=lambda m: m.id)
def test_mutant_is_refused(mutant: Mutant) -> None:
    row = judge(mutant, seed=SEED, control=False)
    # Some are another program only where the processor multiplies bfloat16: elsewhere every bit is equal, and there is nothing to refuse.
    nothing = (row.outcome, row.verdict) == ("survived", "equal")
    assert nothing or row.outcome == "killed", f"{mutant.path}:{mutant.line} {mutant.after}: {row}"


@pytest.mark.parametrize(("share", "verdict"), [(0.999, "property"), (0.5, "different")])
def test_what_is_judged_by_a_property_is_so_by_the_oracle_too(share: float, verdict: str) -> None:
    asked = contract("newton_schulz")
    case = Case({"G": Input((2, 24, 16))})
    call = mutants_oracle.Call(case, 3, False, (), ("O",), 1)
    (truth,) = (asked.reference(t.double()) for t in mutants_oracle.inputs_of(call).values())
    found, _ = mutants_oracle._of_call("newton_schulz", call, {"O": truth}, {"O": share * truth}, {"O": truth})  # fmt: skip
    assert found == verdict
