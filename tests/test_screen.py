"""What a person sees while the lab works: a line that moves on a terminal, plain lines in a log, and nothing that a candidate could forge."""

from __future__ import annotations

import errno
import io
import os
import select
import threading

import pytest

from agent.screen import Live, Plain, describe, duration


def test_a_log_gets_plain_lines_with_the_time() -> None:
    stream = io.StringIO()
    screen = Plain(stream)
    screen.stage("trial", 300)
    screen.progress({"phase": "training", "step": 10, "loss": 3.25, "tokens": 5000, "elapsed": 2.0})
    screen.say("kept")
    stage, said = stream.getvalue().splitlines()
    assert stage[8:] == " trial ... (about 5:00)"
    assert said[8:] == " kept"
    assert "\x1b" not in stream.getvalue()


def test_a_long_stage_of_a_log_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.screen.PLAIN_EVERY_S", 0.0)
    stream = io.StringIO()
    screen = Plain(stream)
    screen.stage("trial", 300)
    screen.progress(
        {"phase": "training", "step": 1200, "loss": 3.25, "tokens": 50_000, "elapsed": 10.0}
    )
    assert "trial: training  step 1,200  loss 3.250  5,000 tokens/s  4:50 left" in stream.getvalue()
    screen.progress({"phase": "scoring", "fraction": 0.5})
    assert stream.getvalue().splitlines()[-1].endswith("s left")
    screen.progress({"phase": "scoring", "fraction": 1.0})
    assert stream.getvalue().splitlines()[-1].endswith("trial: scoring")


def test_a_terminal_gets_one_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal:
        screen = Live(terminal)
        screen.stage("  microbench", 20)
        screen.progress({"loss": 3.0, "elapsed": 2.0})
        screen.say("experiment 1: [rows] 1 -> 4")
        screen.close()
        read = b""
        words = (b"experiment 1: [rows] 1 -> 4", b"microbench", b"18 s left  loss 3.000")
        # a read gives what has arrived by then
        while not all(w in read for w in words) and select.select([master], [], [], 10)[0]:
            read += os.read(master, 1 << 16)
    os.close(master)
    shown = read.decode()
    assert "experiment 1: [rows] 1 -> 4" in shown
    assert "microbench" in shown
    assert "18 s left  loss 3.000" in shown


@pytest.mark.parametrize(("screen", "code"), [(Plain, errno.EPIPE), (Live, errno.EIO)])
def test_a_night_outlives_whoever_listened(screen: type[Plain] | type[Live], code: int) -> None:
    """A pipe that nobody reads any more; a terminal that was closed."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(code, os.strerror(code))

    shown = screen(Gone())
    shown.stage("microbench", 20)
    shown.say("kept")
    shown.close()


def test_words_of_a_candidate_move_no_terminal() -> None:
    out = io.StringIO()
    Plain(out).say("slower\x1b[2J\x1b]0;title\x07\ud800 by half")
    assert out.getvalue().endswith("slower?[2J?]0;title?? by half\n")


@pytest.mark.parametrize("odd", ["1e9", [1], {}, True, float("nan"), 10**400, -(10**400)])
@pytest.mark.parametrize("screen", [Plain, Live])
def test_figures_of_a_candidate_that_are_none_end_no_trial(
    screen: type[Plain] | type[Live], odd: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.screen.PLAIN_EVERY_S", 0.0)
    shown = screen(io.StringIO())
    shown.stage("trial", 300)
    for name in ("fraction", "elapsed", "phase", "step", "loss", "tokens"):
        shown.progress({"elapsed": 2.0, "tokens": 10, name: odd})
    shown.close()
    assert describe({"step": odd, "loss": odd, "tokens": odd, "elapsed": odd}) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.26, "0.3 s"), (59.4, "59 s"), (187, "3:07"), (7509, "2:05:09")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
    assert describe({}) == ""


def test_a_slice_is_no_emoji() -> None:
    out = io.StringIO()
    shown = Live(out)
    shown.say("x[:m:2]")
    shown.close()
    assert "x[:m:2]" in out.getvalue()


def test_what_works_ahead_takes_no_stage_from_the_trial_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.screen.PLAIN_EVERY_S", 0.0)
    stream = io.StringIO()
    screen = Plain(stream)

    def ahead(stage: str) -> None:
        thread = threading.Thread(target=screen.stage, args=(stage,))
        thread.start()
        thread.join()

    ahead("  static")
    screen.stage("candidate, seed 0: trial", 300)
    ahead("  build")
    screen.progress({"phase": "training", "step": 3, "elapsed": 10.0})
    screen.stage("")
    ahead("  correctness")
    assert "candidate, seed 0: trial: training  step 3  4:50 left" in stream.getvalue()
    assert [word in stream.getvalue() for word in ("static", "build", "correctness")] == [True, False, True]  # fmt: skip


def test_a_stage_of_unknown_length_has_no_bar_of_the_one_before() -> None:
    shown = Live(io.StringIO())
    shown.stage("trial", 300)
    shown.progress({"fraction": 0.5})
    shown.stage("building the kernels")
    (task,) = shown._bar.tasks
    shown.close()
    assert (task.total, task.completed) == (None, 0)
