"""The champion against the start once more, on the test split and on seeds that chose nothing: this figure alone is reported as the gain.

What a keep claims was measured by the trials that chose it, and the lucky ones are chosen. So every EVERY keeps and at the end of a run
start and champion are trained anew, in turn, PAIRS times, and scored on documents that no selection has looked at. Each pair is in the
ledger as soon as it is done; a run that was stopped goes on with the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent import claims, surface
from agent.hours import Hours
from agent.judging import Unfit
from agent.machine import CORES, DEVICE
from agent.proposers import Workshop
from agent.records import Confirmation, Pair, Run
from agent.screen import duration
from agent.seeds import fresh
from agent.trials import Trials
from agent.workspace import Workspace

EVERY = 5  # keeps; to run the champion again takes six trials
PAIRS = 3  # with two, the interval is 3.6 times as wide; a fourth takes a third off it
SPLIT = "test"
# Trials of an experiment that is under way when the time is up: of a model, three of the candidate and three of the incumbent.
LAST = 6
TIMING_S = 20  # of one op; twice where the difference is small


class Champion:
    """Measures the incumbents of one run. `verify` raises if the judge is no longer the one that the run began with."""

    def __init__(
        self,
        run: Run,
        workshop: Workshop,
        *,
        workspace: Workspace,
        trials: Trials,
        hours: Hours,
        verify: Callable[[], None],
    ) -> None:
        self._run, self._start = run.id, run.start
        self._ledger, self._repository, self._judge = workshop.ledger, workshop.repository, workshop.judge  # fmt: skip
        self._screen, self._machine = workshop.screen, workshop.machine
        self._workspace, self._trials, self._hours = workspace, trials, hours
        self._verify = verify
        self._built: set[str] = set()  # commits

    def cost_s(self, incumbent: str) -> float:
        """About how long it takes to run this incumbent again."""
        return 2 * len(self._missing(incumbent)) * self._trials.typical_s()

    def aside_s(self, incumbent: str) -> float:
        """How long to set aside for it at the end of a run, with the experiment that is then under way."""
        cost = self.cost_s(incumbent)
        return cost + LAST * self._trials.typical_s() if cost else 0.0

    def keep(self, incumbent: str) -> None:
        """To be called when a keep has made this the incumbent: every EVERY keeps it is run again."""
        if self._keeps() % EVERY == 0:
            self.run_again(incumbent)

    def run_again(self, incumbent: str) -> None:
        """Bring the pairs of this incumbent to PAIRS, if there is time for it."""
        missing = self._missing(incumbent)
        if not missing:
            return
        cost, left = self.cost_s(incumbent), self._hours.left_s()
        what = f"{2 * len(missing)} trials, start and champion in turn on the test split, take about {duration(cost)}"
        if cost > left:
            self._screen.say(
                f"the gain is not measured: {what}, and {duration(max(0.0, left))} are left; "
                f"to measure it later: python -m agent report --rerun {self._run}"
            )
            return
        self._screen.say(f"the gain: {what}")
        if not self._ready(incumbent):
            return
        for place, seed in missing:
            trained = self._pair(incumbent, seed, start_first=place % 2 == 0)
            self._hours.tick()
            if not trained:
                return

    def time_again(self, incumbent: str) -> None:
        """Time each kernel that the run has changed once more, champion against start, with fresh inputs."""
        paths = [change.path for change in self._repository.changes(self._start, incumbent)]
        if not any(surface.is_kernel(path) for path in paths) or not self._ready(incumbent):
            return
        start, tree = self._workspace.checkout(self._start), self._workspace.checkout(incumbent)
        for op in surface.touched_ops(paths, tree, self._judge.ops()):
            self._screen.stage(f"measuring {op} again, champion against start", TIMING_S)
            try:
                with self._machine.hold(DEVICE):
                    found = self._judge.compare(op, start, tree)
            except Unfit as unfit:
                self._screen.say(f"  {op} could not be measured again: {unfit}")
                continue
            self._verify()
            confirmed = Confirmation(
                op, found.ratio, found.low, found.high, found.blocks, found.faster
            )
            self._ledger.measured.add_confirmation(self._run, incumbent, confirmed)
            self._hours.tick()

    def _ready(self, incumbent: str) -> bool:
        """Build start and champion; whether both build.

        What the cache lacks, a runner compiles for itself, in the time of its trial.
        """
        for what, commit in (("start", self._start), ("champion", incumbent)):
            if commit in self._built:
                continue
            self._screen.stage(f"building the {what}'s kernels")
            tree = self._workspace.checkout(commit)
            with self._machine.hold(CORES):
                built = self._judge.build(tree, surface.sources(tree))
            if not built.passed:
                said = f"the {what} does not build any more: {built.reason}"
                self._screen.say(f"  the gain is not known: {said}")
                return False
            self._built.add(commit)
        return True

    def _missing(self, incumbent: str) -> Sequence[tuple[int, int]]:
        """(place, seed) of the pairs yet to run; none if its files are those of the start, as when all keeps were taken out."""
        if self._workspace.tree_hash(incumbent) == self._workspace.tree_hash(self._start):
            return []
        done = {
            pair.seed
            for pair in self._ledger.measured.pairs(self._run)
            if pair.incumbent == incumbent and pair.judge == self._trials.scorer
        }
        seeds = enumerate(fresh(PAIRS, self._run, SPLIT, incumbent))
        return [(place, seed) for place, seed in seeds if seed not in done]

    def _pair(self, incumbent: str, seed: int, start_first: bool) -> bool:
        """Run one more pair, in an order that alternates so that a drift of the machine favours neither; whether both trained."""
        arms = [("start", self._start), ("champion", incumbent)]
        found = {}
        for what, commit in arms if start_first else reversed(arms):
            tree = self._workspace.checkout(commit)
            found[what] = self._trials.run(commit, tree, seed, what, SPLIT)
            if not found[what].ok:
                self._screen.say(f"  the gain is not known: the {what} failed when it was run again")  # fmt: skip
                return False
        self._verify()
        before, after = found["start"], found["champion"]
        pair = Pair(
            incumbent, self._keeps(), seed, before.val_bpb, after.val_bpb, before.tokens_per_second, after.tokens_per_second,
            self._trials.scorer,
        )  # fmt: skip
        self._ledger.measured.add_pair(self._run, pair)
        return True

    def _keeps(self) -> int:
        return len(claims.standing(self._ledger.history(self._run)))
