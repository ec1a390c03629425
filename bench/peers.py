"""Other people's functions as implementations of an op: a table, for benchmarks and reports alone. No model runs them.

Each has the op's public signature, needs nothing of this file but HEADER and what `Peer.helpers` names, and imports its package when it is
called. `Peer.tree` writes one into a folder such as the runner loads, where no other file of bench is in sight: so a peer is asked, timed
and audited like everything else.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HEADER = """from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
"""


@cache
def band(T: int, causal: bool, window: int) -> Tensor:
    """(T, T): which keys a query sees. Made once, as a model does."""
    distance = torch.arange(T)[:, None] - torch.arange(T)
    return (distance < window) & (distance >= 0 if causal else distance > -window)


def sdpa_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool = True, window: int | None = None
) -> Tensor:
    mask = None if window is None else band(q.shape[2], causal, window)
    grouped = k.shape[1] != q.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and mask is None, enable_gqa=grouped
    )


def liger_rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Any:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    # not in place: that would overwrite the gradient that it is given
    return LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)


def liger_linear_cross_entropy(
    h: Tensor, W: Tensor, targets: Tensor, softcap: float | None = None
) -> Any:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    # One loss a token, as the op has it. For a mean Liger forms the gradients in the forward pass, and is faster.
    return liger_fused_linear_cross_entropy(h, W, targets, reduction="none", softcap=softcap)


def quack_rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Any:
    from quack import rmsnorm

    return rmsnorm(x, weight, eps=eps)


def quack_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor | None = None, eps: float = 1e-6
) -> Any:
    from quack import rmsnorm

    return rmsnorm(x, weight, residual=residual, eps=eps, prenorm=True)


@dataclass(frozen=True)
class Peer:
    """`package` is what is imported, `install` what pip calls it, `device` where it runs, `helpers` other functions of this file that it calls."""

    op: str
    name: str
    package: str
    install: str
    function: Callable[..., Any]
    device: str = "cuda"
    helpers: tuple[Callable[..., Any], ...] = ()

    def why_not(self) -> str:
        """Why it cannot run, and what to install; "" where its package is here."""
        here = importlib.util.find_spec(self.package) is not None
        return "" if here else f"{self.package} is not installed: pip install {self.install}"

    def tree(self, folder: Path) -> Path:
        """A tree whose kernels/<op>.py is this peer."""
        kernels = folder / f"{self.op}-{self.name}" / "kernels"
        kernels.mkdir(parents=True)
        (kernels / "__init__.py").touch()
        sources = [inspect.getsource(each) for each in (*self.helpers, self.function)]
        named = f"{self.op} = {self.function.__name__}\n"
        (kernels / f"{self.op}.py").write_text("\n\n".join([HEADER, *sources, named]))
        return kernels.parent


PEERS = (
    Peer("rms_norm", "liger", "liger_kernel", "liger-kernel", liger_rms_norm),
    Peer("rms_norm", "quack", "quack", "quack-kernels", quack_rms_norm),
    Peer("add_rms_norm", "quack", "quack", "quack-kernels", quack_add_rms_norm),
    Peer("linear_cross_entropy", "liger", "liger_kernel", "liger-kernel", liger_linear_cross_entropy),
    Peer("attention", "sdpa", "torch", "torch", sdpa_attention, "cpu", (band,)),
)  # fmt: skip
