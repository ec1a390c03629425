"""Muon and AdamW: the update that each weight gets."""

import dataclasses

import pytest
import torch

from kernels.muon_update import muon_update
from kernels.newton_schulz import newton_schulz
from model.gpt import GPT, configure
from model.optim import ADAM_BETAS, EPS, RATES, MuonAdamW


def model() -> GPT:
    config = dataclasses.replace(
        configure("cpu", 97, 32), depth=2, dim=64, head_dim=32, dtype=torch.float32
    )
    gpt = GPT(config)
    gpt.initialize(seed=0)
    return gpt


def give_gradients(gpt: GPT, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in gpt.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize("shape", [(3, 48, 48), (2, 96, 24), (2, 24, 96), (2, 3, 32, 32)])
def test_muon_update_is_orthogonal_up_to_a_scale_for_each_neuron(shape: tuple[int, ...]) -> None:
    weight = torch.zeros(shape)
    axis = -1 if shape[-2] >= shape[-1] else -2
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    update = newton_schulz(gradient)
    muon_update(weight, update, torch.zeros_like(weight.mean(axis, keepdim=True)), lr=1.0)
    direction = -weight
    if axis == -2:
        direction = direction.mT
    # NorMuon makes all neurons equally long and keeps the Frobenius norm, sqrt(min(M, N)) for an orthogonal matrix.
    lengths = direction.norm(dim=-1)
    torch.testing.assert_close(
        lengths, lengths.mean(-1, keepdim=True).expand_as(lengths), rtol=1e-3, atol=1e-3
    )
    singular = torch.linalg.svdvals(weight)
    assert (
        singular.square().sum(-1).sqrt().sub(min(shape[-2:]) ** 0.5).abs().max()
        < 0.15 * min(shape[-2:]) ** 0.5
    )
    assert singular.max() < 1.9
    assert (direction * (gradient.mT if axis == -2 else gradient)).sum() > 0


def test_muon_size_does_not_depend_on_the_gradients_scale() -> None:
    steps = []
    for scale in (1e-3, 1e3):
        gpt = model()
        give_gradients(gpt, seed=1)
        gpt.up.grad *= scale
        before = gpt.up.detach().clone()
        MuonAdamW(gpt).step(rate=1.0, decay=0.0)
        steps.append(gpt.up.detach() - before)
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-2, atol=1e-4)
    # rate of a 4:1 matrix is 2
    assert steps[0].norm() == pytest.approx(RATES["cpu"].matrix * 2 * (2 * 64) ** 0.5, rel=0.15)


def test_cautious_decay_shrinks_only_where_the_update_agrees() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn(32, 32, generator=generator) for _ in range(2))
    moved = []
    for decay in (0.0, 0.1):
        w = weight.clone()
        muon_update(w, newton_schulz(gradient), torch.zeros(32, 1), lr=0.01, decay=decay)
        moved.append(w)
    update = weight - moved[0]
    agrees = update * weight >= 0
    torch.testing.assert_close(moved[1], moved[0] - 0.1 * weight * agrees, rtol=1e-5, atol=1e-6)
    assert 0.2 < agrees.float().mean() < 0.8


def test_embeddings_follow_torch_adamw() -> None:
    gpt = model()
    mine = MuonAdamW(gpt)
    reference = torch.nn.Parameter(gpt.embed.detach().clone())
    lr = RATES["cpu"].embed
    theirs = torch.optim.AdamW(
        [reference],
        lr=lr,
        betas=ADAM_BETAS,
        eps=EPS,
        weight_decay=mine.tables[0].decay,
    )
    for step, rate in enumerate((1.0, 0.5, 0.25)):
        give_gradients(gpt, seed=step)
        reference.grad = gpt.embed.grad.clone()
        theirs.param_groups[0]["lr"] = lr * rate
        theirs.step()
        mine.step(rate=rate, decay=1.0)
    torch.testing.assert_close(gpt.embed.detach(), reference.detach(), rtol=1e-5, atol=1e-6)


def test_every_weight_belongs_to_exactly_one_optimizer() -> None:
    gpt = model()
    optimizer = MuonAdamW(gpt)
    held = [id(bank.weight) for bank in optimizer.banks]
    held += [id(table.weight) for table in optimizer.tables]
    assert sorted(held) == sorted(id(weight) for weight in gpt.parameters())


def test_step_clears_gradients_and_a_rate_of_zero_moves_nothing() -> None:
    gpt = model()
    before = [weight.detach().clone() for weight in gpt.parameters()]
    give_gradients(gpt, seed=0)
    MuonAdamW(gpt).step(rate=0.0, decay=1.0)
    assert all(weight.grad is None for weight in gpt.parameters())
    for weight, old in zip(gpt.parameters(), before, strict=True):
        assert torch.equal(weight, old)
