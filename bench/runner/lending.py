"""The runner's side of the arena: the judge's buffers as tensors of the device, and results written into them after a look at their form.

lend      {bytes, device?} and a descriptor, of shared memory or of a GPU's: open it; the first request of all      -> {seen}

`seen` are the first MARK bytes, as hex: proof for the judge that both look at the same memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench import device_memory
from bench.protocol import MARK, Mapped, Region, extent, view

# Bound before any candidate is imported: what it may put in their place does not run here.
_clone, _copy, _detach = Tensor.clone, Tensor.copy_, Tensor.detach
_wait_for_device: Any = getattr(torch._C, "_cuda_synchronize", None)  # in builds with CUDA
_modes = (torch._C._len_torch_function_stack, torch._C._len_torch_dispatch_stack)


class Refusal(Exception):
    """The candidate's answer has the wrong structure; the judge sees the message."""


class Lent:
    """The arena as one runner sees it: memory of the device, or shared memory from which tensors are copied to the device."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.zeros(1, device=self.device)  # CUDA starts here, before anything is timed
        self.memory: Region

    def do_lend(self, request: Mapping[str, Any], fd: int | None = None) -> dict[str, Any]:
        try:
            if request.get("device"):
                self.memory = device_memory.opened(fd, request["bytes"])
            else:
                self.memory = Mapped(-1 if fd is None else fd)
        finally:
            if fd is not None:
                os.close(fd)
        return {"seen": bytes(self.memory.bytes(0, MARK).tolist()).hex()}

    def read(self, where: Mapping[str, Any]) -> Tensor:
        """The tensor there; on another device a copy that lies as it does here."""
        here = view(self.memory, where)
        if here.device.type == self.device.type:
            return here
        flat = self.memory.bytes(*extent(where)).to(self.device).view(here.dtype)
        return flat.as_strided(here.shape, here.stride())

    def synchronize(self) -> None:
        """Return when the device has done all that it was asked for."""
        if self.device.type == "cuda":
            _wait_for_device()

    def copy_out(
        self,
        tensors: list[Tensor],
        outputs: list[Mapping[str, Any]],
        what: str,
        *,
        exact: bool = True,
    ) -> None:
        self.check(tensors, outputs, what, exact=exact)
        for tensor, where in zip(tensors, outputs, strict=True):
            _copy(view(self.memory, where), _detach(tensor))

    def taken(
        self, tensors: list[Tensor], outputs: list[Mapping[str, Any]], what: str
    ) -> list[Tensor]:
        """Copies of the tensors as they are now, to be written to the judge's buffers later, when no call is left that could watch these."""
        self.check(tensors, outputs, what)
        return [_clone(_detach(tensor)) for tensor in tensors]

    def check(
        self,
        tensors: list[Tensor],
        outputs: list[Mapping[str, Any]],
        what: str,
        *,
        exact: bool = True,
    ) -> None:
        """Raises Refusal for tensors that do not have the form that the judge has room for."""
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
