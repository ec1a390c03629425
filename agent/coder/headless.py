"""Runs a person's own program without a terminal until it ends, its time is over or the run stops; keeps what it prints, without secrets.

It runs with the person's rights and environment, because it needs a key of its own. This is no sandbox; what comes of it is judged like
any other proposal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.sandbox import linux, processes

MAX_LOG = 1 << 20  # bytes of a log; of what comes after them only the end is kept
# Bytes of the end that are given back: an agent may end with one long line of JSON.
MAX_TAIL = 1 << 18
BEHIND = 10  # in precedence: where all cores are busy, it gets a tenth of one
GRACE_S = 3.0  # between asking the processes to end and ending them
LOOK_S = 0.1
MARK = "LAB_HEADLESS"  # in the environment of all that a program starts, by which it is found
LOOKS = 3  # for what still runs: while one is ended, another may be started
_SECRET_NAMES = ("KEY", "TOKEN", "SECRET")
_MIN_SECRET = 8  # characters; a shorter value is a switch or a number, which occurs in any text


@dataclass(frozen=True)
class Ended:
    """How a program ended. `stopped`: why it was ended before it was done; empty if it was not."""

    status: int
    tail: str
    stopped: str = ""


class Secrets:
    """The values of the environment's variables with KEY, TOKEN or SECRET in their names."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        named = {
            os.fsencode(value): f"[{name}]".encode()
            for name, value in environment.items()
            if len(value) >= _MIN_SECRET and any(word in name.upper() for word in _SECRET_NAMES)
        }
        # The longest first: one value may be the beginning of another.
        self._named = sorted(named.items(), key=lambda pair: -len(pair[0]))
        self.longest = max((len(value) for value in named), default=0)

    def scrub(self, text: bytes) -> bytes:
        """The text with each value replaced by the name of its variable."""
        for value, name in self._named:
            text = text.replace(value, name)
        return text

    def named_in(self, text: str) -> list[str]:
        """Names of the variables whose values occur in the text."""
        return [name.decode()[1:-1] for value, name in self._named if value in text.encode()]


class Log:
    """Writes output as it comes into a file of bounded size, and keeps a bounded tail."""

    def __init__(self, file: Path, secrets: Secrets) -> None:
        self._file, self._secrets = file, secrets
        self._held, self._tail, self._written = b"", b"", 0
        self._lock = threading.Lock()

    def follow(self, pipe: IO[bytes]) -> None:
        """Read until the pipe ends, even if the disk is full: a program whose output nobody reads waits for ever."""
        with self._file.open("wb", buffering=0) as file:
            while piece := os.read(pipe.fileno(), 1 << 16):
                self._take(file, piece)

    def _take(self, file: IO[bytes], piece: bytes) -> None:
        scrubbed = self._secrets.scrub(self._held + piece)
        # A secret may be cut by the end of what has come so far.
        safe = len(scrubbed) - max(0, self._secrets.longest - 1)
        with self._lock:
            ready, self._held = scrubbed[: max(0, safe)], scrubbed[max(0, safe) :]
            self._tail = (self._tail + ready)[-MAX_TAIL:]
        with suppress(OSError):
            file.write(ready[: max(0, MAX_LOG - self._written)])
        self._written += len(ready)

    def finish(self) -> str:
        """Write what was held back, and the end of what was left out; returns the tail."""
        with self._lock:
            rest = self._secrets.scrub(self._held)
            tail = (self._tail + rest)[-MAX_TAIL:]
        # on a full disk too, its last words say what it cost
        with suppress(OSError), self._file.open("ab") as file:
            if self._written + len(rest) > MAX_LOG:
                file.write(f"\n[... the end of {self._written:,} bytes:]\n".encode() + tail)
            else:
                file.write(rest)
        return tail.decode(errors="replace")


def run(
    arguments: Sequence[str],
    *,
    folder: Path,
    prompt: Path,
    log: Path,
    seconds: float,
    stop: threading.Event,
    environment: Mapping[str, str] = os.environ,
) -> Ended:
    """Run the program in `folder` with `prompt` on its standard input, for at most `seconds`; then end it and all that it started.

    Raises OSError where there is no such program.
    """
    kept = Log(log, Secrets(environment))
    # Git's variables may name another repository.
    without_git = {k: v for k, v in environment.items() if not k.startswith("GIT_")}
    mark = f"{folder}:{uuid.uuid4().hex}"
    with prompt.open("rb") as text:
        process = subprocess.Popen(
            arguments, cwd=folder, stdin=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=without_git | {MARK: mark},
            start_new_session=True, preexec_fn=_before_exec,
        )  # fmt: skip
    assert process.stdout is not None
    reader = threading.Thread(target=kept.follow, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        stopped = _wait(process, time.monotonic() + seconds, stop)
    finally:
        _end(process, mark)
        # What left its group and its tree may hold the pipe open for ever.
        reader.join(GRACE_S)
    if not reader.is_alive():
        process.stdout.close()
    return Ended(process.returncode, kept.finish(), stopped)


def _wait(process: subprocess.Popen[bytes], deadline: float, stop: threading.Event) -> str:
    """Wait until the program is done, without reaping it, so that the number of its group stays its own; why it is to be ended, or ""."""
    began = time.monotonic()
    while not _done(process):
        if time.monotonic() > deadline:
            return f"it took longer than {time.monotonic() - began:.0f} s"
        if stop.wait(LOOK_S):
            return "the run was stopped"
    return ""


def _done(process: subprocess.Popen[bytes]) -> bool:
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """End the group, and what has left it: agents start shells in sessions of their own, which may outlive them."""
    known = processes.descendants(process.pid)
    _signal_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while not _done(process) and time.monotonic() < deadline:
        time.sleep(LOOK_S / 10)
    known += processes.descendants(process.pid)
    _signal_group(process.pid, signal.SIGKILL)
    for _ in range(LOOKS):
        for pid in {*known, *_marked(mark)}:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        known = []
    process.wait()


def _marked(mark: str) -> set[int]:
    """Processes whose mark begins so; what may not be read is another user's."""
    wanted = os.fsencode(f"{MARK}={mark}")
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                variables = (entry / "environ").read_bytes().split(b"\0")
                if any(each.startswith(wanted) for each in variables):
                    found.add(int(entry.name))
    return found


def end_leftovers(lab: Path) -> int:
    """End what programs of killed loops left running, by the mark on all of it; how many processes. To be called under `lock`."""
    found = _marked(f"{lab}/")
    for pid in found:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return  # all of it has ended


def _before_exec() -> None:
    """In the child, before the program starts: it will end when the loop does, even if that is killed, and give way to a trial that is timed beside it.

    What it starts in a session of its own may still compete with the trial for cores.
    """
    linux.prctl(linux.SET_PDEATHSIG, signal.SIGKILL)
    os.setpriority(os.PRIO_PROCESS, 0, BEHIND)
    # where the kernel shares cores out between sessions first (bench/sandbox/precedence.py)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(BEHIND))
