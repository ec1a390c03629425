"""The architecture: a thin GPT in which every norm, rotation, attention, MLP and loss goes through `kernels`.

    x  = x0 = norm(embed(token) + gate * embed(previous token))
    for each layer:
        x = resid_lambda * x + x0_lambda * x0
        x = x + attention(norm(x))           rotary, QK-norm, sliding window, value embeddings on every other layer
        x = x + down(relu(up(norm(x)))^2)
    logits = 15 * tanh(head(norm(x)) / 15)

Weights of one kind live in one tensor for all layers (a bank), so that a step casts, orthogonalises and updates a handful of tensors
instead of a hundred. Master weights are float32; a forward pass casts the banks once to `config.dtype`.

Sources: nanochat and autoresearch (value embeddings, lambdas, windows), modded-nanogpt (banks, QK-norm, ReLU^2, softcap, smear).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import CPU_MULTIPLIES_BF16, ops
from kernels.adamw import adamw
from kernels.add_rms_norm import add_rms_norm
from kernels.attention import attention
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.muon_update import muon_update
from kernels.nesterov import nesterov
from kernels.newton_schulz import newton_schulz
from kernels.qk_norm_rope import qk_norm_rope
from kernels.relu2_mlp import relu2_mlp
from kernels.rms_norm import rms_norm

# Trainer.describe() reports these as running, and a trial is refused if a step leaves one of them uncalled: remove what the model no longer calls.
OPS = {
    "adamw": adamw,
    "add_rms_norm": add_rms_norm,
    "attention": attention,
    "linear_cross_entropy": linear_cross_entropy,
    "muon_update": muon_update,
    "nesterov": nesterov,
    "newton_schulz": newton_schulz,
    "qk_norm_rope": qk_norm_rope,
    "relu2_mlp": relu2_mlp,
    "rms_norm": rms_norm,
}

QK_SCALE = 1.2  # tune: 1.0 1.1 1.2 1.35
X0_LAMBDA = 0.05  # tune: 0.0 0.05 0.1 0.2
INIT_SCALE = 0.68  # tune: 0.5 0.68 0.85 1.0
SOFTCAP = 15.0  # logits stay in (-15, 15)
GATE_CHANNELS = 32  # first channels of x, which steer the smear and value-embedding gates


@dataclass(frozen=True)
class GPTConfig:
    """Everything the architecture depends on. `impl` names the implementation of an op where it is not the device's choice."""

    size: str  # the row of SIZES; batch and learning rates belong to it
    vocab_size: int
    sequence_length: int
    depth: int
    dim: int
    head_dim: int
    window_pattern: str  # a letter a layer, repeated: S(hort) or L(ong); the last is always long
    short_window: int
    rotary_base: float
    dtype: torch.dtype
    impl: Mapping[str, str] = field(default_factory=dict)

    @property
    def heads(self) -> int:
        return self.dim // self.head_dim

    @property
    def windows(self) -> list[int | None]:
        """Attention window of each layer; None is the whole past."""
        letters = (self.window_pattern * self.depth)[: self.depth - 1] + "L"
        return [self.short_window if letter == "S" else None for letter in letters]

    @property
    def value_layers(self) -> list[int]:
        """Layers with a value embedding: every other one, the last included."""
        return list(range((self.depth - 1) % 2, self.depth, 2))


# The size that makes the most of a five-minute trial on each device, and autoresearch's, so that its figures and ours can be compared.
# On a CPU after 0.41 M tokens, where twice the tokens are worth 0.12 bits per byte (BPB):
#
#     depth  dim  BPB    tokens/s of CPU time
#     4      192  1.932  8.0 k
#     4      256  1.906  4.9 k
#     4      384  1.888  2.5 k
#     6      256  1.915  3.7 k
SIZES: dict[str, dict[str, Any]] = {
    "cpu": dict(
        depth=4,  # tune on cpu: 3 4 5 6
        dim=192,  # tune on cpu: 128 192 256
        head_dim=64,  # tune on cpu: 32 64
        window_pattern="SSSL",  # tune on cpu: "SSSL" "SL" "L"
        short_window=64,  # tune on cpu: 32 64 128
        rotary_base=10_000.0,  # tune on cpu: 3_000.0 10_000.0 50_000.0 200_000.0
    ),
    "cuda": dict(
        depth=9,  # tune on cuda: 8 9 10
        dim=512,  # tune on cuda: 512 640
        head_dim=128,  # tune on cuda: 64 128
        window_pattern="SSSSL",  # tune on cuda: "SSSL" "SSSSL" "SSL"
        short_window=256,  # tune on cuda: 128 256 512
        rotary_base=200_000.0,  # tune on cuda: 10_000.0 50_000.0 200_000.0
    ),
    "autoresearch": dict(
        depth=8,
        dim=512,
        head_dim=128,
        window_pattern="SSSL",
        short_window=1024,
        rotary_base=10_000.0,
    ),
}


def configure(
    device: str,
    vocab_size: int,
    sequence_length: int,
    impl: Mapping[str, str] | None = None,
    size: str | None = None,
) -> GPTConfig:
    """The model of `size`, or else `device`'s own, for rows of up to `sequence_length` tokens; `impl` maps ops to implementations.

    Raises ValueError for another size or an op in `impl` that does not exist.
    """
    size = size or device
    unknown = set(impl or ()) - set(ops())  # of those there are, called here or not
    if unknown:
        raise ValueError(f"impl names {sorted(unknown)}: expected ops among {', '.join(ops())}")
    if size not in SIZES:
        raise ValueError(f"size {size!r}: expected one of {', '.join(SIZES)}")
    bf16 = device == "cuda" or CPU_MULTIPLIES_BF16  # 4.4 times float32's speed on Zen 5
    dtype = torch.bfloat16 if bf16 else torch.float32
    return GPTConfig(
        size, vocab_size, sequence_length, **SIZES[size], dtype=dtype, impl=dict(impl or {})
    )


class GPT(nn.Module):
    """Token rows to a loss per token (`forward`) or to logits (`logits`)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        V, L, D = config.vocab_size, config.depth, config.dim
        values = len(config.value_layers)
        empty = partial(torch.empty, dtype=torch.float32)
        self.embed = nn.Parameter(empty(V, D))
        self.value_embeds = nn.ParameterList(nn.Parameter(empty(V, D)) for _ in range(values))
        self.head = nn.Parameter(empty(V, D))
        self.qkvo = nn.Parameter(empty(L, 4, D, D))
        self.up = nn.Parameter(empty(L, 4 * D, D))
        self.down = nn.Parameter(empty(L, D, 4 * D))
        self.value_gates = nn.Parameter(empty(values, config.heads, GATE_CHANNELS))
        self.smear_gate = nn.Parameter(empty(1, GATE_CHANNELS))
        self.resid_lambdas = nn.Parameter(empty(L))
        self.x0_lambdas = nn.Parameter(empty(L))
        self.register_buffer("cos", empty(config.sequence_length, config.head_dim // 2))
        self.register_buffer("sin", empty(config.sequence_length, config.head_dim // 2))
        self.ops = SimpleNamespace(
            **{name: partial(op, impl=config.impl.get(name)) for name, op in OPS.items()}
        )

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Set every weight from `seed`, in place. Output projections start at zero: each layer begins as the identity."""
        generator = torch.Generator(self.head.device).manual_seed(seed)
        bound = INIT_SCALE * (3 / self.config.dim) ** 0.5  # uniform(-b, b) deviates by b / sqrt(3)
        self.embed.normal_(generator=generator)
        self.head.normal_(std=0.001, generator=generator)
        self.qkvo.uniform_(-bound, bound, generator=generator)[:, 3].zero_()
        self.up.uniform_(-bound, bound, generator=generator)
        self.down.zero_()
        for table in self.value_embeds:
            table.uniform_(-bound, bound, generator=generator)
        self.value_gates.zero_()
        self.smear_gate.zero_()
        self.resid_lambdas.fill_(1.0)
        self.x0_lambdas.fill_(X0_LAMBDA)
        config = self.config
        cos, sin = _rotary(config.sequence_length, config.head_dim, config.rotary_base)
        self.cos.copy_(cos)
        self.sin.copy_(sin)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy in nats, float32, of each target (B, T) given the tokens (B, T) up to the one before it."""
        h = self._hidden(tokens)
        return self.ops.linear_cross_entropy(h, self.head, targets, softcap=SOFTCAP)

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) in float32 of the token that follows each position of rows (B, T), T up to the sequence length."""
        h = self._hidden(tokens).float()  # the head in float32: bf16 resolves a logit of 8 to 0.06
        return F.linear(h / SOFTCAP, self.head).tanh_().mul_(SOFTCAP)

    def _hidden(self, tokens: Tensor) -> Tensor:
        """The normalised last state (B, T, D) in the config's dtype."""
        config, ops = self.config, self.ops
        T, dtype = tokens.shape[1], config.dtype
        cos, sin = self.cos[:T], self.sin[:T]
        banks = self.qkvo.flatten(1, 2), self.up, self.down
        qkvo, up, down = (bank.to(dtype).unbind() for bank in banks)
        resid, skip = self.resid_lambdas.to(dtype).unbind(), self.x0_lambdas.to(dtype).unbind()
        gates = dict(zip(config.value_layers, self.value_gates.to(dtype).unbind(), strict=True))
        tables = dict(zip(config.value_layers, self.value_embeds, strict=True))

        x = F.embedding(tokens, self.embed).to(dtype)
        # before the first token there is nothing
        smear = torch.sigmoid(F.linear(x[..., :GATE_CHANNELS], self.smear_gate.to(dtype)))
        x = torch.addcmul(x, smear, F.pad(x[:, :-1], (0, 0, 1, 0)))
        x = x0 = ops.rms_norm(x)
        for i, window in enumerate(config.windows):
            x = torch.addcmul(x * resid[i], x0, skip[i])
            n = ops.rms_norm(x)
            value = None
            if i in tables:
                gate = 2 * torch.sigmoid(F.linear(n[..., :GATE_CHANNELS], gates[i]))
                value = gate.unsqueeze(-1), F.embedding(tokens, tables[i]).to(dtype)
            n, x = ops.add_rms_norm(self._attend(n, qkvo[i], value, cos, sin, window), x)
            x = x + ops.relu2_mlp(n, up[i], down[i])
        return ops.rms_norm(x)

    def _attend(
        self, n: Tensor, qkvo: Tensor, value: tuple[Tensor, Tensor] | None, cos: Tensor, sin: Tensor, window: int | None
    ) -> Tensor:  # fmt: skip
        (B, T, D), H = n.shape, self.config.heads
        # split: the gradient of each slice would be a whole bank, mostly zeros
        to_qkv, to_output = qkvo.split((3 * D, D))
        q, k, v = F.linear(n, to_qkv).view(B, T, 3, H, D // H).unbind(2)
        q, k = self.ops.qk_norm_rope(q, k, cos, sin)
        if value is not None:
            gate, embedding = value
            v = torch.addcmul(v, gate, embedding.view(v.shape))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        o = self.ops.attention(q, k, v, causal=True, window=window)
        return F.linear(o.transpose(1, 2).reshape(B, T, D), to_output)

    def flops_per_token(self) -> int:
        """Forward and backward flops a token of the sequence length: 6 a matrix weight, 12 a channel and visible key."""
        config = self.config
        T, D = config.sequence_length, config.dim
        matrices = self.qkvo.numel() + self.up.numel() + self.down.numel() + self.head.numel()
        keys = sum(w - w * (w - 1) / (2 * T) for w in (min(x or T, T) for x in config.windows))
        return int(6 * matrices + 12 * D * keys)


def _rotary(T: int, D: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin (T, D/2), both times QK_SCALE: norm comes before rotation, so the scale costs nothing here."""
    frequency = base ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    angle = torch.outer(torch.arange(T, dtype=torch.float64), frequency)
    return (QK_SCALE * angle.cos()).float(), (QK_SCALE * angle.sin()).float()
