"""However the judging of an experiment ends, its row is closed, and no fault passes for a result."""

from __future__ import annotations

import errno
import sqlite3
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent import integrity
from agent.git import GitError
from agent.judging import MachineFault
from agent.ledger import Ledger
from agent.proposers import Stopped
from agent.records import CRASH, KEEP, LOST, UNFINISHED, Outcome

# In a row, of the judge, of a proposer or of git, after which the run ends: two may be one bad moment of the machine.
MAX_FAILURES = 3
# What a machine may be out of: space, memory, processes, open files.
LACKING = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)


class LoopError(RuntimeError):
    """The loop cannot go on: its start does not train, judge or proposer is broken, or the disk is full; the message says which."""


@dataclass
class Watched:
    """An experiment that is being judged: its outcome so far, and its commit, which a rebase moves."""

    ledger: Ledger
    experiment: int
    commit: str = ""
    outcome: Outcome = field(default_factory=lambda: Outcome(CRASH, "it was never judged"))

    def close(self, device_seconds: float = 0.0) -> Outcome:
        """Write the outcome; a keep moves the run's incumbent."""
        outcome = replace(self.outcome, device_seconds=device_seconds)
        self.ledger.close_experiment(
            self.experiment, outcome, self.commit if outcome.status == KEEP else None
        )
        return outcome


class Guard:
    """Watches over the experiments of one run."""

    def __init__(self, ledger: Ledger, folder: Path, seal: integrity.Seal) -> None:
        self._ledger, self._folder, self._seal = ledger, folder, seal
        self._failures: Counter[str] = Counter()  # in a row, by stage

    @contextmanager
    def watch(self, experiment: int, stage: str) -> Iterator[Watched]:
        """Judge the experiment inside; a candidate that trips the judge must neither end the night nor pass.

        Failures in a row are counted for each `stage`: where every trial fails, proposals still pass the first gates in between.
        """
        watched = Watched(self._ledger, experiment)
        try:
            yield watched
            self._failures[stage] = 0
        except (LoopError, Stopped) as ended:
            self._ledger.close_experiment(experiment, Outcome(LOST, str(ended) or "the run ended"))
            raise
        except KeyboardInterrupt:
            self._ledger.close_experiment(experiment, Outcome(LOST, "stopped by Ctrl-C"))
            raise
        # The boundary of an experiment: an error is the candidate's fault until it repeats. What the machine is out of never is, nor a MachineFault, nor
        # what git or the ledger cannot do.
        except Exception as error:
            try:
                self.verify()
            # the judge's files changed under it, as by a checkout of another branch
            except LoopError as ended:
                self._ledger.close_experiment(experiment, Outcome(LOST, str(ended)))
                raise ended from error
            lacking = isinstance(error, OSError) and error.errno in LACKING
            machine = lacking or isinstance(
                error, MachineFault | GitError | sqlite3.OperationalError
            )
            watched.outcome = self._failed(experiment, stage, error, LOST if machine else CRASH)

    @contextmanager
    def spare(self, say: Callable[[str], None]) -> Iterator[None]:
        """Measure the gain inside, which `report --rerun` can do later: an error is told by `say`, and does not end the run."""
        try:
            yield
        except LoopError:
            raise
        except Exception as error:
            log = self.log("the-gain", error)
            say(
                f"the gain is not measured to the end: {type(error).__name__}: {error}; see {log}; "
                f"to measure it later: python -m agent report --rerun {self._folder.name}"
            )

    def verify(self) -> None:
        """Raises LoopError if the judge's files have changed since the run was opened."""
        try:
            integrity.verify(self._seal)
        except integrity.Tampered as tampered:
            raise LoopError(
                f"{tampered}; only the experiment under way is lost: python -m agent --resume"
            ) from None

    def log(self, name: str, error: Exception) -> Path:
        """Write the traceback of an error into a file of the run; the file."""
        log = self._folder / f"error-{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)), errors="replace")
        return log

    def _failed(self, experiment: int, stage: str, error: Exception, status: str) -> Outcome:
        """The outcome to record. Raises LoopError at the MAX_FAILURES-th failure in a row: then the judge itself is broken."""
        self._failures[stage] += 1
        log = self.log(str(self._ledger.number(experiment)), error)
        outcome = Outcome(status, f"{UNFINISHED}: {type(error).__name__}: {error}; see {log}")
        if self._failures[stage] >= MAX_FAILURES:
            self._ledger.close_experiment(experiment, outcome)
            raise LoopError(
                f"the judge failed {self._failures[stage]} times in a row: {outcome.reason}; "
                "mend that, then python -m agent --resume"
            ) from error
        return outcome
