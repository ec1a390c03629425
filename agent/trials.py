"""Trials, measured once: the ledger remembers them, so an incumbent is not trained again for every candidate."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.judging import Judging, as_row
from agent.ledger import Ledger
from agent.machine import DEVICE, Machine
from agent.records import TrialKey
from agent.screen import Screen

if TYPE_CHECKING:
    from bench.interval import Spread
    from bench.trial import TrialResult

FRESH_S = 12 * 3600  # a machine's clock and load drift; older trials are measured again


@dataclass(frozen=True)
class Figures:
    """What is known of a tree beside another, over the seeds that both were trained with."""

    seeds: int
    before_bpb: float
    after_bpb: float
    before_speed: float  # tokens/s
    after_speed: float


class Trials:
    """The trials of one run. `key` is any key of the run; tree and seed are filled in."""

    def __init__(
        self,
        ledger: Ledger,
        judge: Judging,
        screen: Screen,
        run: str,
        key: TrialKey,
        tree_hash: Callable[[str], str],
        machine: Machine,
    ) -> None:
        self._ledger, self._judge, self._screen, self._run = ledger, judge, screen, run
        self._key, self._tree_hash, self._machine = key, tree_hash, machine
        self._since = 0.0  # figures from before are void: the machine has changed
        self.seconds = 0.0  # spent on trials so far, those that were remembered left out

    def result(self, commit: str, tree: Path, seed: int, what: str) -> TrialResult:
        """The trial of the files of `commit`, which lie in `tree`: remembered if it is fresh, else run now."""
        key = replace(self._key, tree=self._tree_hash(commit), seed=seed)
        row = self._ledger.find_trial(key, since=self._fresh())
        return self._judge.revive(row) if row is not None else self._run_now(key, tree, what)

    def recheck(self, commit: str, tree: Path, seed: int, older_s: float, start: str) -> str:
        """Run a tree again if its last trial is older than that: in words, how the machine has changed since; "" if it has not.

        All figures from before such a change are void.
        """
        key = replace(self._key, tree=self._tree_hash(commit), seed=seed)
        now = time.time()
        row = self._ledger.find_trial(key, since=self._fresh())
        young = self._ledger.find_trial(key, since=max(now - older_s, self._since))
        if row is None or young is not None:
            return ""
        again = self._run_now(key, tree, "incumbent again")
        said = self._judge.drifted(self._judge.revive(row), again, self.noise(start))
        if said:
            self._since = now
        return said

    def _fresh(self) -> float:
        return max(self._since, time.time() - FRESH_S)

    def _run_now(self, key: TrialKey, tree: Path, what: str) -> TrialResult:
        seed = key.seed
        with self._machine.hold(DEVICE):
            self._screen.stage(f"{what}, seed {seed}: trial", key.seconds)
            started = time.monotonic()
            result = self._judge.trial(tree, seed, self._screen.progress)
            self.seconds += time.monotonic() - started
        self._ledger.add_trial(self._run, key, as_row(result))
        if result.ok:
            said = f"val_bpb {result.val_bpb:.4f}, {result.tokens_per_second:,.0f} tokens/s, {result.num_steps:,} steps"
        else:
            said = f"failed: {result.failure}: {result.detail}"
        self._screen.say(f"  {what}, seed {seed}: {said}")
        return result

    def noise(self, start: str) -> Spread:
        """Spread of val_bpb from seed to seed, pooled over every tree that was trained with several seeds; `start` is the commit that the run began with."""
        trees: dict[str, dict[int, float]] = defaultdict(dict)
        for tree, row in self._ledger.results(self._key, ("tree", "seed"), self._since):
            trees[tree][row["seed"]] = row["val_bpb"]
        return self._judge.noise(trees, self._tree_hash(start))

    def figures(self, before: str, after: str) -> Figures | None:
        """Both commits' means over the seeds they share; None if there is none."""
        old, new = self._by_seed(before), self._by_seed(after)
        shared = sorted(old.keys() & new.keys())
        if not shared:
            return None

        def mean(rows: Mapping[int, Mapping[str, Any]], name: str) -> float:
            return math.fsum(rows[seed][name] for seed in shared) / len(shared)

        return Figures(
            len(shared), mean(old, "val_bpb"), mean(new, "val_bpb"), mean(old, "tokens_per_second"), mean(new, "tokens_per_second")
        )  # fmt: skip

    def _by_seed(self, commit: str) -> dict[int, dict[str, Any]]:
        key = replace(self._key, tree=self._tree_hash(commit))
        return {row["seed"]: row for _, row in self._ledger.results(key)}


def judge_hash(bench: Path) -> str:
    """A hash of the judge's sources: figures of different judges are never compared."""
    digest = hashlib.sha256()
    for file in sorted(bench.rglob("*.py")):
        digest.update(str(file.relative_to(bench)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def machine() -> str:
    """This machine, as far as figures depend on it."""
    return f"{platform.node()}/{platform.machine()}/{os.cpu_count()}"
