"""Other people's packages as implementations of an op: a table, for the report of a GPU alone. No model runs them.

Each is a function with the op's public signature, complete in itself, which imports its package when it is called. `tree` writes one into a folder
such as the runner loads, in which no other file of bench is in sight: so a peer is asked, timed and audited like everything else.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor


def liger_rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6) -> Any:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    # not in place: that would overwrite the gradient which it is given
    return LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)


def liger_linear_cross_entropy(
    h: Tensor, W: Tensor, targets: Tensor, softcap: float | None = None
) -> Any:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    # a loss a token, as the op has it; of a mean, Liger forms the gradients in the forward pass and is faster
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
    """`package` is what is imported, `install` what pip calls it."""

    op: str
    name: str
    package: str
    install: str
    function: Callable[..., Any]

    def missing(self) -> str:
        """What to install, or ""."""
        here = importlib.util.find_spec(self.package) is not None
        return "" if here else f"{self.package} is not installed: pip install {self.install}"

    def tree(self, folder: Path) -> Path:
        """A tree whose kernels/<op>.py is this peer."""
        kernels = folder / f"{self.op}-{self.name}" / "kernels"
        kernels.mkdir(parents=True)
        (kernels / "__init__.py").touch()
        source = inspect.getsource(self.function)
        named = f"{self.op} = {self.function.__name__}\n"
        (kernels / f"{self.op}.py").write_text(f"from __future__ import annotations\n\n\n{source}\n\n{named}")  # fmt: skip
        return kernels.parent


PEERS = (
    Peer("rms_norm", "liger", "liger_kernel", "liger-kernel", liger_rms_norm),
    Peer("rms_norm", "quack", "quack", "quack-kernels", quack_rms_norm),
    Peer("add_rms_norm", "quack", "quack", "quack-kernels", quack_add_rms_norm),
    Peer("linear_cross_entropy", "liger", "liger_kernel", "liger-kernel", liger_linear_cross_entropy),
)  # fmt: skip
