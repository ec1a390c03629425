"""A busy or absent server is waited for, as it asks or in growing steps, until it answers or the run is told to stop."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field

import pytest

from agent.proposers import Stopped
from agent.research.messages import ModelUnusable, Rejected, Transient
from agent.research.patience import LONGEST_ASKED_S, LONGEST_S, SAY_EVERY_S, Patience


@dataclass
class Hours:
    """A clock that moves when it is waited on, and says stop at a given time."""

    stop_at: float = float("inf")
    now: float = 0.0
    waits: list[float] = field(default_factory=list)

    def is_set(self) -> bool:
        return self.now >= self.stop_at

    def wait(self, timeout: float) -> bool:
        assert timeout > 0
        self.waits.append(timeout)
        self.now = min(self.now + timeout, max(self.stop_at, self.now))
        return self.is_set()

    def time(self) -> float:
        return self.now


class Server:
    """Fails as told, then answers."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.asked = list(failures), 0

    def __call__(self) -> str:
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        return "answer"


def patience(hours: Hours, lines: list[str] | None = None) -> Patience:
    said = [] if lines is None else lines
    return Patience(hours, said.append, random.Random(0), hours.time)


def test_an_answer_is_given_without_a_wait() -> None:
    hours, lines = Hours(), list[str]()
    assert patience(hours, lines).until_answered(Server()) == "answer"
    assert hours.waits == lines == []


@pytest.mark.parametrize("asked", [2.0, 45.0, 59.0])
def test_a_server_that_says_when_is_asked_then_and_hardly_later(asked: float) -> None:
    hours, server = Hours(), Server(Transient("429 too many requests", retry_after=asked))
    assert patience(hours).until_answered(server) == "answer"
    assert asked <= hours.now <= 1.1 * asked
    assert server.asked == 2


def test_steps_double_to_five_minutes_and_are_spread() -> None:
    waiting = patience(Hours())
    steps = [min(2.0**k, LONGEST_S) for k in range(14)]
    for failures, step in enumerate(steps):
        drawn = [waiting.pause(failures, None) for _ in range(50)]
        assert all(step / 2 <= each <= step for each in drawn)
        assert max(drawn) - min(drawn) > step / 4
    assert waiting.pause(10_000, None) <= LONGEST_S


@pytest.mark.parametrize("asked", [0.0, -5.0, float("nan"), float("inf")])
def test_a_senseless_retry_after_is_not_followed(asked: float) -> None:
    assert 0.5 <= patience(Hours()).pause(0, asked) <= 1.0


def test_a_server_that_asks_for_a_day_is_tried_after_an_hour() -> None:
    assert patience(Hours()).pause(0, 86_400.0) <= 1.1 * LONGEST_ASKED_S


def test_an_outage_of_a_night_is_outlived_and_told_once_a_minute() -> None:
    hours, lines = Hours(), list[str]()
    outage = [Transient("529 overloaded")] * 120
    assert patience(hours, lines).until_answered(Server(*outage)) == "answer"
    assert hours.now > 6 * 3600
    assert len(lines) <= 1 + hours.now / SAY_EVERY_S
    assert len(lines) > 0.9 * hours.now / SAY_EVERY_S
    assert lines[0] == "  529 overloaded; trying again in 1 s"
    assert "s so far)" in lines[-1]


def test_what_fails_for_too_long_is_given_up_so_that_another_model_may_be_asked() -> None:
    hours, outage = Hours(), Server(*[Transient("529 overloaded")] * 120)
    waiting = Patience(hours, [].append, random.Random(0), hours.time, longest_s=3600.0)
    with pytest.raises(ModelUnusable, match="529 overloaded, for 1:00:00"):
        waiting.until_answered(outage)
    assert 3600 < hours.now < 3600 + LONGEST_S


def test_stop_ends_a_wait_at_once_and_says_what_was_waited_for() -> None:
    hours = Hours(stop_at=1000.0)
    outage = Server(*[Transient("no connection", retry_after=400.0)] * 9)
    with pytest.raises(Stopped, match="while waiting: no connection"):
        patience(hours).until_answered(outage)
    assert hours.now == 1000.0
    assert outage.asked == 3


def test_stop_ends_a_real_wait_within_a_second() -> None:
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        Patience(stop, [].append).until_answered(Server(Transient("529", retry_after=600.0)))
    assert time.monotonic() - began < 60


def test_nothing_is_asked_once_the_run_has_stopped() -> None:
    server = Server()
    with pytest.raises(Stopped, match="told to stop"):
        patience(Hours(stop_at=0.0)).until_answered(server)
    assert server.asked == 0


def test_what_waiting_would_not_help_is_not_tried_again() -> None:
    server = Server(Rejected("400 prompt is too long"))
    with pytest.raises(Rejected, match="too long"):
        patience(Hours()).until_answered(server)
    assert server.asked == 1
