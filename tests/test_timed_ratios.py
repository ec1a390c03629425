"""What a comparison concludes from its rounds: the interval, the mix of shapes, the placebo, and what the gate makes of them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from agent import gates
from agent.judging import Bench, MachineFault
from bench import rounds, timing
from bench.conduct import Clocks
from bench.contracts import contract, ops
from bench.judge import Refused
from bench.process_scatter import deviations
from bench.ratio import Estimate, Statistic, both, estimate, fast, logs, stretches, typical
from bench.rounds import Measured, Spent
from bench.speed import CONFIDENCE, Comparison, bounds
from bench.timing import HOPE, _end

NEARLY = 0.9855  # of `measured`: a difference that is seen, and not surely
SHAPE = {"case": "x[2048, 192]", "calls": 6, "blocks": 60, "ratio": 1.0, "low": 0.98, "high": 1.02}
FOUND = Comparison(
    0.95, 0.93, 0.97, [SHAPE], 9.0, placebo={"ratio": 1.0, "low": 0.98, "high": 1.02}
)


def times(rng: np.random.Generator, rounds: int, lasting: float, ratio: float = 1.0) -> np.ndarray:
    """Logarithms of the times of three arms, of which the first is the candidate: what disturbs them adds to them, lasts, and is far off now and then."""
    found = rng.normal(0, 0.02, (3, rounds)) + rng.exponential(0.1, (3, rounds))
    found += 0.5 * rng.random((3, rounds)) * (rng.random((3, rounds)) < 0.1)
    for i in range(1, rounds):
        found[:, i] += lasting * found[:, i - 1]
    found[0] += np.log(ratio)
    return found


def parts(
    rng: np.random.Generator, processes: float, ratio: float = 1.0, number: int = 16
) -> list[list[np.ndarray]]:
    """Two cases in each part, whose processes lie `processes` apart (standard deviation of each)."""
    found = []
    for _ in range(number):
        apart = rng.normal(0, processes, (3, 1))
        found.append([times(rng, 20, 0.3, ratio) + apart for _ in range(2)])
    return found


@pytest.mark.parametrize("processes", [0.0, 0.03])
def test_the_interval_of_equal_kernels_misses_one_little_more_often_than_it_says(
    processes: float,
) -> None:
    """However much processes of one kernel differ: 6 to 8 % where 5 are meant."""
    rng, missed, comparisons = np.random.default_rng(1), 0, 400
    for _ in range(comparisons):
        low, high = estimate(parts(rng, processes), [2.0, 1.0], both).interval(0.95)
        missed += not low <= 1.0 <= high
    assert 0.02 < missed / comparisons < 0.10


def test_parts_that_are_cut_from_one_process_do_not_see_how_much_processes_differ() -> None:
    rng, missed = np.random.default_rng(4), 0
    for _ in range(100):
        one = times(rng, 240, 0.0) + rng.normal(0, 0.03, (3, 1))
        low, high = estimate(stretches(one), [1.0], both).interval(0.95)
        missed += not low <= 1.0 <= high
    assert missed > 20


def test_a_difference_of_five_percent_is_found_in_the_parts_of_one_comparison() -> None:
    rng = np.random.default_rng(2)
    found = [estimate(parts(rng, 0.01, 1.05), [1.0, 1.0], both) for _ in range(100)]
    assert sum(x.interval(CONFIDENCE)[0] > 1 for x in found) >= 95


def test_calls_at_twice_the_time_do_not_widen_the_interval_of_parts_of_three_rounds() -> None:
    rng, widths = np.random.default_rng(8), []
    for _ in range(100):
        late = np.log(2) * (rng.random((9, 3, 3)) < 0.1)
        found = [[part] for part in rng.normal(0, 0.02, (9, 3, 3)) + late]
        low, high = estimate(found, [1.0], both).interval(CONFIDENCE)
        widths.append(high / low)
    assert np.median(widths) < 1.08


def test_what_only_adds_to_a_time_moves_the_faster_half_less_than_the_middle() -> None:
    rng = np.random.default_rng(6)
    found = [times(rng, 60, 0.0) for _ in range(200)]
    assert np.std([fast(x) for x in found]) < 0.7 * np.std([typical(x) for x in found])


def test_a_shape_weighs_as_much_as_its_share_of_the_time() -> None:
    rng = np.random.default_rng(3)
    found = [[times(rng, 8, 0.0) * 1e-3 for _ in range(2)] for _ in range(16)]
    for slower, faster in found:
        slower[0] += np.log(1.10)
        faster[0] += np.log(0.90)
    assert estimate(found, [1.0, 1.0], both).ratio == pytest.approx(1.0, abs=2e-3)
    assert estimate(found, [3.0, 1.0], both).ratio == pytest.approx(1.05, abs=2e-3)


@pytest.mark.parametrize("statistic", [fast, typical, both])
def test_the_candidate_is_held_against_both_runners_of_the_incumbent(statistic: Statistic) -> None:
    samples = {"incumbent": [1.0] * 3, "placebo": [4.0] * 3, "candidate": [2.0, 2.0, 2.0]}
    found = statistic(logs(samples, "candidate", ("incumbent", "placebo")))
    assert float(np.exp(found)) == pytest.approx(1.0)


def test_a_wait_that_nobody_waited_for_is_no_time_saved() -> None:
    """In ms: of 2.7 the second thread waited 1.8 for its core, while the first did what only one can do; then a wait of the judge's."""
    before = Clocks(0.0, {1: (0, 0)}, 0)
    after = Clocks(3.4e-3, {1: (2_600_000, 0), 2: (800_000, 1_800_000)}, 0)
    assert Spent.of(2.7e-3, before, after, 2).own == pytest.approx(2.6e-3)
    after = Clocks(5.0e-3, {1: (2_500_000, 0), 2: (2_500_000, 0)}, 3_000_000)
    assert Spent.of(5.7e-3, before, after, 2).own == pytest.approx(2.7e-3)


def test_a_process_that_is_slower_than_the_others_is_seen_beyond_what_its_blocks_scatter() -> None:
    rng = np.random.default_rng(7)
    means = {"0": 1.0, "1": 1.0, "2": 1.06, "3": 1.0}
    samples = {name: list(mean * np.exp(rng.normal(0, 0.02, 200))) for name, mean in means.items()}
    found = deviations(samples)
    assert found[2].log > 10 * found[2].error
    assert np.exp(found[2].log) == pytest.approx(1.06, abs=0.005)


def test_hope_is_small_for_equal_kernels_and_large_for_a_difference_that_is_nearly_shown() -> None:
    assert Estimate(0.0, 0.01, 9.0).chance(CONFIDENCE, 2 / 3) < HOPE
    assert Estimate(-0.04, 0.01, 9.0).chance(CONFIDENCE, 1 / 3) > 0.8
    assert Estimate(0.04, 0.01, 9.0).chance(CONFIDENCE, 1 / 3) > 0.8


CASE = next(case for case in contract("rms_norm").trial["cpu"] if case.calls)
ARMS = [timing.Arm(name, Path(".")) for name in ("incumbent", "placebo", "candidate")]


def measured(
    candidate: float,
    incumbent: float = 1.0,
    placebo: float = 1.0,
    seed: int = 5,
    noise: float = 0.02,
) -> Measured:
    """Sixty rounds of one case in twelve parts, which scatter by `noise`; seconds a call of each arm."""
    rng = np.random.default_rng(seed)
    means = {"incumbent": incumbent, "placebo": placebo, "candidate": candidate}
    row = {name: list(mean * np.exp(rng.normal(0, noise, 60))) for name, mean in means.items()}
    found = replace(Measured.nothing(CASE, ARMS), row=row, wall=row, thread=row)
    return replace(found, parts=list(range(5, 61, 5)))


def test_where_the_incumbents_two_runners_differ_a_difference_of_that_size_is_none() -> None:
    low, high = bounds([measured(0.97)], CONFIDENCE)
    assert high < 1.0
    assert high / low < 1.05
    low, high = bounds([measured(0.95, 1.02, 0.94)], CONFIDENCE)
    assert low < 1.0 < high
    assert bounds([measured(0.80, 1.02, 0.94)], CONFIDENCE)[1] < 0.9


def test_what_all_parts_share_they_do_not_tell() -> None:
    """Equal kernels came out at 0.982 and 1.011 with errors of 0.2 to 0.4 %."""
    low, high = bounds([measured(0.992, noise=1e-4)], CONFIDENCE)
    assert low < 1.0 < high
    assert bounds([measured(0.985, noise=1e-4)], CONFIDENCE)[1] < 1.0


@pytest.mark.parametrize("other", ["typical", "wall"])
def test_a_gain_beyond_what_all_blocks_or_the_wall_clock_show_is_none(other: str) -> None:
    """A kernel that is fast in one block of three, and one whose own threads wait for each other."""
    assert FOUND.faster
    assert replace(FOUND, **{other: {"ratio": 0.98, "low": 0.96, "high": 1.0}}).faster
    assert not replace(FOUND, **{other: {"ratio": 1.0, "low": 0.98, "high": 1.02}}).faster


@pytest.mark.parametrize(
    ("ratio", "share", "said"),
    [
        (0.90, 0.35, "clear after 35% of the time"),
        (1.10, 0.60, "clear after 60% of the time"),
        (1.00, 0.35, ""),
        (0.996, 0.65, "hopeless after 65% of the time"),
        (NEARLY, 0.65, ""),
        (1.00, 1.05, "the time was used"),
        (NEARLY, 1.05, ""),
        (1.10, 1.40, "clear after 140% of the time"),
        (NEARLY, 2.01, "the time was used"),
    ],
)
def test_it_ends_where_the_answer_is_clear_or_will_not_come_and_goes_on_where_it_nearly_has(
    ratio: float, share: float, said: str
) -> None:
    assert _end([measured(ratio)], share) == said


def test_it_ends_at_a_look_and_goes_on_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a seventh of the time, of which five are the least: nobody looks before 5/7, or between that and the end."""
    now, looks = [0.0], []
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(timing, "_renew", lambda *_, **__: None)
    monkeypatch.setattr(timing, "PART_S", 0.0)

    def end(_: object, share: float) -> str:
        looks.append(round(7 * share))
        return "used" if share >= 2 else ""

    monkeypatch.setattr(timing, "_end", end)

    class Slow:
        found = measured(1.0)

        def round(self) -> None:
            now[0] += 1 / 21

        def end_part(self) -> None: ...

    runner = SimpleNamespace(judge=SimpleNamespace(device="cpu"))
    assert timing._run("rms_norm", [Slow()], [runner], 1.0) == "used"
    assert looks == [5, 7, 14]


def microbench(found: Comparison) -> tuple[bool, str]:
    judge = SimpleNamespace(compare=lambda *_: found, ops=lambda: ["rms_norm"])
    context = gates.Context(judge)
    tree = Path(__file__).parent.parent
    change = gates.Change("kernels/rms_norm.py", "100644", "100644", b"", b"x = 1")
    finding = gates.microbench(gates.Candidate("kernels", tree, tree, (change,), ""), context)
    return finding.passed, finding.reason


def test_the_gate_passes_a_gain_in_the_mix() -> None:
    assert microbench(FOUND)[0]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (replace(FOUND, low=0.90, high=1.01), "not faster"),
        (replace(FOUND, ratio=1.05, low=1.02, high=1.08), "slower"),
        (
            replace(FOUND, shapes=[SHAPE, SHAPE | {"ratio": 1.08, "low": 1.03, "high": 1.13}]),
            "slower on a shape that the model uses",
        ),
    ],
)
def test_the_gate_refuses(found: Comparison, said: str) -> None:
    passed, reason = microbench(found)
    assert not passed
    assert reason.startswith(said)


def test_a_shape_may_become_a_little_slower_for_what_the_others_win() -> None:
    assert microbench(replace(FOUND, shapes=[SHAPE | {"ratio": 1.04, "low": 1.01, "high": 1.07}]))[
        0
    ]


def test_calls_are_those_of_a_step_of_the_model() -> None:
    """What bench/step_profile.py counts in a real step is what the architecture says: an attention a layer, an added norm a layer."""
    from model.gpt import configure

    for device, length in (("cpu", 512), ("cuda", 2048)):
        config = configure(device, 8192, length)
        windows = config.windows
        for case in contract("attention").trial[device]:
            assert case.calls == windows.count(case.scalars["window"])
    assert all(any(c.calls for c in contract(op).trial[d]) for op in ops() for d in ("cpu", "cuda"))


def test_a_machine_that_cannot_time_is_no_fault_of_the_candidate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ways = iter(("device memory", "shared memory", "shared memory"))

    class Lending:
        def __init__(self, *_: object, **__: object) -> None:
            self.lends = next(ways)

        def __enter__(self) -> Lending:
            return self

        def __exit__(self, *_: object) -> None: ...

        def ask(self, do: str, **_: object) -> dict[str, object]:
            return {}

    monkeypatch.setattr(timing, "Judge", Lending)
    with pytest.raises(Refused, match="cannot be compared") as refused:
        with timing._started(ARMS, "cpu"):
            pass
    assert refused.value.kind == "machine"

    def compare(*_: object, **__: object) -> None:
        raise refused.value

    monkeypatch.setattr(timing, "compare", compare)
    with pytest.raises(MachineFault, match="cannot be compared"):
        Bench().compare("rms_norm", Path("a"), Path("b"))


def test_runners_that_draw_their_own_tensors_need_no_memory_lent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Lending:
        lends, tree = "shared memory", Path()

        def __init__(self, *_: object, memory: object = None, **__: object) -> None:
            self.memory = memory

        def __enter__(self) -> Lending:
            return self

        def __exit__(self, *_: object) -> None: ...

        def ask(self, do: str, **_: object) -> dict[str, object]:
            return {}

    monkeypatch.setattr(timing, "Judge", Lending)
    monkeypatch.setattr(timing.device_memory, "lendable", lambda device: object())
    with timing.runners_of("rms_norm", ARMS, "cuda", lent=False) as runners:
        assert [runner.judge.memory for runner in runners] == [None] * 3
    with pytest.raises(Refused, match="nothing can be timed"):
        with timing.runners_of("rms_norm", ARMS, "cuda"):
            pass


def test_a_first_round_longer_than_the_warm_up_does_not_choose_a_block_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rounds, "WARM_UP_S", 0.01)
    one = rounds.Rounds.__new__(rounds.Rounds)
    one.tables = [SimpleNamespace(arm=SimpleNamespace(name="a"))]
    one.contents = SimpleNamespace(sets=lambda: 64)

    def ask(calls: int) -> dict[str, SimpleNamespace]:
        time.sleep(0.02)
        return {"a": SimpleNamespace(own=1e-3 + 1e-4 * calls)}

    one._ask = ask
    one._choose_calls()
    assert one.calls > 30
