"""Trials, each measured once: the ledger remembers them, so an incumbent is not trained again for every candidate."""

from __future__ import annotations

import hashlib
import math
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent.machine import DEVICE
from agent.proposers import Workshop
from agent.records import KEEP, Run, TrialKey

if TYPE_CHECKING:
    from bench.interval import Spread
    from bench.trial_result import TrialResult

FRESH_S = 12 * 3600  # a machine's clock and load drift; older trials are measured again
RECENT = 20  # trials that say how long the next will take


class Trials:
    """The trials of one run. `key` is any key of the run; tree and seed are filled in."""

    def __init__(
        self, run: Run, shop: Workshop, key: TrialKey, tree_hash: Callable[[str], str]
    ) -> None:
        self._run, self._start, self._key, self._tree_hash = run.id, run.start, key, tree_hash
        self._measured, self._judge = shop.ledger.measured, shop.judge
        self._screen, self._machine = shop.screen, shop.machine
        # Who scores pairs of start and champion: the judge's sources, and this machine.
        scorer = f"{key.judge} {key.machine}".encode()
        self.scorer = hashlib.sha256(scorer).hexdigest()[:16]
        self.seconds = 0.0  # spent on trials so far; remembered ones take none
        # Trees that were asked for as incumbent, and what this run has kept in earlier lives.
        kept = (past for past in shop.ledger.history(run.id) if past.outcome.status == KEEP)
        self._stood = {tree_hash(past.commit) for past in kept}

    def result(
        self,
        commit: str,
        tree: Path,
        seed: int,
        what: str,
        *,
        own: bool = False,
        fresh_s: float = FRESH_S,
    ) -> TrialResult:
        """The trial of the files of `commit`, which lie in `tree`: remembered if it is younger than `fresh_s`, else run now.

        `own`: one of this run alone. A lucky trial of another run may be why these files are a candidate at all.
        """
        key = self._key_of(commit, seed)
        if not own:
            self._stood.add(key.tree)
        row = self._measured.find_trial(
            key, since=time.time() - fresh_s, run=self._run if own else None
        )
        return self._judge.revive(row) if row is not None else self.run(commit, tree, seed, what)

    def run(self, commit: str, tree: Path, seed: int, what: str, split: str = "val") -> TrialResult:
        """The trial of the files of `commit`, run now even if one is remembered."""
        key = replace(self._key_of(commit, seed), split=split)
        with self._machine.hold(DEVICE):
            self._screen.stage(f"{what}, seed {seed}: trial", key.seconds)
            started = time.monotonic()
            result = self._judge.trial(tree, seed, self._screen.progress, split)
            self.seconds += time.monotonic() - started
        self._measured.add_trial(self._run, key, result.as_json())
        if result.ok:
            said = f"{split}_bpb {result.val_bpb:.4f}, {result.tokens_per_second:,.0f} tokens/s, {result.num_steps:,} steps"
        else:
            said = f"failed: {result.failure}: {result.detail}"
        self._screen.say(f"  {what}, seed {seed}: {said}")
        return result

    def recheck(self, commit: str, tree: Path, seed: int, older_s: float) -> str:
        """Run a tree again if its last trial is older than `older_s`; how the machine has changed since, in words, or "".

        All trials from before such a change are void.
        """
        key, now = self._key_of(commit, seed), time.time()
        row = self._measured.find_trial(key, since=now - FRESH_S)
        young = self._measured.find_trial(key, since=now - older_s)
        if row is None or young is not None:
            return ""
        again = self.run(commit, tree, seed, "incumbent again")
        if not again.ok:  # it has trained before: one bad moment voids nothing
            again = self.run(commit, tree, seed, "incumbent once more")
        said = self._judge.drifted(self._judge.revive(row), again, self.noise())
        if said:
            self._measured.void_trials(key, before=now)
        return said

    def noise(self) -> Spread:
        """Spread of val_bpb from seed to seed, pooled over start and incumbents: a candidate may diverge on its third seed."""
        start = self._tree_hash(self._start)
        trees: dict[str, dict[int, float]] = defaultdict(dict)
        for row in self._measured.figures(self._key):
            if row["tree"] == start or row["tree"] in self._stood:
                trees[row["tree"]][row["seed"]] = row["val_bpb"]
        return self._judge.noise(trees, start)

    def standing(self, commit: str) -> str:
        """What the trials of these files have shown, in a sentence; "" before there are any."""
        tree = self._tree_hash(commit)
        rows = [row for row in self._measured.figures(self._key) if row["tree"] == tree]
        if not rows:
            return ""
        bpb, rate = (statistics.fmean(row[name] for row in rows) for name in ("val_bpb", "tokens_per_second"))  # fmt: skip
        return (
            f"The incumbent: val_bpb {bpb:.4f} (mean of {len(rows)}), {rate:,.0f} tokens/s, some {rate * self._key.seconds / 1e6:.2f} M tokens "
            f"a trial; noise of val_bpb from seed to seed: {self.noise()}."
        )

    def rate_noise(self) -> Spread:
        """Spread of the logarithm of tokens/s from run to run, pooled over every tree that was trained more than once."""
        from bench.interval import Spread

        groups: dict[str, list[float]] = defaultdict(list)
        for row in self._measured.figures(self._key):
            groups[row["tree"]].append(math.log(row["tokens_per_second"]))
        return Spread.pooled(list(groups.values()))

    def typical_s(self) -> float:
        """Seconds that a trial like those of this run takes in all, set-up and scoring included, by the last RECENT of any run."""
        took = self._measured.seconds(self._key, RECENT)
        return statistics.median(took) if took else self._key.seconds

    def _key_of(self, commit: str, seed: int) -> TrialKey:
        return replace(self._key, tree=self._tree_hash(commit), seed=seed)


def machine(device: str) -> str:
    """This machine, as far as figures depend on it: the host, what it computes on, with how many threads, and by which torch and Triton."""
    from bench import hardware
    from bench.identity import installed

    versions = ", ".join(f"{name} {installed(name)}" for name in ("torch", "triton"))
    return f"{platform.node()}/{hardware.name(device)}/{versions}"
