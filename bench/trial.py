"""The trial: a fixed wall-clock time of training, and what it proves.

1. Set-up, off the clock and capped: the runner imports the model, builds, compiles and warms up on random tokens. No text is readable yet. Where it
   takes longer than a small allowance, only what it compiled is kept: a new runner sets up with that, and what it takes beyond the allowance is
   taken from the training. Then the model, which has learned nothing, is asked a few rows: it must be guessing.
2. The bell: the judge hands over the training shard (a descriptor; its tokens renumbered, bench/shard.py), the seed and the seconds, and its own
   clock starts. The order in which a model reads the shard is its own affair: all have the same shard, and the time is the budget.
3. Time's up: a later answer is refused, and so are weights that come later than copying them explains. They must be the same, bit for bit, when
   all is done, and the runner must not have worked meanwhile.
4. Score (bench/scoring.py): a second runner, started before the bell and idle since, gets the weights and maps rows to logits.
5. The kernels that trained must have run, and calls that training made of them, at moments drawn by chance, must be right (bench/witness.py). They
   are also examined again in the process where they trained.
"""

from __future__ import annotations

import functools
import math
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import contracts, scoring, shard, trial_claims, witness
from bench.compiled import Compiled
from bench.data import Dataset
from bench.examination import Examination
from bench.judge import COMPILED, Judge, Progress, Refused
from bench.roofline import peak_flops
from bench.sandbox import processes
from bench.scoring import SEQUENCE, Exam
from bench.trial_claims import Described, Trained
from bench.trial_result import TrialResult, classify

# A tree's first set-up compiles the model and its kernels; what it has compiled is kept (bench/compiled.py). Under torch.compile the first takes 41 s on
# a CPU and the next 12. On a GPU not yet measured.
SETUP_LIMIT_S = {"cpu": 240.0, "cuda": 900.0}
# Set-up time that is free. A model could train in it, on puzzles of its own in place of text: so the time beyond it is taken from the training.
SETUP_FREE_S = {"cpu": 20.0, "cuda": 60.0}
GRACE_S = 0.5  # for the answer to travel; training itself must end in its time
# Time, and processor time of the runner, that handing over the weights may take beside the copying itself: the model's own code runs then.
TAKEN_S, TAKEN_CPU_S, COPIED_BYTES_S = 2.0, 0.3, 250e6
# Processor time allowed to the scorer: so many times what training took per token, and a fixed slack.
SCORED_TIMES, SCORED_SLACK_S = 1.0, 20.0
# Processor time allowed to the trainer from handing over its weights to its first answer that is compared: so many times what the scorer took per
# token, and a fixed slack.
LOOKED_TIMES, LOOKED_SLACK_S = 2.0, 10.0
COPYING_FREE_S = 1.0  # for 250 MB of weights; what more of them may take is taken from the training
GUESSED_ROWS, MEASURED_ROWS = 4, 8  # before any training, and of the shard after it
# Processor time that a runner may use between the end of its training and the last score, and as a share of that time. Where it uses a tick
# or two, it is watched for LOOK_S at least.
IDLE_S, IDLE_SHARE, LOOK_S = 0.1, 0.1, 0.5
# Share of the training's length that asking rows again with another future may take.
PROBE_SHARE = 0.03
# A trial of at least this length is followed by checks of every op with its gradients; after a shorter one only one op, drawn at random, has
# its gradients checked.
LONG_S = 60.0
MOMENTS = {"cpu": 2, "cuda": 1}  # at which a call of an op is kept in a long training
# For scoring, with the length of the training added: bounds what a model may do per row, not how busy the machine is.
SCORING_S = 300.0
# Below this no language model of this size is honest.
FLOOR_BPB = 0.4


def run_trial(
    tree: Path,
    dataset: Dataset,
    *,
    seconds: float,
    seed: int,
    device: str,
    split: str = "val",
    impl: Mapping[str, str] | None = None,
    compiled: bool | None = None,
    size: str | None = None,
    steps: int | None = None,
    score: bool = True,
    progress: Progress | None = None,
    turn: AbstractContextManager[object] | None = None,
) -> TrialResult:
    """Train the model of `tree` for `seconds` (or exactly `steps` steps within them) and score it on `split`.

    `impl`, `compiled` and `size` are those of `specification`. `turn`, if any, is held while it trains.
    """
    started = time.monotonic()
    trial = _Trial(dataset, seconds, seed, device, progress or (lambda _: None))
    ok, failure, detail = True, "", ""
    try:
        with ExitStack() as runners:
            trainers = runners.enter_context(ExitStack())
            trainer = trainers.enter_context(Judge(tree, device=device))
            scorer = runners.enter_context(Judge(tree, device=device)) if score else None
            trial.known["isolation"] = trainer.isolation
            spec = specification(
                dataset.vocab_size, dataset.bos, device, seconds, impl, compiled, size
            )
            taken = trial.set_up(trainer, scorer, spec)
            if taken > SETUP_FREE_S[device]:
                trainers.close()
                trainer = trainers.enter_context(Judge(tree, device=device))
                taken = trial.set_up(trainer, None, spec)
            trial.begin(trainer, taken, "val" if split == "test" else "test")
            with turn or nullcontext():
                weights = trial.train(trainer, steps, watched=score)
            if scorer is not None:
                trial.score(trainer, scorer, weights, split)
                trial.known["witnessed"] = witness.require_right(trainer, trial.kept, trial.moments)
                trial.examine_kernels(trainer)
    except Refused as refused:
        ok, failure, detail = False, classify(refused), str(refused)[-4000:]
    total = time.monotonic() - started
    return TrialResult(ok, failure, detail, total_seconds=total, **trial.known)


def specification(
    vocab_size: int,
    bos: int,
    device: str,
    seconds: float,
    impl: Mapping[str, str] | None = None,
    compiled: bool | None = None,
    size: str | None = None,
) -> dict[str, Any]:
    """What `model.train.Trainer` is built from.

    impl: implementations by op, in place of the device's choice. compiled: whether torch.compile takes forward and backward of the model as
    a whole, in place of the model's choice. size: one that the model knows by name, in place of the device's.
    """
    return {
        "vocab_size": vocab_size,
        "bos": bos,
        "sequence_length": SEQUENCE[device],
        "device": device,
        "seconds": seconds,
        "impl": dict(impl) if impl else None,
        "compiled": compiled,
        "size": size,
    }


class _Trial:
    """The course of one trial; `known` fills with the figures of its result."""

    def __init__(
        self, dataset: Dataset, seconds: float, seed: int, device: str, tell: Progress
    ) -> None:
        self.dataset, self.seconds, self.seed, self.device = dataset, seconds, seed, device
        self.long = seconds >= LONG_S  # as it was asked for: set-up may take some of `seconds`
        self.tell = tell
        self.number = shard.numbers(dataset.vocab_size, dataset.bos, seed)
        self.known: dict[str, Any] = {"seed": seed}
        self.described: Described
        self.moments: dict[str, int] = {}  # how many calls of each op are kept while it trains
        self.kept: Any = None  # what the runner says of these
        self.handed = 0.0  # processor time of the trainer when it had handed over its weights

    def set_up(self, trainer: Judge, scorer: Judge | None, spec: dict[str, Any]) -> float:
        """Bring the runners up, warm up the trainer's model, and keep what that compiled; the seconds that it took."""
        self.tell({"phase": "set-up"})
        self.spec = spec
        compiled = Compiled.of(trainer.tree, spec, COMPILED)
        for judge in filter(None, (trainer, scorer)):
            compiled.bring(judge)  # before anything of the candidate's is there
            judge.ask("load", tree=str(judge.tree))
        trainer.arena.reset()
        warm_up = trainer.arena.place("int32", (4 * SEQUENCE[self.device] * 256,))
        noise = torch.randint(0, self.dataset.vocab_size, tuple(warm_up["shape"]))
        trainer.arena.view(warm_up).copy_(noise)
        started = time.monotonic()
        limit = SETUP_LIMIT_S[self.device]
        self.ops = contracts.written(trainer.tree)
        watched = witness.updates(self.ops)
        answer = trainer.ask("setup", timeout=limit, spec=self.spec, ops=watched, warm_up=warm_up)
        taken = time.monotonic() - started
        compiled.take(trainer)  # before the first word of a text
        self.described = trial_claims.read(Described, answer.get("describe"))
        self.state_bytes = trial_claims.state_bytes(answer)
        self.known.update(
            setup_seconds=self.known.get("setup_seconds", 0.0) + taken,
            num_params_M=self.described.num_params / 1e6,
            depth=self.described.depth,
            implementations=self.described.implementations,
        )
        return taken

    def begin(self, trainer: Judge, taken: float, unread: str = "test") -> None:
        """Check that the untrained model is guessing, and shorten the training by what set-up and copying the weights take beyond their allowances.

        taken: seconds of set-up, in which the model's own code ran, as it runs while weights are copied. unread: a split that this trial does not use
        otherwise: rows of the training shard, asked here under other numbers than there, would tell the model the numbers of most of the text.
        """
        # In the data set's own numbers, which a table or a checkpoint from elsewhere would use. It counts as set-up too: the model's code answers.
        asked = time.monotonic()
        loss = self.loss(trainer, np.arange(self.dataset.vocab_size), GUESSED_ROWS, unread)
        taken += time.monotonic() - asked
        free, copying = SETUP_FREE_S[self.device], self.state_bytes / COPIED_BYTES_S
        self.seconds -= max(0.0, taken - free) + max(0.0, copying - COPYING_FREE_S)
        if self.seconds <= 0:
            raise Refused(
                "late",
                f"set-up took {taken:.0f} s, and handing over {self.state_bytes >> 20} MB of weights may take {copying:.1f} s: what is beyond "
                f"{free:.0f} s and {COPYING_FREE_S} s is taken from the training time, of which nothing is left",
            )
        trial_claims.require_guessing(loss, self.dataset.vocab_size)

    def loss(
        self, judge: Judge, number: np.ndarray[Any, Any], rows: int, split: str = "train"
    ) -> float:
        """Nats a token on rows drawn from a split, as the judge computes it."""
        tokens = self.dataset.tokens(split)
        T = min(SEQUENCE[self.device], len(tokens) - 1)
        starts = [secrets.randbelow(len(tokens) - T) for _ in range(rows)]
        drawn = torch.from_numpy(
            np.stack([number[np.asarray(tokens[s : s + T + 1])] for s in starts])
        )
        sizes, found = scoring.byte_sizes(self.dataset, number), 0.0
        for batch in torch.split(drawn, scoring.rows_at_once(judge, T, self.dataset.vocab_size)):
            logits = scoring.ask(judge, batch[:, :-1], self.dataset.vocab_size)
            found += float(scoring.nats(logits, batch[:, 1:], sizes).sum())
        return found / int((sizes[drawn[:, 1:]] > 0).sum())

    def train(self, trainer: Judge, steps: int | None, *, watched: bool) -> Tensor:
        """Ring the bell, wait, and take the weights; the seconds are those of the judge's own clock. watched: whether calls of ops are kept."""
        tokens = self.dataset.tokens("train")
        late = f"training did not end within {self.seconds:.1f} s of the bell"
        if watched and self.ops:
            drawn = self.ops if self.long else [secrets.choice(self.ops)]
            self.moments = dict.fromkeys(drawn, MOMENTS[self.device] if self.long else 1)
        fd = shard.sealed(tokens, self.number)
        try:
            cpu = trainer.cpu_seconds()
            bell = time.monotonic()
            answer = trainer.ask(
                "train",
                timeout=self.seconds + GRACE_S,
                fd=fd,
                dtype=str(tokens.dtype),
                seed=self.seed,
                seconds=self.seconds,
                steps=steps,
                moments=self.moments,
                progress=lambda p: self.tell(
                    {"phase": "training", "elapsed": time.monotonic() - bell, "seconds": self.seconds, **p}
                ),
            )  # fmt: skip
            elapsed = time.monotonic() - bell
        except Refused as refused:
            if refused.kind == "timeout":
                raise Refused("late", late) from None
            raise
        finally:
            os.close(fd)
        if elapsed > self.seconds + GRACE_S:
            raise Refused("late", late)
        weights = self._taken(trainer)
        handed_s, grace = time.monotonic() - bell, GRACE_S + self.state_bytes / COPIED_BYTES_S
        if handed_s > self.seconds + grace:
            raise Refused(
                "late",
                f"its weights were not there {self.seconds + grace:.1f} s after the bell: {self.seconds:.1f} s are for training and "
                f"{grace:.1f} s for handing them over",
            )
        self.handed = trainer.cpu_seconds()
        cpu = self.handed - cpu
        trainer.ask("release")
        self.kept = answer.get("kept")
        trained: Trained = trial_claims.read(Trained, answer.get("trained"))
        self._account(trainer, trained, elapsed, cpu)
        trial_claims.require_processor_time(cpu, handed_s)
        if not math.isfinite(trained.final()):
            raise Refused("nan", f"the training loss is not finite: {trained.final()}")
        measured = self.known["train_loss"] = self.loss(trainer, self.number, MEASURED_ROWS)
        trial_claims.require_curve(trained, measured, self.dataset.vocab_size)
        calls, launches = (trial_claims.counts(answer.get(kind)) for kind in ("calls", "launches"))
        self.known["calls"] = calls
        trial_claims.require_kernels(
            self.described, trained.steps, calls, launches, trainer.tree, self.device
        )
        return weights

    def _taken(self, trainer: Judge) -> Tensor:
        """The weights, at once. Asking for them runs the model's code after training: it may do no more than hand them over."""
        copying = self.state_bytes / COPIED_BYTES_S
        cpu, said = trainer.cpu_seconds(), ""
        try:
            weights = _weights(trainer, self.state_bytes, timeout=TAKEN_S + copying)
        except Refused as refused:
            if refused.kind != "timeout":
                raise
            said = f"had not handed over its weights {TAKEN_S + copying:.1f} s"
        used = trainer.cpu_seconds() - cpu
        if not said and used > TAKEN_CPU_S + copying:
            said = f"worked for {used:.1f} s of processor time when it was asked for its weights"
        if said:
            raise Refused("off_clock", f"the model {said} after training: nothing may run then")
        return weights

    def _account(self, trainer: Judge, trained: Trained, elapsed: float, cpu: float) -> None:
        flops = self.described.flops_per_token * trained.tokens
        self.known.update(
            training_seconds=elapsed,
            cpu_seconds=cpu,
            num_steps=trained.steps,
            total_tokens_M=trained.tokens / 1e6,
            tokens_per_second=trained.tokens / elapsed,
            mfu_percent=100 * flops / elapsed / peak_flops(self.device),
            peak_memory_mb=trained.peak_memory_mb,
            resident_memory_mb=processes.peak_bytes(processes.tree(trainer.pid)) / 2**20,
            losses=trained.losses,
            grad_norms=trained.grad_norms,
        )

    def score(self, trainer: Judge, scorer: Judge, weights: Tensor, split: str) -> None:
        """Give the weights to the scorer, mark it, and check that nothing moved meanwhile."""
        cpu, started = trainer.cpu_seconds(), time.monotonic()
        answer = scorer.ask(
            "setup", timeout=SETUP_LIMIT_S[self.device], spec=self.spec, ops={}, warm_up=None
        )
        if trial_claims.state_bytes(answer) != len(weights):
            raise Refused(
                "structure",
                f"Trainer.model holds {trial_claims.state_bytes(answer)} bytes before training and {len(weights)} after: "
                "every tensor of its state must exist from the start",
            )
        scorer.arena.reset()
        where = scorer.arena.place("uint8", (len(weights),))
        scorer.arena.view(where).copy_(weights)
        scorer.ask("restore", weights=where)
        exam = Exam.of(self.dataset, split, self.number, SEQUENCE[self.device])
        used, limit = scorer.cpu_seconds(), SCORING_S + self.seconds
        bpb, marks = scoring.mark(scorer, exam, limit_s=limit, tell=self.tell)
        used = scorer.cpu_seconds() - used
        # Every row once, those of one batch with another future, and the best-predicted rows twice more.
        asked = exam.inputs.numel() + 3 * scoring.BATCH_ROWS * exam.inputs.shape[1]
        self._require_cheap(used, asked)
        price = used / asked
        for judge in (trainer, scorer):
            if not torch.equal(_weights(judge, len(weights)), weights):
                raise Refused("weights", "the weights changed after training")
        _require_idle(trainer, cpu, started)
        prompt = functools.partial(self._require_prompt, trainer, price)
        scoring.confirm(trainer, exam, marks, PROBE_SHARE * self.seconds, answered=prompt)
        if not FLOOR_BPB <= bpb:
            raise Refused(
                "implausible",
                f"{bpb:.3f} bits a byte is better than any honest model of this size: the score is quarantined",
            )
        self.known["val_bpb"] = bpb

    def _require_prompt(self, trainer: Judge, price: float, tokens: int) -> None:
        """What the trainer answers first has to cost it what it costs the scorer, `price` seconds of processor time a token: else it has gone on learning."""
        used = trainer.cpu_seconds() - self.handed
        looked = tokens + MEASURED_ROWS * SEQUENCE[self.device]
        allowed = LOOKED_SLACK_S + LOOKED_TIMES * price * looked
        if self.device == "cpu" and used > allowed:
            raise Refused(
                "off_clock",
                f"from its weights to its first answers the trainer worked for {used:.0f} s of processor time, where {allowed:.0f} s are "
                "allowed: nothing may be learned then (what Trainer.logits compiles for a new size of batch counts too: compile with dynamic=True)",
            )

    def _require_cheap(self, used: float, asked: int) -> None:
        """To score a token takes a third of what training on it took; much more is a learner, or many models in one.

        used: seconds of processor time. asked: tokens.
        """
        a_token = self.known["cpu_seconds"] / (1e6 * self.known["total_tokens_M"])
        allowed = SCORED_SLACK_S + SCORED_TIMES * a_token * asked
        if self.device == "cpu" and used > allowed:
            raise Refused(
                "off_clock",
                f"scoring took {used:.0f} s of processor time, where {SCORED_TIMES:g} times what a token took in training are {allowed:.0f} s",
            )

    def examine_kernels(self, trainer: Judge) -> None:
        """Check each op of the tree once more, as the model calls it, in the process that trained: after so many calls a kernel could turn careless.

        In short trials the values of all ops and the gradients of one, else the gradients of all, which take 3 s more on two cores.
        """
        for op in self.ops:
            trainer.ask("load", op=op, tree=str(trainer.tree))
            asked = contracts.contract(op)
            examination = Examination(asked, trainer, secrets.randbits(48))
            case = examination.rng.choice(asked.trial[self.device])
            case = asked.as_called(case, examination.rng)
            laid = examination.lay(case, None if op in self.moments else ())
            examination.right(laid, passing="copy", what=f"{op} after training")


def _weights(judge: Judge, size: int, timeout: float = scoring.ASK_S) -> Tensor:
    """A private copy of the model's state, as bytes."""
    judge.arena.reset()
    where = judge.arena.place("uint8", (size,))
    judge.ask("weights", timeout=timeout, out=where)
    return judge.arena.view(where).clone()


def _require_idle(judge: Judge, cpu: float, since: float) -> None:
    """The runner has done next to nothing since `since`, when it had used `cpu` seconds."""
    used, elapsed = judge.cpu_seconds() - cpu, time.monotonic() - since
    if used > 1.5 * processes.TICK_S + IDLE_SHARE * elapsed:
        # what has just ended may still be winding down; work that goes on will show
        time.sleep(max(0.0, LOOK_S - elapsed))
    used, elapsed = judge.cpu_seconds() - cpu, time.monotonic() - since
    if used > IDLE_S + IDLE_SHARE * elapsed:
        raise Refused(
            "off_clock",
            f"{used:.1f} s of processor time in the {elapsed:.1f} s after training: nothing may run then",
        )
