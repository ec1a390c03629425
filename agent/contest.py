"""Candidate against incumbent: paired trials, seed by seed, until there is a verdict, and what has to be true before a keep counts.

An old trial of the incumbent is run again before a candidate meets it, and before anything is kept if it was not run since: a machine that
has become faster in the meantime looks like a gain. If it has changed, all earlier trials are void and the pairs are run anew.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from agent import added_code, gains, gates, integrity, surface
from agent.judging import MachineFault
from agent.preparing import Prepared, gate_by_gate
from agent.records import CRASH, DROP, KEEP, REFUSE, GateResult, Outcome
from agent.site import Site
from agent.standard import Standard, timer_refuses
from bench.plan import BASELINES, ENOUGH_NOISE, MAX_PAIRS, RECHECK_S

if TYPE_CHECKING:
    from bench.trial_result import TrialResult
    from bench.verdict import Verdict


@dataclass(frozen=True)
class Tried:
    """Paired trials, those of the incumbent and those of the candidate, and their verdict."""

    incumbents: list[TrialResult]
    candidates: list[TrialResult]
    verdict: Verdict

    @property
    def kept(self) -> bool:
        return self.verdict.decision == "keep"

    @property
    def surprises(self) -> bool:
        """Whether the candidate came out better, kept or quarantined: a change of the machine may be why."""
        return self.verdict.decision in ("keep", "quarantine")


class Contest:
    """Decides the candidates of one run."""

    def __init__(self, site: Site) -> None:
        self.run_id, self.settings, self.shop = site.run.id, site.run.settings, site.shop
        self.judge, self.screen = site.shop.judge, site.shop.screen
        self.trials, self.tick = site.trials, site.hours.tick

    def decide(self, prepared: Prepared, asked: Standard, results: Sequence[GateResult]) -> Outcome:
        """The outcome of a candidate by the standard that is `asked` of it; `results` are those of the gates that timed it."""
        sealed = integrity.of_tree(prepared.candidate.tree)
        purpose = (self.run_id, prepared.proposer, prepared.candidate.patch)
        seeds = asked.seeds(self.settings.seed, MAX_PAIRS, *purpose)
        self._recheck(prepared, seeds[0], RECHECK_S)
        began, spent = time.time(), self.trials.seconds
        tried = self._pairs(prepared, asked, seeds, results)
        gained = isinstance(tried, Tried) and tried.surprises and self.trials.seconds > spent
        if gained and self._recheck(prepared, seeds[0], time.time() - began):
            tried = self._pairs(prepared, asked, seeds, results)
        if changed := sealed.changed():
            reason = f"{', '.join(changed[:5])} changed while it was trained"
            said = GateResult("trial", False, reason, {"changed": changed}, time.time() - began)
            self.shop.ledger.add_gate(prepared.experiment, said)
            self.screen.say(f"  trial refused: {reason}")
            return Outcome(REFUSE, f"trial: {reason}")
        if isinstance(tried, Outcome):
            return tried
        verdict, timer = tried.verdict, timer_refuses(results)
        reason = timer + verdict.reason
        said = GateResult("verdict", tried.kept, reason, verdict.evidence, time.time() - began)
        self.shop.ledger.add_gate(prepared.experiment, said)
        if tried.kept and verdict.flag:
            if refused := self._examined_again(prepared, verdict.flag):
                return Outcome(REFUSE, refused)
            reason += f"; flagged, and found correct again: {verdict.flag}"
        return Outcome(
            KEEP if tried.kept and not timer else DROP,
            reason,
            val_bpb=fmean(result.val_bpb for result in tried.candidates),
            peak_memory_mb=max(result.peak_memory_mb for result in tried.candidates),
            **gains.trained(
                tried.incumbents, tried.candidates, self.trials.noise(), self.trials.rate_noise()
            ),
        )

    def _pairs(
        self, prepared: Prepared, asked: Standard, seeds: Sequence[int], results: Sequence[GateResult]
    ) -> Tried | Outcome:  # fmt: skip
        """Train both seed by seed until the verdict is not "again"; an Outcome if the candidate does not train."""
        candidate = prepared.candidate
        kind = "kernels" if all(surface.is_kernel(path) for path in candidate.paths) else "model"
        added = added_code.added(candidate.changes)
        claim = gains.claim(results)
        incumbents: list[TrialResult] = []
        candidates: list[TrialResult] = []
        for seed in seeds:
            candidates.append(
                self.trials.result(prepared.commit, candidate.tree, seed, "candidate", own=True)
            )
            self.tick()
            if candidates[-1].failure in ("late", "crash"):  # a moment of the machine's may be why
                candidates[-1] = self.trials.run(
                    prepared.commit, candidate.tree, seed, "candidate once more"
                )
                self.tick()
            if not candidates[-1].ok:
                return Outcome(CRASH, f"trial: {candidates[-1].failure}: {candidates[-1].detail}")
            incumbents.append(self._incumbent_trial(prepared, seed))
            noise = self.trials.noise()
            verdict = asked.decide(
                self.judge, kind, claim, incumbents, candidates, noise, words=added
            )
            if verdict.decision != "again":
                break
            if kind == "model":
                self._learn_noise(prepared)
        return Tried(incumbents, candidates, verdict)

    def _incumbent_trial(self, prepared: Prepared, seed: int) -> TrialResult:
        """The incumbent's trial, tried twice. Raises MachineFault if it fails both times: it has trained before."""
        for _ in range(2):
            found = self.trials.result(
                prepared.parent,
                prepared.candidate.incumbent,
                seed,
                "incumbent",
                # the candidate's own trial lies between
                fresh_s=2 * RECHECK_S + self.settings.seconds,
            )
            if found.ok:
                return found
        raise MachineFault(
            f"the incumbent's own trial failed twice: {found.failure}: {found.detail}"
        )

    def _learn_noise(self, prepared: Prepared) -> None:
        """Train the incumbent on further seeds, once in a campaign, so that what looks promising can be told from luck."""
        first = self.settings.seed
        for seed in range(first, first + ENOUGH_NOISE + BASELINES):
            if self.trials.noise().degrees >= ENOUGH_NOISE:
                return
            tree = prepared.candidate.incumbent
            self.trials.result(prepared.parent, tree, seed, "incumbent, for the noise")
            self.tick()

    def _recheck(self, prepared: Prepared, seed: int, older_s: float) -> bool:
        """Whether the machine has changed since the incumbent's last trial, which is run again if it is older than `older_s`."""
        tree = prepared.candidate.incumbent
        said = self.trials.recheck(prepared.parent, tree, seed, older_s)
        self.tick()
        if said:
            self.screen.say(f"  the machine has changed: {said}; all trials from before are void")
        return bool(said)

    def _examined_again(self, prepared: Prepared, flag: str) -> str:
        """Put a kernel that gains more than it should through the correctness gate again, with drawn and captured data; why it refuses, or ""."""
        self.screen.say(f"  flagged: {flag}; to the correctness gate again")
        context = gates.Context(self.judge, self.settings.op)
        again = [("correctness", gates.correctness)]
        found = gate_by_gate(self.shop, prepared.experiment, prepared.candidate, context, again)
        return "" if found[-1].passed else f"correctness: {found[-1].reason} (asked again: {flag})"
