"""The optimizer: Muon for the matrix banks, AdamW for embeddings, head, gates and lambdas.

Muon (Jordan 2024): the momentum of a matrix is replaced by its polar factor, which `kernels.newton_schulz` approximates, so that every
direction of the matrix learns at the same rate. Two refinements: NorMuon (arXiv 2510.05491) divides each neuron's update by its running
size, and cautious weight decay (arXiv 2510.12402) decays only the weights that the update moves towards zero as well. Around
`newton_schulz` stand two ops: `nesterov`, a single pass, and `muon_update`, which reads the update twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.gpt import GPT

MOMENTUM = 0.95  # tune: 0.9 0.95 0.97
MOMENTUM_START, MOMENTUM_STEPS = 0.85, 200  # linear rise over the first steps
NEURON_BETA = 0.95  # tune: 0.9 0.95
NS_STEPS = 5  # tune: 4 5 7
ADAM_BETAS = (0.8, 0.95)
EPS = 1e-10


@dataclass(frozen=True)
class Rates:
    """Peak learning rates, and Muon's weight decay. They are set for one batch size: for a smaller one Adam's shrink with the square root of the batch,
    Muon's hardly."""

    matrix: float
    embed: float
    value: float
    head: float
    gate: float
    lambdas: float
    decay: float


RATES = {
    "cpu": Rates(  # 2,048 tokens a step
        matrix=0.02,  # tune on cpu: 0.01 0.015 0.02 0.03
        embed=0.2,  # tune on cpu: 0.05 0.1 0.2 0.4
        value=0.1,  # tune on cpu: 0.03 0.05 0.1 0.2
        head=0.006,  # tune on cpu: 0.002 0.004 0.006 0.01
        gate=0.01,  # tune on cpu: 0.005 0.01 0.02
        lambdas=0.1,  # tune on cpu: 0.03 0.1 0.3
        decay=0.1,  # tune on cpu: 0.0 0.1 0.2 0.4
    ),
    "cuda": Rates(  # 262,144 tokens a step
        matrix=0.04,  # tune on cuda: 0.02 0.03 0.04 0.06
        embed=1.1,  # tune on cuda: 0.5 0.8 1.1 1.5
        value=1.1,  # tune on cuda: 0.3 0.6 1.1
        head=0.006,  # tune on cuda: 0.004 0.006 0.008
        gate=0.02,  # tune on cuda: 0.01 0.02 0.04
        lambdas=0.5,  # tune on cuda: 0.25 0.5 1.0
        decay=0.2,  # tune on cuda: 0.1 0.2 0.4
    ),
    "autoresearch": Rates(  # 524,288 tokens a step
        matrix=0.04, embed=0.73, value=0.73, head=0.005, gate=0.02, lambdas=0.5, decay=0.2
    ),
}


@dataclass(frozen=True)
class _Bank:
    """A stack of matrices (..., M, N), its momentum, and NorMuon's running mean square of each neuron (row if tall, column if wide)."""

    weight: nn.Parameter
    momentum: Tensor
    size: Tensor  # (..., M, 1) where neurons are rows, (..., 1, N) where they are columns
    rate: float

    @staticmethod
    def of(weight: nn.Parameter) -> _Bank:
        M, N = weight.shape[-2:]
        size = weight.new_zeros(*weight.shape[:-2], *((M, 1) if M >= N else (1, N)))
        return _Bank(weight, torch.zeros_like(weight), size, max(1.0, M / N) ** 0.5)


@dataclass(frozen=True)
class _Table:
    """A weight that AdamW updates, with its two moments."""

    weight: nn.Parameter
    exp_avg: Tensor
    exp_avg_sq: Tensor
    rate: float
    decay: float
    betas: tuple[float, float]

    @staticmethod
    def of(
        weight: nn.Parameter,
        rate: float,
        *,
        decay: float = 0.0,
        betas: tuple[float, float] = ADAM_BETAS,
    ) -> _Table:
        moments = torch.zeros_like(weight), torch.zeros_like(weight)
        return _Table(weight, *moments, rate, decay, betas)


class MuonAdamW:
    """One step over all of a model's weights; rates and decay are scaled by the schedule that `train.py` keeps."""

    def __init__(self, model: GPT) -> None:
        self.rates = rates = RATES[model.config.size]
        self.banks = [_Bank.of(bank) for bank in (model.qkvo, model.up, model.down)]
        self.tables = [
            _Table.of(model.embed, rates.embed, decay=0.001),
            *(_Table.of(table, rates.value, decay=0.003) for table in model.value_embeds),
            _Table.of(model.head, rates.head, decay=0.01),
            _Table.of(model.value_gates, rates.gate),
            _Table.of(model.smear_gate, rates.gate),
            _Table.of(model.resid_lambdas, rates.lambdas * 0.01),
            _Table.of(model.x0_lambdas, rates.lambdas, betas=(0.96, 0.95)),
        ]
        self.steps = 0
        self._ops = model.ops
        self._ns_dtype = model.config.dtype

    @torch.no_grad()
    def step(self, rate: float, decay: float) -> None:
        """Update every weight from its gradient: learning rates times `rate`, Muon's weight decay times `decay`; clears gradients."""
        for table in self.tables:
            weight, (beta1, beta2) = table.weight, table.betas
            self._ops.adamw(
                weight, weight.grad, table.exp_avg, table.exp_avg_sq,
                lr=table.rate * rate, beta1=beta1, beta2=beta2, eps=EPS, weight_decay=table.decay, step=self.steps + 1,
            )  # fmt: skip
            weight.grad = None
        warm = min(self.steps / MOMENTUM_STEPS, 1.0)
        momentum = MOMENTUM_START + (MOMENTUM - MOMENTUM_START) * warm
        for bank in self.banks:
            weight, lr = bank.weight, self.rates.matrix * bank.rate * rate
            self._ops.nesterov(bank.momentum, weight.grad, beta=momentum)
            update = self._ops.newton_schulz(weight.grad.to(self._ns_dtype), steps=NS_STEPS)
            shrink = lr * self.rates.decay * decay
            self._ops.muon_update(weight, update, bank.size, lr=lr, decay=shrink, beta=NEURON_BETA)
            weight.grad = None
        self.steps += 1
