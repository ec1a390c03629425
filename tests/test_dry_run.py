"""A night's estimate counts what it says it counts, takes the ledger's figures where there are enough, and asks nobody."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from lab_tree import write

from agent.dry_run import ends, estimate, what_is_left
from agent.dry_run.pace import ASSUMED, Pace, Stage, pace
from agent.dry_run.talk import CHARACTERS, Talk, conversation
from agent.lab import Lab, Unusable
from agent.ledger import Ledger
from agent.prices import Price
from agent.records import DROP, REFUSE, GateResult, Outcome, Proposal, Run, Settings, Usage

NIGHT = Settings(proposer="anthropic", models=("m",), prices=("m=2/10/0.2/2.5",), seconds=300.0)
PACE = Pace((Stage("scope", 1.0, 4.0, 0), Stage("trial", 0.25, 384.0, 0)), (50.0, 200.0, 400.0), True, 480.0, 240.0)  # fmt: skip


def figures(text: str, name: str) -> list[float]:
    """The figures of a row of the tables."""
    (row,) = re.findall(rf"^{re.escape(name)}  .*$", text, re.M)
    return [float(cell.replace(",", "")) for cell in re.findall(r"(?<=  )[\d,.]+(?=  |$)", row)]


def began(ledger: Ledger, settings: Settings, name: str = "before") -> None:
    ledger.start_run(Run(name, settings, "c", "c", "c", 0.0))


def ended(
    ledger: Ledger,
    seconds: Mapping[str, float],
    outcome: Outcome,
    model: str = "",
    run: str = "before",
    proposer: str = "sweep",
) -> None:
    """An experiment that went through these gates, the last of which refused it if the outcome says so."""
    number = ledger.open_experiment(run, Proposal("h", {}, proposer, model), "c", "c", "", "")
    for name in seconds:
        passed = outcome.status != REFUSE or name != [*seconds][-1]
        ledger.add_gate(number, GateResult(name, passed, "", {}, seconds[name]))
    ledger.close_experiment(number, outcome)


# ---- tokens and money


def test_a_request_reads_what_the_one_before_left_and_writes_what_is_new() -> None:
    used = conversation(prefix=1000, turns=3, output=100, answer=200, bound=10_000)
    assert used == Usage(input=0, output=300, cache_read=1000 + 1300, cache_write=1000 + 300 + 300)


def test_a_compacted_conversation_is_written_again_behind_its_prefix() -> None:
    used = conversation(prefix=1000, turns=3, output=100, answer=200, bound=1500)
    # The third request would have 1,600 tokens: it keeps the prefix, which is longer than half of the bound.
    assert used == Usage(output=300, cache_read=1000 + 1000, cache_write=1000 + 300)


def test_money_is_tokens_by_price_with_and_without_the_cache() -> None:
    usage = Usage(input=1_000, output=2_000, cache_read=300_000, cache_write=40_000)
    talk = Talk("m", (usage, usage, usage), Price(2.0, 10.0, 0.2, 2.5), 0)
    assert talk.usd(1) == pytest.approx(0.002 + 0.02 + 0.06 + 0.1)
    assert talk.uncached(1) == pytest.approx(341_000 * 2e-6 + 0.02)
    assert talk.tokens(1) == 343_000


def test_the_prefix_is_counted_as_it_would_be_sent(lab: Lab) -> None:
    before = figures(estimate(lab, NIGHT), "tokens written to it")
    write(lab.root, {"program.md": "x" * int(1000 * CHARACTERS)})
    after = figures(estimate(lab, NIGHT), "tokens written to it")
    grown = [b - a for a, b in zip(before[:2], after[:2], strict=True)]
    assert grown == pytest.approx([1000, 1000], abs=1)


def test_cases_are_in_order_and_the_cache_is_worth_its_price(lab: Lab) -> None:
    text = estimate(lab, replace(NIGHT, hours=8.0))
    usd, uncached = figures(text, "USD")[:3], figures(text, "USD if nothing were cached")
    assert usd == sorted(usd)
    assert all(cached < whole for cached, whole in zip(usd, uncached, strict=True))


def test_tokens_of_a_model_come_from_the_runs_that_asked_it_alone(lab: Lab) -> None:
    ledger = lab.ledger()
    for name, others in (("alone", ("m",)), ("mixed", ("m", "n"))):
        began(ledger, NIGHT, name)
        for i in range(12):
            ended(ledger, {}, Outcome(DROP, ""), others[i % len(others)], name)
            call = ledger.accounts.open_call(name, "m", 0, 0, 0.0)
            read = 50_000 if name == "alone" else 999_999
            ledger.accounts.close_call(call, Usage(10, 700, read, 8_000), 0.0)
    text = estimate(lab, NIGHT)
    assert "from: 12 in the ledger" in text
    assert figures(text, "tokens read from the cache")[:3] == [20_000, 50_000, 125_000]
    assert figures(text, "USD")[1] == pytest.approx(0.0371, abs=5e-4)  # by hand, at NIGHT's price


# ---- pace


def test_without_history_every_gate_is_assumed_and_says_so() -> None:
    stages = pace(NIGHT, "sweep", []).stages
    assert {stage.name: stage.seconds for stage in stages if stage.name in ASSUMED} == {
        name: seconds for name, (seconds, _) in ASSUMED.items()
    }
    assert all(stage.known == 0 for stage in stages)


def test_a_model_s_change_passes_the_gates_of_kernels_at_once() -> None:
    stages = {s.name: s for s in pace(replace(NIGHT, target="model"), "sweep", []).stages}
    assert stages["microbench"].seconds == 0
    assert stages["trial"].reached > 0.7


def test_gates_and_trials_come_from_the_ledger_where_it_has_enough(lab: Lab) -> None:
    ledger = lab.ledger()
    began(ledger, NIGHT)
    gates = dict.fromkeys(ASSUMED, 2.0) | {"build": 30.0}
    for _ in range(10):
        ended(ledger, {"scope": 1.0}, Outcome(REFUSE, ""))
        ended(ledger, gates, Outcome(DROP, "", device_seconds=700.0))
    known = {s.name: s for s in pace(NIGHT, "sweep", ledger.experiments()).stages}
    assert (known["scope"].reached, known["scope"].seconds, known["scope"].known) == (1.0, 1.5, 20)
    assert (known["build"].reached, known["build"].seconds, known["build"].known) == (0.5, 30.0, 10)
    assert (known["trial"].reached, known["trial"].seconds, known["trial"].known) == (0.5, 700.0, 10)  # fmt: skip
    assert "10 in the ledger" in estimate(lab, NIGHT)
    assert "10 in the ledger" not in estimate(lab, replace(NIGHT, seconds=60.0))


def test_who_thinks_ahead_waits_for_the_slower_of_the_two() -> None:
    assert PACE.judged == 100.0
    assert PACE.interval(50.0) == 100.0
    assert PACE.interval(400.0) == 400.0
    assert replace(PACE, ahead=False).interval(50.0) == 150.0


# ---- limits


@pytest.mark.parametrize(
    ("limits", "first", "experiments", "hours"),
    [
        ({"experiments": 10}, "--experiments 10", 10, 0.2 + 10 * 200 / 3600),
        ({"hours": 2.2}, "--hours 2.2", 36, 2.2),
        ({"gpu_hours": 1.2}, "--gpu-hours 1.2", 3600 / 96, 0.2 + 3600 / 96 * 200 / 3600),
        ({"usd": 3.0}, "--usd 3", 6, 0.2 + 6 * 200 / 3600),
        ({"tokens": 50_000}, "--tokens 50000", 5, 0.2 + 5 * 200 / 3600),
        ({"tokens": 2_000_000}, "--tokens 2000000", 200, 0.2 + 200 * 200 / 3600),
        ({"usd": 3.0, "hours": 2.2, "tokens": 50_000}, "--tokens 50000", 5, 0.2 + 5 * 200 / 3600),
        ({"hours": 0.1}, "--hours 0.1", 0, 0.2),
    ],
)
def test_the_limit_that_is_met_first_ends_the_night(
    limits: Mapping[str, float], first: str, experiments: float, hours: float
) -> None:
    found = ends(replace(NIGHT, **limits), PACE, interval=200.0, usd=0.5, tokens=10_000)  # type: ignore[arg-type]
    assert found[0].limit == first
    assert found[0].experiments == pytest.approx(experiments)
    assert found[0].hours == pytest.approx(hours)
    assert len(found) == len(limits)


def test_a_night_that_goes_on_has_what_is_left_of_its_limits(lab: Lab) -> None:
    ledger = lab.ledger()
    limits = replace(NIGHT, experiments=3, usd=10.0, tokens=1000, hours=8.0)
    began(ledger, limits)
    ended(ledger, {"scope": 1.0}, Outcome(REFUSE, "scope"))
    call = ledger.accounts.open_call("before", "m", 100, 100, 9.0)
    ledger.accounts.close_call(call, Usage(30, 20), 4.0)
    left = what_is_left(ledger, ledger.run("before"))
    assert (left.experiments, left.usd, left.tokens, left.hours) == (2, 6.0, 950, 8.0)
    assert left.gpu_hours is None


def test_a_free_proposer_meets_no_limit_of_money(lab: Lab) -> None:
    night = replace(NIGHT, proposer="sweep", models=(), usd=1.0, experiments=5)
    text = estimate(lab, night)
    assert "--experiments 5" in text
    assert "--usd" not in text
    endless = estimate(lab, replace(night, experiments=None))
    assert "Ctrl-C" in endless
    assert "USD in all" not in endless
    assert endless.endswith("sweep asks no model: a limit of money or tokens never ends it")


# ---- what it needs


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (replace(NIGHT, prices=()), "--price m=IN/OUT"),
        (replace(NIGHT, models=(), proposer="openai", base_url="http://x/v1"), "name it with --model"),
        (replace(NIGHT, proposer="nobody"), "--proposer nobody: expected one of"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_asked_for_in_one_line(
    lab: Lab, settings: Settings, words: str
) -> None:
    with pytest.raises(Unusable, match=words):
        estimate(lab, settings)


def test_a_command_s_cost_is_said_to_be_unknown(lab: Lab) -> None:
    settings = replace(NIGHT, proposer="command", command="agent", models=(), hours=8.0)
    assert "is not known before it says so" in estimate(lab, settings)


QUIET = """
import socket, sys
from pathlib import Path
def refuse(*args, **named): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
from agent.dry_run import estimate
from agent.lab import Lab
from agent.records import Settings
estimate(Lab(Path(sys.argv[1])), Settings(proposer="anthropic", hours=8.0))
heavy = {"torch", "anthropic", "httpx2", "optuna"} & set(sys.modules)
assert not heavy, heavy
"""


def test_nobody_is_asked_and_nothing_heavy_is_loaded(lab: Lab) -> None:
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", QUIET, str(lab.root)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_placebos_which_are_measured_to_the_end_say_nothing_of_a_night(lab: Lab) -> None:
    ledger = lab.ledger()
    began(ledger, NIGHT)
    outcome = Outcome(DROP, "", device_seconds=700.0)
    for _ in range(10):
        ended(ledger, dict.fromkeys(ASSUMED, 2.0), outcome, proposer="placebo")
    assert "10 in the ledger" not in estimate(lab, NIGHT)
