"""The loop: as many steps as the time allows. Learning rates and decay follow the share of it that is used; Muon's momentum alone counts steps.

trainer = Trainer(spec)         the model on its device, weights not yet drawn
trainer.model                   the nn.Module whose state_dict() holds all that is learned: a second process scores from it
trainer.describe()              its size, and which implementation of each op runs
trainer.warm_up(tokens)         build, compile and run a few steps on random tokens; nothing of it stays
trainer.train(tokens, seed, seconds, report, steps)
trainer.logits(rows)            the logits, which depend on each row and the state alone
"""

from __future__ import annotations

import importlib
import itertools
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels import choose
from model.gpt import GPT, OPS, GPTConfig, configure
from model.optim import MuonAdamW

WARMUP = 0.02  # tune: 0.0 0.01 0.02 0.05
WARMDOWN = 0.7  # tune: 0.5 0.6 0.7 0.8
FINAL_RATE = 0.05  # tune: 0.0 0.05 0.1
POINTS = 200  # of the loss curve
REPORT_EVERY = 0.5  # seconds


# Tokens of a step. A small step wastes a GPU. On a CPU it costs next to nothing, and five minutes hold more of them.
BATCH_TOKENS = {
    "cpu": 2048,  # tune on cpu: 1024 2048 4096
    "cuda": 262144,  # tune on cuda: 131072 262144 524288
    "autoresearch": 524288,
}
# What backward needs, in bytes: it decides how many rows fit at once
ACTIVATION_BYTES = 36  # a token, channel and layer, in bfloat16
SCORE_BYTES = 8  # a score of every layer, where plain torch keeps it in float32 twice
LOGIT_BYTES = 2  # the gradient of a logit, which our loss makes in its forward pass
PLAIN_LOGIT_BYTES = 12  # a logit, where plain torch holds it in float32 three times
MOST_BYTES = 60e9  # a piece of that size keeps any GPU busy


@dataclass(frozen=True)
class Batch:
    """Rows of a step, and how many of them go through the model at once."""

    rows: int
    micro_rows: int


def batch_for(device: torch.device, config: GPTConfig) -> Batch:
    """The batch of the model's size, in as few pieces as fit into MOST_BYTES and the memory of `device`."""
    rows = max(1, BATCH_TOKENS[config.size] // config.sequence_length)
    if device.type == "cpu":
        return Batch(rows, rows)
    T = config.sequence_length
    row = ACTIVATION_BYTES * T * config.dim * config.depth
    if config.impl.get("attention") == "torch":
        row += SCORE_BYTES * T * T * config.heads * config.depth
    plain = config.impl.get("linear_cross_entropy") == "torch"
    row += (PLAIN_LOGIT_BYTES if plain else LOGIT_BYTES) * T * config.vocab_size
    total = torch.cuda.get_device_properties(device).total_memory
    fits = max(1, int(min(MOST_BYTES, 0.7 * total)) // row)
    return Batch(rows, max(n for n in range(1, rows + 1) if rows % n == 0 and n <= fits))


class Trainer:
    """What a trial runs: see bench/runner/__main__.py for who calls it when.

    spec: device ("cpu" or "cuda"), vocab_size, sequence_length; and, where they are not the device's own, impl (op to implementation), size
    (a row of SIZES) and compiled (whether the model runs under torch.compile).
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.device = torch.device(spec["device"])
        self.config = configure(
            spec["device"],
            spec["vocab_size"],
            spec["sequence_length"],
            spec.get("impl"),
            spec.get("size"),
        )
        self.batch = batch_for(self.device, self.config)
        self.model = GPT(self.config).to(self.device)
        # On a CPU torch.compile gains the kernels nothing and costs a minute of set-up.
        asked, on_gpu = spec.get("compiled"), self.device.type == "cuda"
        compiled = on_gpu if asked is None else asked
        self._loss = torch.compile(self.model, dynamic=False) if compiled else self.model

    def describe(self) -> dict[str, Any]:
        """Size of the model, flops a token (forward and backward), dtype, and which implementation of each op runs."""
        return {
            "num_params": sum(p.numel() for p in self.model.parameters()),
            "depth": self.config.depth,
            "flops_per_token": self.model.flops_per_token(),
            "dtype": str(self.config.dtype).removeprefix("torch."),
            "implementations": {op: self._implementation(op) for op in OPS},
        }

    def _implementation(self, op: str) -> str:
        module = importlib.import_module(f"kernels.{op}")
        known = module.IMPLEMENTATIONS | getattr(module, "LIBRARIES", {})
        return choose(known, self.config.impl.get(op), self.device)

    def warm_up(self, tokens: Tensor) -> None:
        """Build and compile everything on random tokens (1-D): three steps and one scoring pass. Nothing of it stays in the weights: the judge asks next whether the model guesses."""
        self.train(tokens, seed=0, seconds=float("inf"), report=lambda _: None, steps=3)
        self.logits(torch.zeros(1, self.config.sequence_length, dtype=torch.int64))
        self.model.initialize(seed=0)

    def train(
        self, tokens: Tensor, seed: int, seconds: float, report: Callable[[dict[str, Any]], None], steps: int | None = None
    ) -> dict[str, Any]:  # fmt: skip
        """Draw new weights from `seed` and train on the shard `tokens` (1-D) until `seconds` are over, or for exactly `steps` steps.

        Returns before `seconds` have passed since the call. With `steps` the schedules follow step / steps, and the result depends on
        nothing but the seed (on a GPU up to the order of additions: gradients of embeddings are atomic sums). `report` is called at most
        twice a second.
        """
        clock = _Clock(self.device, seconds, steps)
        self.model.initialize(seed)
        optimizer = MuonAdamW(self.model)
        weights = list(self.model.parameters())
        tokens_a_step = self.batch.rows * self.config.sequence_length
        data = batches(tokens, self.batch.rows, self.config.sequence_length, seed)
        if self.device.type == "cuda":
            data = _prefetched(data)
        recent: list[Tensor] = []  # losses since the last point; they stay on the device
        # (tokens, loss, norm of the gradients), copied to the host without waiting: reading one would wait for all work queued on the device
        points: list[tuple[int, Tensor, Tensor]] = []
        step, reported = 0, 0.0
        while (progress := clock.tick()) is not None:
            recent.append(self._gradients(next(data).to(self.device, non_blocking=True)))
            at_point = progress * POINTS >= len(points)
            norm = torch.nn.utils.get_total_norm([w.grad for w in weights]) if at_point else None
            optimizer.step(_rate(progress), decay=1 - progress)
            step += 1
            if norm is None:
                continue
            loss = torch.stack(recent).mean().to("cpu", non_blocking=True)
            points.append((step * tokens_a_step, loss, norm.to("cpu", non_blocking=True)))
            recent.clear()
            elapsed = clock.elapsed()
            if elapsed - reported >= REPORT_EVERY and len(points) > 2:
                reported = elapsed
                # two steps back at least, which the clock has waited for
                _, loss, _ = points[-3]
                report({"step": step, "loss": float(loss), "tokens": step * tokens_a_step, "elapsed": elapsed, "progress": progress})  # fmt: skip
        return {
            "steps": step,
            "tokens": step * tokens_a_step,
            "losses": [[tokens, float(loss)] for tokens, loss, _ in points],
            "grad_norms": [float(norm) for _, _, norm in points],
            "step_ms": clock.median_ms(),
            "peak_memory_mb": self._peak_memory_mb(),
        }

    def _gradients(self, rows: Tensor) -> Tensor:
        """Mean loss of the rows (B, T + 1), its gradient left in the weights."""
        total = torch.zeros((), device=self.device)
        for part in rows.split(self.batch.micro_rows):
            loss = self._loss(part[:, :-1], part[:, 1:]).sum() / rows[:, 1:].numel()
            loss.backward()
            total += loss.detach()
        return total

    @torch.inference_mode()
    def logits(self, rows: Tensor) -> Tensor:
        """Logits (B, T, V), float32, of the token after each position of rows (B, T) int64; T up to the sequence length."""
        return self.model.logits(rows.to(self.device))

    def _peak_memory_mb(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux: kilobytes


def _rate(progress: float) -> float:
    """Learning-rate factor at a share of the budget: a short rise, a plateau, a linear descent to FINAL_RATE."""
    rise = min(1.0, progress / WARMUP + 0.1) if WARMUP else 1.0
    descent = min(1.0, (1 - progress) / WARMDOWN)
    return rise * (FINAL_RATE + (1 - FINAL_RATE) * descent)


def batches(tokens: Tensor, rows: int, T: int, seed: int) -> Iterator[Tensor]:
    """Rows (rows, T + 1) int64 of the shard for ever: each epoch a new shuffle of all rows, cut at a new offset."""
    if len(tokens) < 2 * T + 1:
        raise ValueError(
            f"{len(tokens)} training tokens: expected at least {2 * T + 1}, two rows of {T}; give more text"
        )
    generator = torch.Generator().manual_seed(seed)

    def starts() -> Iterator[int]:
        while True:
            offset = int(torch.randint(T, (1,), generator=generator))
            count = (len(tokens) - 1 - offset) // T
            yield from (offset + T * torch.randperm(count, generator=generator)).tolist()

    order = starts()
    while True:
        yield torch.stack([tokens[s : s + T + 1].long() for s in itertools.islice(order, rows)])


def _prefetched(data: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same batches in pinned memory, each drawn by a thread while the step before it runs."""
    with ThreadPoolExecutor(max_workers=1) as drawer:
        pending = drawer.submit(lambda: next(data).pin_memory())
        while True:
            rows, pending = pending.result(), drawer.submit(lambda: next(data).pin_memory())
            yield rows


class _Clock:
    """How far a run has come, and whether another step still fits. On a GPU it runs at most two steps behind the launches."""

    def __init__(self, device: torch.device, seconds: float, steps: int | None) -> None:
        self.started = time.monotonic()
        self.cuda, self.seconds, self.steps = device.type == "cuda", seconds, steps
        self.events: list[torch.cuda.Event] = []
        self.stamps: list[float] = []

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def tick(self) -> float | None:
        """Called before each step: the share of the budget used, in [0, 1); None when the run is over and the device is idle."""
        step = len(self.stamps)
        if self.cuda:
            self.events.append(torch.cuda.Event())
            self.events[-1].record()
            if step >= 2:
                self.events[-2].synchronize()
        now = self.elapsed()
        self.stamps.append(now)
        over = not self._fits() if self.steps is None else step >= self.steps
        if over:
            if self.cuda:
                torch.cuda.synchronize()
            return None
        return now / self.seconds if self.steps is None else step / self.steps

    def _fits(self) -> bool:
        """Whether what is in flight and one step more end in time, even if each takes twice the longest of the last fifty."""
        intervals = [b - a for a, b in itertools.pairwise(self.stamps[-50:])]
        steps = 2 if self.cuda else 1
        return self.stamps[-1] + 2 * steps * max(intervals, default=0.0) + 0.05 < self.seconds

    def median_ms(self) -> float:
        """Median time of a step in milliseconds; 0 before the first."""
        intervals = [b - a for a, b in itertools.pairwise(self.stamps)]
        return 1e3 * statistics.median(intervals or [0.0])
