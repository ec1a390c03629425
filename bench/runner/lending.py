"""The runner's side of the arena: the judge's buffers as tensors of the device, and results written into them after a look at their form."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.protocol import view

# Bound before any candidate is imported: what it may put in their place does not run here.
_copy, _detach = Tensor.copy_, Tensor.detach
_modes = (torch._C._len_torch_function_stack, torch._C._len_torch_dispatch_stack)


class Refusal(Exception):
    """The candidate's answer has the wrong structure; the judge sees the message."""


class Lent:
    """The arena as one runner sees it."""

    def __init__(self, arena: mmap.mmap, device: str) -> None:
        self.arena = arena
        self.device = torch.device(device)

    def read(self, where: Mapping[str, Any]) -> Tensor:
        return view(self.arena, where).to(self.device)

    def copy_out(
        self,
        tensors: list[Tensor],
        outputs: list[Mapping[str, Any]],
        what: str,
        *,
        exact: bool = True,
    ) -> None:
        if len(tensors) != len(outputs):
            raise Refusal(f"expected {len(outputs)} {what}(s), got {len(tensors)}")
        if any(depth() for depth in _modes):
            raise Refusal(
                "a mode that intercepts torch's functions is left on; leave torch as it is"
            )
        for i, (tensor, where) in enumerate(zip(tensors, outputs, strict=True)):
            if type(tensor) is not Tensor and type(tensor) is not torch.nn.Parameter:
                raise Refusal(
                    f"{what} {i}: expected a plain torch.Tensor, got {type(tensor).__name__}"
                )
            attributes = [name for name in vars(tensor) if not name.startswith("_dynamo")]
            if attributes or tensor.layout != torch.strided:
                raise Refusal(
                    f"{what} {i}: expected a plain dense tensor, got one of layout {tensor.layout} with attributes {attributes}"
                )
            if list(tensor.shape) != where["shape"]:
                raise Refusal(
                    f"{what} {i}: expected shape {where['shape']}, got {list(tensor.shape)}"
                )
            if exact and str(tensor.dtype) != f"torch.{where['dtype']}":
                raise Refusal(
                    f"{what} {i}: expected dtype {where['dtype']}, got {str(tensor.dtype)[6:]}"
                )
            if tensor.device.type != self.device.type:
                raise Refusal(
                    f"{what} {i}: expected a {self.device.type} tensor, got {tensor.device.type}"
                )
            _copy(view(self.arena, where), _detach(tensor))
