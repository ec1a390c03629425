"""How a runner behaves while it is measured: what it does when it is not asked, how many threads it uses, what it does to memory and to torch.

The judge reads all of it from /proc, but for torch's settings. Those the runner reports itself, and a lie about them gains nothing that the clock
or another figure here would not show.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bench.judge import Judge, Refused
from bench.sandbox import precedence, processes

# For import and first call: an honest autotuner needs seconds, torch.compile half a minute. What takes longer moves work out of the timed calls,
# and every trial pays for it. Libraries are built by an earlier gate, outside of this time.
COLD_LIMIT_S = 60.0
# Processor time that a runner may use while it is not asked, as a share of that time, and beside it: OpenMP's threads spin some 50 us after a
# block of 5 ms, and times come in steps of 10 ms.
IDLE_SHARE = 0.05
IDLE_SLACK_S = 0.15
THREADS_FACTOR = 1.25
# Where no thread worked longer since the last look, the runner was asked for nothing: all that ran was OpenMP's spinning, which does not tell
# which threads compute.
NO_CALL_NS = 1_000_000
# A trial has bounded memory, and a workspace of a few hundred MB is no trick: refused is what more than doubles the process.
MEMORY_FACTOR = 2.0
MEMORY_SLACK = 256 << 20


@dataclass(frozen=True)
class Clocks:
    """What the system has counted for a runner so far: its processor time in s, each thread's time on a core and waiting for one in ns, and how
    long the judge's thread, which waits for the answer, was ready to run while another had the core."""

    processors: float
    threads: Mapping[int, tuple[int, int]]
    waited_here: int

    def since(self, before: Clocks) -> tuple[float, float, float]:
        """Seconds since `before`: of the processors, waited by all threads together, and of the busiest thread on a core."""
        spent = [
            (on_core - before.threads.get(thread, (0, 0))[0], waited - before.threads.get(thread, (0, 0))[1])
            for thread, (on_core, waited) in self.threads.items()
        ]  # fmt: skip
        waited = self.waited_here - before.waited_here + sum(ns for _, ns in spent)
        longest = max((ns for ns, _ in spent), default=0)
        return self.processors - before.processors, 1e-9 * waited, 1e-9 * longest


@dataclass
class Conduct:
    """What is counted of one runner: its time and processor time within and between requests, its longest start, its memory, its threads."""

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
        # Other processes are those that the first life found: what one life leaves behind counts in all later ones.
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

    def give_cores(self) -> None:
        """Give a core to each thread that has worked since `begin` or since the last call of this, where the runner computes on a CPU."""
        now = self._on_core()
        worked = {t: used - self._used.get(t, 0) for t, used in now.items()}
        worked = {t: used for t, used in worked.items() if used}
        if self.judge.device == "cpu" and max(worked.values(), default=0) > NO_CALL_NS:
            self.spread = precedence.spread(worked)
        self._used = now

    def rest(self) -> None:
        """Add to the books what is new since `begin` or since the last call of this."""
        pids = self._tree()
        cpu, now = processes.cpu_seconds(pids), time.perf_counter()
        turn_cpu_s, turn_s = self.turn_cpu_s - self._turns[0], self.turn_s - self._turns[1]
        self.idle_cpu_s += cpu - self._cpu - turn_cpu_s
        self.idle_s += now - self._started - turn_s
        self._cpu, self._started, self._turns = cpu, now, (self.turn_cpu_s, self.turn_s)
        self._peak = max(self._peak, processes.peak_bytes(pids))

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Around a request: processor time used within it is for what was asked."""
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
                f"the {self.name} took {self.cold_s:.0f} s to import and make its first calls, where {COLD_LIMIT_S:.0f} s are allowed: "
                "move less work there",
            )

    def peak_bytes(self) -> int:
        """The largest memory of its processes so far."""
        return max(self._peak, processes.peak_bytes(self._tree()))


def no_memory_hog(incumbent: Conduct, candidate: Conduct) -> None:
    """Raises Refused where the candidate's memory grew far beyond the incumbent's."""
    usual, taken = incumbent.peak_bytes(), candidate.peak_bytes()
    if taken > MEMORY_FACTOR * usual + MEMORY_SLACK:
        raise Refused(
            "memory",
            f"the candidate took up to {taken >> 20} MB where the incumbent took {usual >> 20} MB: speed may not be bought with "
            "memory that grows; free what a call no longer needs",
        )
