"""Plans come from the seed and the ledger, go where the profile says, explore on a plateau, and combine gains by merges that git makes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lab_tree import git, make, past, write

from agent.git import Repository
from agent.records import CRASH, DROP, KEEP, LOST, REFUSE, RUNNING, Outcome, Past
from agent.research import archive, search
from agent.research.search import COMBINE, EXPLORE, IMPROVE, Plan, explore_share, plan

OPS = ["scale", "norm", "loss"]
NORM = "".join(f"int line{n} = {n};\n" for n in range(20))
MODEL = "".join(f"LINE_{n} = {n}\n" for n in range(20))


def tried(number: int, status: str = DROP, **changed: object) -> Past:
    """A row; `speed` and `bpb` go into its outcome."""
    speed, bpb = changed.pop("speed", None), changed.pop("bpb", None)
    outcome = Outcome(
        status, "", speed=speed, val_bpb=None if bpb is None else 2.0 + bpb, bpb_change=bpb
    )
    about = {
        "run": "now",
        "paths": ("csrc/norm.cpp",),
        "parent": "0" * 40,
        "commit": f"{number:040x}",
        "outcome": outcome,
    }
    return past(number, **about | changed)


class Checkout:
    """A repository with norm.cpp and a model of 20 lines each, and experiments as commits on it."""

    def __init__(self, root: Path) -> None:
        make(root)
        write(root, {"csrc/norm.cpp": NORM, "model/gpt.py": MODEL})
        git(root, "add", "-A")
        git(root, "commit", "-qm", "norm")
        self.repository = Repository(root)
        self.base = self.repository.resolve("HEAD")

    def changed(
        self, number: int, lines: dict[int, str], *, parent: str = "", path: str = "csrc/norm.cpp",
        status: str = REFUSE, **figures: object,
    ) -> Past:  # fmt: skip
        parent = parent or self.base
        old = self.repository.read(parent, path).splitlines(keepends=True)
        text = "".join(f"{lines.get(n, line.rstrip())}\n" for n, line in enumerate(old))
        commit = self.repository.commit(parent, {path: text}, "x")
        gate = "microbench" if status == REFUSE else None
        return tried(number, status, commit=commit, parent=parent, paths=(path,), **{"refused_by": gate, **figures})  # fmt: skip

    def plan(self, history: list[Past], seed: int = 0, **asked: object) -> Plan:
        known = {"run": "now", "incumbent": self.base, "ops": OPS, "target": "kernels"} | asked
        return plan(history, seed=seed, repository=self.repository, **known)

    def combinations(self, history: list[Past], **asked: object) -> list[Plan]:
        found = (self.plan(history, seed, **asked) for seed in range(30))
        return [each for each in found if each.kind == COMBINE]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return Checkout(tmp_path_factory.mktemp("search") / "checkout")


@pytest.fixture(scope="module", autouse=True)
def remembered() -> Iterator[None]:
    """A merge of the same commits is the same: git is asked for it once, and not in each of thirty plans."""
    merged, known = archive.merged, {}

    def once(chosen: Sequence[Past], incumbent: str, repository: Repository) -> Any:
        asked = incumbent, tuple((past.parent, past.commit) for past in chosen)
        if asked not in known:
            known[asked] = merged(chosen, incumbent, repository)
        return known[asked]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "merged", once)
        yield


def test_two_near_misses_of_an_op_are_merged_on_the_incumbent(checkout: Checkout) -> None:
    history = [
        checkout.changed(1, {2: "int two = 2;"}, speed=0.99),
        checkout.changed(2, {15: "int fifteen = 15;"}, speed=0.97),
    ]
    found = checkout.combinations(history)
    assert 2 <= len(found) <= 15  # a quarter of thirty
    for each in found:
        assert sorted(each.parents) == [1, 2]
        assert each.op == "norm"
        text = each.files["csrc/norm.cpp"] or ""
        assert "int two = 2;" in text
        assert "int fifteen = 15;" in text
        assert text.count("\n") == 20
        assert "experiment 2 of run now (a near miss, 0.970x time)" in each.why


def test_changes_that_meet_are_not_combined(checkout: Checkout) -> None:
    history = [
        checkout.changed(1, {2: "int two = 2;"}, speed=0.99),
        checkout.changed(2, {2: "int zwei = 2;"}, speed=0.97),
    ]
    assert checkout.combinations(history) == []


def test_near_misses_of_different_ops_or_kinds_are_not_combined(checkout: Checkout) -> None:
    cpp = "csrc/scale.cpp"
    history = [
        checkout.changed(1, {2: "int two = 2;"}, speed=0.99),
        checkout.changed(2, {0: "// scaled"}, path=cpp, speed=0.97),
        checkout.changed(3, {4: "LINE_4 = 5"}, path="model/gpt.py", status=DROP, bpb=-0.001),
    ]
    assert checkout.combinations(history, target="all") == []


def test_two_near_misses_of_the_model_are_combined(checkout: Checkout) -> None:
    model = {"path": "model/gpt.py", "status": DROP}
    history = [
        checkout.changed(1, {2: "LINE_2 = 9"}, bpb=-0.001, **model),
        checkout.changed(2, {12: "LINE_12 = 9"}, bpb=-0.002, **model),
    ]
    found = checkout.combinations(history, target="model", ops=[])
    assert found
    assert {frozenset(each.parents) for each in found} == {frozenset({1, 2})}
    assert checkout.combinations(history, target="kernels") == []


def test_what_another_run_kept_is_brought_here_unless_it_is_here(checkout: Checkout) -> None:
    kept = checkout.changed(1, {2: "int two = 2;"}, status=KEEP, speed=0.8, run="then")
    found = checkout.combinations([kept])
    assert {each.parents for each in found} == {(1,)}
    assert "kept, 0.800x time" in found[0].why
    assert "int two = 2;" in (found[0].files["csrc/norm.cpp"] or "")
    assert checkout.combinations([kept], incumbent=kept.commit) == []
    ours = replace(kept, run="now")
    assert checkout.combinations([ours]) == []


def test_what_was_merged_by_other_means_is_not_brought_again(checkout: Checkout) -> None:
    kept = checkout.changed(1, {2: "int two = 2;"}, status=KEEP, speed=0.8, run="then")
    squashed = checkout.changed(2, {2: "int two = 2;", 9: "int nine = 9;"}, status=KEEP)
    assert checkout.combinations([kept], incumbent=squashed.commit) == []


def test_a_combination_is_tried_once_a_run(checkout: Checkout) -> None:
    history = [
        checkout.changed(1, {2: "int two = 2;"}, speed=0.99),
        checkout.changed(2, {15: "int fifteen = 15;"}, speed=0.97),
        tried(3, DROP, notes={"kind": COMBINE, "op": "norm", "parents": [2, 1]}),
    ]
    assert checkout.combinations(history) == []
    elsewhere = [*history[:2], replace(history[2], run="then")]
    assert checkout.combinations(elsewhere)
    interrupted = tried(3, LOST, notes=history[2].notes)
    assert checkout.combinations([*history[:2], interrupted])


def test_a_commit_that_git_has_pruned_is_no_parent(checkout: Checkout) -> None:
    gone = [tried(n, REFUSE, speed=0.9, refused_by="microbench") for n in (1, 2)]
    gone.append(tried(3, KEEP, speed=0.5, run="then"))
    for seed in range(12):
        found = checkout.plan(gone, seed)
        assert found.kind != COMBINE
        assert found.parents == ()


def test_a_near_miss_was_better_and_uncertain_and_nothing_else() -> None:
    near = archive.is_near_miss
    assert near(tried(1, REFUSE, speed=0.99, refused_by="microbench"))
    assert near(tried(1, DROP, bpb=-0.001, paths=("model/gpt.py",)))
    assert near(tried(1, DROP, speed=0.9))
    assert not near(tried(1, REFUSE, speed=1.01, refused_by="microbench"))
    assert not near(tried(1, REFUSE, speed=0.5, refused_by="parity"))
    assert not near(tried(1, REFUSE, speed=0.5))  # its files changed while it was trained
    assert not near(tried(1, DROP, speed=0.9, bpb=0.01))  # a worse model
    assert not near(tried(1, DROP, bpb=0.001, paths=("model/gpt.py",)))
    for status in (KEEP, CRASH, LOST, RUNNING):
        assert not near(tried(1, status, speed=0.9))


def test_a_gain_too_good_to_be_true_is_no_parent() -> None:
    model = ("model/gpt.py",)
    assert not archive.is_near_miss(tried(1, DROP, bpb=-0.5, paths=model))
    assert archive.is_near_miss(tried(1, DROP, bpb=-0.2, paths=model))


def test_the_archive_is_bounded_best_first_and_within_the_surface(checkout: Checkout) -> None:
    rows = [tried(n, REFUSE, speed=0.99 - n / 1e4, refused_by="microbench") for n in range(1, 500)]
    rows += [tried(900, DROP, bpb=-0.1, paths=("model/gpt.py",))]
    rows += [tried(901, REFUSE, speed=0.5, paths=("bench/verdict.py",), refused_by="microbench")]
    found = archive.members(rows, "now", checkout.base, checkout.repository, "kernels", None)
    assert [each.id for each in found] == list(range(499, 499 - archive.SIZE, -1))
    assert archive.members(rows, "now", checkout.base, checkout.repository, "kernels", "loss") == []


def test_keeps_of_other_runs_take_half_of_the_archive_at_most(checkout: Checkout) -> None:
    rows = [checkout.changed(n, {2: f"int k{n};"}, status=KEEP, speed=0.5, run="then") for n in range(1, 13)]  # fmt: skip
    rows += [tried(n, REFUSE, speed=0.99, refused_by="microbench") for n in range(100, 112)]
    found = archive.members(rows, "now", checkout.base, checkout.repository, "kernels", None)
    half = archive.SIZE // 2
    assert Counter(past.outcome.status for past in found) == {KEEP: half, REFUSE: half}


def test_where_the_best_never_merge_others_are_reached(checkout: Checkout) -> None:
    rows = [checkout.changed(n, {2: f"int x{n};"}, speed=0.5) for n in range(1, 9)]
    rows += [checkout.changed(n, {n: f"int y{n};"}, speed=0.99) for n in (10, 15)]
    assert checkout.combinations(rows)


def test_exploration_rises_on_a_plateau_from_a_sixth_to_three_fifths(checkout: Checkout) -> None:
    assert explore_share(0) == pytest.approx(0.15)
    assert explore_share(10) == pytest.approx(0.375)
    assert explore_share(1000) == pytest.approx(0.60)
    seen = []
    for dry in (0, 10, 60):
        history = [tried(0, KEEP), *(tried(n, CRASH) for n in range(1, dry + 1))]
        kinds = Counter(checkout.plan(history, seed).kind for seed in range(400))
        assert kinds[EXPLORE] / 400 == pytest.approx(explore_share(dry), abs=0.08)
        seen.append(kinds[EXPLORE])
    assert seen == sorted(seen)


def test_what_was_lost_or_still_runs_is_no_plateau() -> None:
    rows = [tried(1, KEEP), tried(2, DROP), tried(3, LOST), tried(4, RUNNING), tried(5, REFUSE)]
    assert search.since_keep(rows) == 2
    assert search.since_keep([]) == 0


def test_improvements_go_where_the_time_is(checkout: Checkout) -> None:
    shares = {"scale": 0.05, "norm": 0.70, "loss": 0.20}
    plans = [checkout.plan([], seed, shares=shares) for seed in range(300)]
    ops = Counter(each.op for each in plans if each.kind == IMPROVE)
    assert ops["norm"] > ops["loss"] > ops["scale"] > 0
    assert any("norm takes 70% of the step and was tried 0 times" in each.why for each in plans)


def test_an_op_that_was_tried_often_gives_way(checkout: Checkout) -> None:
    history = [tried(n, CRASH, paths=("kernels/norm.py",)) for n in range(40)]
    plans = [checkout.plan(history, seed) for seed in range(300)]
    ops = Counter(each.op for each in plans)
    assert 0 < ops["norm"] < min(ops["scale"], ops["loss"]) / 2
    explored = Counter(each.op for each in plans if each.kind == EXPLORE)
    assert explored["norm"] < 0.1 * explored.total()
    elsewhere = [replace(each, run="then") for each in history]
    fresh = Counter(checkout.plan(elsewhere, seed).op for seed in range(300))
    assert fresh["norm"] > ops["norm"]


def test_rows_without_files_count_for_the_op_that_they_were_about(checkout: Checkout) -> None:
    history = [tried(n, CRASH, paths=(), notes={"op": "norm"}) for n in range(40)]
    ops = Counter(checkout.plan(history, seed).op for seed in range(300))
    assert ops["norm"] < min(ops["scale"], ops["loss"]) / 2


def test_the_target_says_what_is_worked_on(checkout: Checkout) -> None:
    by_target = {
        target: {checkout.plan([], seed, target=target).op for seed in range(60)}
        for target in ("kernels", "model", "all")
    }
    assert by_target == {"kernels": {*OPS}, "model": {None}, "all": {*OPS, None}}
    only = {checkout.plan([], seed, ops=["loss"], op="loss").op for seed in range(20)}
    assert only == {"loss"}


def test_some_improvements_go_on_from_a_near_miss(checkout: Checkout) -> None:
    history = [checkout.changed(7, {2: "int two = 2;"}, speed=0.99)]
    plans = [checkout.plan(history, seed, ops=["norm"]) for seed in range(200)]
    improved = [each for each in plans if each.kind == IMPROVE]
    from_it = [each for each in improved if each.parents]
    assert len(from_it) / len(improved) == pytest.approx(search.PARENT_SHARE, abs=0.12)
    assert {each.parents for each in from_it} == {(7,)}
    assert "int two = 2;" in (from_it[0].files["csrc/norm.cpp"] or "")
    assert "goes on from experiment 7 of run now (a near miss, 0.990x time)" in from_it[0].why
    for each in plans:
        assert each.parents or not each.files


def test_a_start_that_was_used_gives_way_to_others(checkout: Checkout) -> None:
    history = [
        checkout.changed(1, {2: "int two = 2;"}, speed=0.97),
        checkout.changed(2, {2: "int zwei = 2;"}, speed=0.98),
        *(tried(n, DROP, notes={"kind": IMPROVE, "parents": [1]}) for n in range(3, 12)),
    ]
    fresh, used = (
        Counter(
            each.parents
            for seed in range(70)
            if (each := checkout.plan(rows, seed, ops=["norm"])).parents
        )
        for rows in (history[:2], history)
    )
    assert fresh[(1,)] > fresh[(2,)]
    assert used[(1,)] < used[(2,)]


def test_the_same_ledger_gives_the_same_plan_and_a_longer_one_another(checkout: Checkout) -> None:
    history = [tried(n, CRASH, paths=("csrc/scale.cpp",)) for n in range(30)]
    assert checkout.plan(history, 3) == checkout.plan(list(history), 3)
    assert len({checkout.plan(history[:n], 3).why for n in range(30)}) > 10
    assert all(checkout.plan(history[:n], 3).why for n in range(30))


def test_a_plan_on_3000_experiments_tries_few_merges(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    rows = []
    for n in range(3000):
        status = rng.choice([KEEP, DROP, REFUSE, CRASH])
        gate = "microbench" if status == REFUSE else None
        rows.append(tried(n, status, speed=rng.uniform(0.8, 1.2), refused_by=gate, run=f"r{n % 7}"))
    # Real ones, that conflict with each other, so that every merge is tried in vain.
    rows += [checkout.changed(n, {2: f"int x{n};"}, speed=0.5 - n / 1e6, run="then") for n in range(4000, 4010)]  # fmt: skip
    merged, tries = archive.merged, Counter[int]()

    def counted(*given: Any) -> Any:
        tries[seed] += 1
        return merged(*given)

    monkeypatch.setattr(archive, "merged", counted)
    for seed in range(16):
        checkout.plan(rows, seed)
    assert tries, "no plan tried a merge"
    # To combine, and to find a start. Git takes nearly all the time of a plan.
    assert max(tries.values()) <= 2 * search.MERGES


def test_what_waits_for_a_person_is_no_parent() -> None:
    found = tried(1, DROP, bpb=-0.05, paths=("model/gpt.py",))
    assert archive.is_near_miss(found)
    waits = replace(found.outcome, reason="quarantined: better on less than 25% of the tokens/s")
    assert not archive.is_near_miss(replace(found, outcome=waits))
