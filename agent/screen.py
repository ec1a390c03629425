"""What a person sees while the lab works: a live line on a terminal, plain lines with their time in a pipe or a log file."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

PLAIN_EVERY_S = 10.0  # between two progress lines of one stage in a log
# The largest figure of an event that is believed, and the least part of a phase from which the time left is estimated.
MOST, LEAST = 1e15, 1e-6


class Screen(Protocol):
    def say(self, text: str) -> None:
        """A line that stays."""
        ...

    def stage(self, text: str, seconds: float | None = None) -> None:
        """Show what goes on from here, and how long it will take if that is known; an empty text while this thread waits.

        The stages of another thread than the one that opened the screen, which works ahead, are shown while that one waits.
        """
        ...

    def progress(self, event: Mapping[str, Any]) -> None:
        """How far the stage is: any of phase, loss, tokens, elapsed, step, fraction."""
        ...

    def close(self) -> None: ...


def open_screen(stream: TextIO) -> Screen:
    return Live(stream) if stream.isatty() else Plain(stream)


def describe(event: Mapping[str, Any]) -> str:
    """`step 120  loss 3.214  4,210 tokens/s`, as far as the event has them."""
    parts = [printable(str(event["phase"]))] if event.get("phase") else []
    step, loss, tokens, elapsed = (_figure(event, n) for n in ("step", "loss", "tokens", "elapsed"))
    if step is not None:
        parts.append(f"step {step:,.0f}")
    if loss is not None:
        parts.append(f"loss {loss:.3f}")
    if tokens and elapsed:
        parts.append(f"{tokens / elapsed:,.0f} tokens/s")
    return "  ".join(parts)


def _figure(event: Mapping[str, Any], name: str) -> float | None:
    """A figure of an event, None if it is no sane number: events come from the candidate's process, and none may end a trial."""
    value = event.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MOST:
        return None
    return float(value)


def printable(text: str) -> str:
    """The text without what a terminal would obey: candidates and models write some of these texts."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def duration(seconds: float) -> str:
    """`4.2 s`, `3:07` or `2:05:09`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def done(event: Mapping[str, Any]) -> float | None:
    """How much of its phase is done, 0 to 1, where the event says so."""
    fraction = _figure(event, "fraction")
    return None if fraction is None else min(1.0, max(0.0, fraction))


class Clock:
    """How long the stage has to go: from its known length, or from how much of the present phase is done."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._began = self._phase_began = time.monotonic()
        self._phase: object = None

    def left(self, event: Mapping[str, Any]) -> float | None:
        """Seconds, None where they are not known: at the end of a phase too, when what follows it is under way."""
        now = time.monotonic()
        if event.get("phase") != self._phase:
            self._phase, self._phase_began = event.get("phase"), now
        fraction, elapsed = done(event), _figure(event, "elapsed")
        if fraction is not None:
            passed = now - self._phase_began
            return passed / fraction - passed if LEAST < fraction < 1 else None
        passed = now - self._began if elapsed is None else elapsed
        return None if self.seconds is None else max(0.0, self.seconds - passed)


class Turns:
    """Whose stages are shown: those of the thread that opened the screen, and of one that works ahead while that one waits."""

    def __init__(self) -> None:
        self._owner, self._waits = threading.get_ident(), True

    def has(self, text: str) -> bool:
        """Whether the thread that calls may show this stage."""
        if threading.get_ident() != self._owner:
            return self._waits
        self._waits = not text
        return True


class Plain:
    """Timestamped lines; a stage that goes on says so every PLAIN_EVERY_S seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._stage = stream, ""
        self._turns = Turns()
        self._clock, self._spoke = Clock(), time.monotonic()

    def say(self, text: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        with contextlib.suppress(OSError):  # nobody listens any more; the night goes on
            for line in printable(text).splitlines() or [""]:
                print(f"{stamp} {line}".rstrip(), file=self._stream, flush=True)

    def stage(self, text: str, seconds: float | None = None) -> None:
        if not self._turns.has(text):
            return
        self._stage = text
        self._clock, self._spoke = Clock(seconds), time.monotonic()
        if not text:
            return
        self.say(
            f"{text} ..." + (f" (about {duration(seconds)})" if seconds and seconds >= 2 else "")
        )

    def progress(self, event: Mapping[str, Any]) -> None:
        left = self._clock.left(event)
        if time.monotonic() - self._spoke < PLAIN_EVERY_S:
            return
        self._spoke = time.monotonic()
        rest = f"  {duration(left)} left" if left is not None else ""
        self.say(f"  {self._stage.strip()}: {describe(event)}{rest}")

    def close(self) -> None:
        pass


class Live:
    """One line that moves: the stage, a bar where its length is known, time left, loss and tokens/s."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        # Without emoji, or the :m: in x[:m:2] would be one.
        self._console = Console(file=stream, highlight=False, emoji=False)
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False), console=self._console, transient=True, refresh_per_second=4,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=None, note="", visible=False)
        self._clock, self._turns = Clock(), Turns()
        self._bar.start()

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._console.print(printable(text), markup=False)

    def stage(self, text: str, seconds: float | None = None) -> None:
        if not self._turns.has(text):
            return
        self._clock, shown = Clock(seconds), bool(text)
        with contextlib.suppress(OSError):
            self._bar.tasks[0].total = seconds  # `reset` takes None for "as it was"
            self._bar.reset(self._task, description=printable(text), note="", visible=shown)

    def progress(self, event: Mapping[str, Any]) -> None:
        left = self._clock.left(event)
        rest = f"{duration(left)} left  " if left is not None else ""
        self._bar.update(self._task, note=f"{rest}{describe(event)}")
        if (fraction := done(event)) is not None:
            self._bar.update(self._task, total=1.0, completed=fraction)
        elif left is not None and self._clock.seconds is not None:
            self._bar.update(
                self._task, total=self._clock.seconds, completed=self._clock.seconds - left
            )

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._bar.stop()
