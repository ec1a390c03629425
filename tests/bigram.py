"""A bigram model that a second of one core trains: the honest model of the trial's tests, and what their cheats derive from.

It stands as model/bigram.py beside the model/train.py of a test.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bigram(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(vocab_size, vocab_size))

    def scores(self, rows: Tensor) -> Tensor:
        """Logits (B, T, V) of the token after each position of rows (B, T)."""
        return self.table[rows]

    def forward(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Nats of each target (B, T), as a harness that leaves the loss to the model asks for them."""
        return F.cross_entropy(self.scores(rows).transpose(1, 2), targets, reduction="none")


class Trainer:
    network: type[Bigram] = Bigram
    rows, rate = 4, 0.5

    def __init__(self, spec) -> None:
        self.vocab_size, self.T = spec["vocab_size"], spec["sequence_length"] // 2
        self.model = self.network(self.vocab_size)

    def describe(self):
        size = sum(p.numel() for p in self.model.parameters())
        return {
            "num_params": size,
            "depth": 1,
            "flops_per_token": 6 * self.vocab_size,
            "implementations": {},
        }

    def warm_up(self, tokens: Tensor) -> None:
        self.logits(tokens[: self.T].long()[None])

    def batch(self, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """Rows (B, T + 1) of the shard."""
        starts = torch.randint(len(tokens) - self.T, (self.rows,), generator=generator)
        return torch.stack([tokens[s : s + self.T + 1].long() for s in starts])

    def learn(self, rows: Tensor) -> float:
        """A step of Adagrad by hand: torch.optim imports torch._dynamo, a second for every trial of a test."""
        weights = [p for p in self.model.parameters() if p.requires_grad]
        loss = self.model(rows[:, :-1], rows[:, 1:]).mean()
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            square = self.squares.setdefault(weight, torch.zeros_like(weight)).add_(gradient**2)
            weight.data.sub_(self.rate * gradient / (square.sqrt() + 1e-8))
        return loss.item()

    def train(self, tokens, seed, seconds, report, steps=None):
        generator = torch.Generator().manual_seed(seed)
        self.squares: dict[nn.Parameter, Tensor] = {}
        losses, started = [], time.monotonic()
        while len(losses) < steps if steps else time.monotonic() - started < 0.8 * seconds:
            loss = self.learn(self.batch(tokens, generator))
            losses.append([(len(losses) + 1) * self.rows * self.T, loss])
        return {
            "steps": len(losses),
            "tokens": int(losses[-1][0]),
            "losses": losses[:: max(1, len(losses) // 100)] + losses[-1:],
            "grad_norms": [],
            "peak_memory_mb": 0.0,
        }

    @torch.no_grad()
    def logits(self, rows: Tensor) -> Tensor:
        return self.model.scores(rows)
