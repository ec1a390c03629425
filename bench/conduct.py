"""How a runner behaves while it is measured: what it does when it is not asked, how many threads it uses, what it does to memory and to torch.

All but torch's settings is read from /proc by the judge; those the runner reports itself, and a lie about them gains nothing that the clock or
another figure here would not show.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bench.judge import Judge, Refused
from bench.sandbox import precedence, processes

# Import and first call: an honest autotuner needs seconds, torch.compile half a minute. What takes longer moves work out of the clock, and is
# paid in every trial. Libraries are built by the gate before, off this clock.
COLD_LIMIT_S = 60.0
# Processor time of a runner that is not asked, as a share of that time. OpenMP's threads spin some 50 us after a block of 10 ms.
IDLE_SHARE = 0.05
IDLE_SLACK_S = 0.15  # times come in steps of 10 ms
THREADS_FACTOR = 1.25
# A runner whose threads all worked less was asked for nothing: the end of OpenMP's spinning says nothing of who computes.
NO_CALL_NS = 1_000_000
# A trial has bounded memory, and a few hundred MB of workspace are nobody's trick: refused is what more than doubles the process.
MEMORY_FACTOR = 2.0
MEMORY_SLACK = 256 << 20


@dataclass(frozen=True)
class Clocks:
    """What the system has counted of a runner by one moment: its processor time in s, each thread's time on a core and waiting for one in ns, and
    how long this thread, which waits for its answer, was ready to run and another had the core."""

    processors: float
    threads: Mapping[int, tuple[int, int]]
    waited_here: int

    def since(self, before: Clocks) -> tuple[float, float, float]:
        """Seconds of the processors, waited by any of the threads, and on a core of the one that was longest on it."""
        spent = [
            (on_core - before.threads.get(thread, (0, 0))[0], waited - before.threads.get(thread, (0, 0))[1])
            for thread, (on_core, waited) in self.threads.items()
        ]  # fmt: skip
        waited = self.waited_here - before.waited_here + sum(ns for _, ns in spent)
        longest = max((ns for ns, _ in spent), default=0)
        return self.processors - before.processors, 1e-9 * waited, 1e-9 * longest


@dataclass
class Conduct:
    """The books of one runner."""

    name: str
    judge: Judge
    cold_s: float = 0.0  # the longest of its processes
    turn_cpu_s: float = 0.0
    turn_s: float = 0.0
    idle_cpu_s: float = 0.0
    idle_s: float = 0.0
    first_in_line: bool = False  # before other work of the machine
    spread: bool = False  # over the cores, a thread each
    alike: bool = False  # its memory lies where that of every runner does
    _cold_s: float = 0.0
    _turns: tuple[float, float] = (0.0, 0.0)
    _peak: int = 0
    _others: frozenset[int] = frozenset()
    # ns of each thread, when it was last looked at
    _used: dict[int, int] = field(default_factory=dict)

    def live(self) -> None:
        """Have a process of its own answer from now on, which has imported nothing of the candidate's yet."""
        # As the first of its lives found them: what one leaves behind is counted in all that follow.
        self._others = self._others or frozenset(processes.tree(self.judge.pid))
        self.judge.ask("live")

    def leave(self) -> None:
        """End that process."""
        self.rest()
        self.judge.ask("leave")

    def load(self, op: str) -> None:
        """Import an op."""
        started = time.monotonic()
        self.judge.ask("load", op=op, tree=str(self.judge.tree))
        self._cold_s = time.monotonic() - started

    def begin(self) -> None:
        """Begin to count; what the runner did before belongs to its start."""
        self._pids = self._tree()
        self.first_in_line = precedence.take(self._pids)
        self.alike = all(map(processes.fixed_addresses, self._pids))
        self._cpu, self._started = processes.cpu_seconds(self._pids), time.perf_counter()
        self._turns = self.turn_cpu_s, self.turn_s
        self._used = self._on_core()

    def _on_core(self) -> dict[int, int]:
        return {thread: ns for thread, (ns, _) in processes.threads(self._pids).items()}

    def _tree(self) -> list[int]:
        """The process that answers and all that it started."""
        return [pid for pid in processes.tree(self.judge.pid) if pid not in self._others]

    def settle(self) -> None:
        """Give each thread that worked since it began, or since this was last called, a core, where the runner computes on them."""
        now = self._on_core()
        worked = {t: used - self._used.get(t, 0) for t, used in now.items()}
        worked = {t: used for t, used in worked.items() if used}
        if self.judge.device == "cpu" and max(worked.values(), default=0) > NO_CALL_NS:
            self.spread = precedence.spread(worked)
        self._used = now

    def rest(self) -> None:
        """Add to the books what is new since it began, or since this was last called."""
        pids = self._tree()
        cpu, now = processes.cpu_seconds(pids), time.perf_counter()
        turn_cpu_s, turn_s = self.turn_cpu_s - self._turns[0], self.turn_s - self._turns[1]
        self.idle_cpu_s += cpu - self._cpu - turn_cpu_s
        self.idle_s += now - self._started - turn_s
        self._cpu, self._started, self._turns = cpu, now, (self.turn_cpu_s, self.turn_s)
        self._peak = max(self._peak, processes.peak_bytes(pids))

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Around a request: processor time in here is what was asked for."""
        cpu, started = processes.cpu_seconds(self._pids), time.perf_counter()
        yield
        self.turn_s += time.perf_counter() - started
        self.turn_cpu_s += processes.cpu_seconds(self._pids) - cpu

    def clocks(self) -> Clocks:
        return Clocks(
            processes.thread_seconds(self._pids),
            processes.threads(self._pids),
            processes.waited_here(),
        )

    def end(self, threads: int) -> None:
        """Raises Refused for work outside of its turns, and for more threads than `threads` in them."""
        self.rest()
        if self.idle_cpu_s > IDLE_SHARE * self.idle_s + IDLE_SLACK_S:
            raise Refused(
                "background",
                f"the {self.name} used {self.idle_cpu_s:.2f} s of processor time in {self.idle_s:.2f} s in which it was asked for nothing: "
                "work has to be done within the call, and no thread or process may run on",
            )
        if self.turn_cpu_s > THREADS_FACTOR * threads * self.turn_s + IDLE_SLACK_S:
            raise Refused(
                "threads",
                f"the {self.name} used {self.turn_cpu_s / self.turn_s:.1f} processors where torch has {threads} thread(s): "
                "use torch's own number of threads (torch::stable::parallel_for)",
            )

    def unchanged(self) -> None:
        """Raises Refused where the op changed a setting of the whole process."""
        changed = self.judge.ask("state")["changed"]
        if changed:
            raise Refused(
                "global state",
                f"the {self.name} changed torch for everyone ({'; '.join(map(str, changed))[:500]}); leave it as it was found",
            )

    def first(self, seconds: float) -> None:
        """Add a first call to the time of starting. Raises Refused where that is too long."""
        self._cold_s += seconds
        self.cold_s = max(self.cold_s, self._cold_s)
        if self.cold_s > COLD_LIMIT_S:
            raise Refused(
                "cold start",
                f"the {self.name} took {self.cold_s:.0f} s to import and to answer first, {COLD_LIMIT_S:.0f} s are allowed: "
                "move less work there",
            )

    def peak_bytes(self) -> int:
        """Of the largest of its processes so far."""
        return max(self._peak, processes.peak_bytes(self._tree()))


def no_memory_hog(incumbent: Conduct, candidate: Conduct) -> None:
    """Raises Refused where the candidate's memory grew far beyond the incumbent's."""
    theirs, ours = incumbent.peak_bytes(), candidate.peak_bytes()
    if ours > MEMORY_FACTOR * theirs + MEMORY_SLACK:
        raise Refused(
            "memory",
            f"the candidate took up to {ours >> 20} MB where the incumbent took {theirs >> 20} MB: speed may not be bought with "
            "memory that grows; free what a call no longer needs",
        )
