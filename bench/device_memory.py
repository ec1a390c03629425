"""Memory of a GPU that judge and runner share: the judge allocates it and exports it as a file descriptor, the runner maps what it is sent.

CUDA's virtual memory management, through the driver's C interface. What torch.multiprocessing uses does not serve here: some machines refuse handles
of CUDA IPC across PID namespaces (an H100 with driver 580 took them), and every runner has one of its own; it would export a whole segment of the
caching allocator, with whatever other tensors of the judge lie there; and it counts references in files of /dev/shm, which a runner does not see.
One block is created for this purpose alone, which no setting of the allocator reaches. It is zeroed, since a driver hands freed memory of the same
process out again as it is, and a multiple of 2 MiB, the least that can be mapped (CUDA C++ Programming Guide, Virtual Memory Management).

The block lives until the last process has unmapped it and closed its descriptor.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

GRAIN = 2 << 20
# Two input sets of the largest of the trial's shapes take 2 GiB and red zones, and as much again in float32.
DEVICE_BYTES = 5 << 30
# Values of cuda.h's enumerations.
_PINNED, _ON_DEVICE, _DESCRIPTOR, _READ_WRITE = 1, 1, 1, 3

_Address = ctypes.c_uint64
_Handle = ctypes.c_uint64
_Size = ctypes.c_size_t
_Flags = ctypes.c_uint64


class Unavailable(RuntimeError):
    """This machine, or what was sent, gives no shared device memory; the message says why."""


class _Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


class _Properties(ctypes.Structure):
    """CUmemAllocationProp: 32 bytes; `flags` are compression and the like, all off."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("exported_as", ctypes.c_int),
        ("location", _Location),
        ("windows", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    ]


class _Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = [("location", _Location), ("flags", ctypes.c_int)]


class Block:
    """A range of device memory, mapped into this process, as a Region."""

    def __init__(self, address: int, size: int, unmap: Callable[[], None]) -> None:
        self.address, self.size, self.close = address, size, unmap

    def bytes(self, start: int, end: int) -> Tensor:
        if not 0 <= start <= end <= self.size:
            raise ValueError(f"bytes {start} to {end} of a memory of {self.size}")
        if start == end:
            return torch.empty(0, dtype=torch.uint8, device="cuda")
        # With its number torch does not ask the driver whose address this is.
        number = torch.cuda.current_device()
        return torch.as_tensor(_Bytes(self, start, end), device=f"cuda:{number}")


class _Bytes:
    """From this torch makes a tensor without a copy; the tensor keeps it alive, and it keeps the block alive."""

    def __init__(self, block: Block, start: int, end: int) -> None:
        self.block = block
        self.__cuda_array_interface__ = {
            "shape": (end - start,),
            "typestr": "|u1",
            "data": (block.address + start, False),
            "strides": None,
            "version": 3,
        }


class DeviceMemory:
    """The judge's side: a block of its own on the GPU, allocated when it is offered. A `bench.mirror.Memory`."""

    words = "device memory"

    def __init__(self, size: int = DEVICE_BYTES) -> None:
        self.size = -(-size // GRAIN) * GRAIN
        self._block: Block | None = None
        self._fd = -1

    def offer(self) -> tuple[dict[str, Any], int | None]:
        self._block, self._fd = allocate(self.size)
        return {"bytes": self.size, "device": True}, self._fd

    def write(self, start: int, values: Tensor) -> None:
        self._bytes(start, start + len(values)).copy_(values)

    def read(self, start: int, into: Tensor) -> None:
        into.copy_(self._bytes(start, start + len(into)))

    def synchronize(self) -> None:
        # a copy from pageable memory returns when it is staged, not when it has arrived
        torch.cuda.synchronize()

    def close(self) -> None:
        if self._block is not None:
            self._block.close()
            os.close(self._fd)
            self._block = None

    def _bytes(self, start: int, end: int) -> Tensor:
        if self._block is None:
            raise Unavailable("this memory has not been offered to anybody")
        return self._block.bytes(start, end)


def lendable(device: str) -> DeviceMemory | None:
    """What a Judge of a device is given as `memory`: None on a CPU, where shared memory serves."""
    return DeviceMemory() if device == "cuda" else None


def allocate(size: int) -> tuple[Block, int]:
    """A zeroed block of `size` bytes, a multiple of GRAIN, and the descriptor by which another process opens it. Raises Unavailable."""
    handle, fd = _Handle(), ctypes.c_int(-1)
    wanted = _Properties(_PINNED, _DESCRIPTOR, _here())
    _call("cuMemCreate", ctypes.byref(handle), _Size(size), ctypes.byref(wanted), _Flags(0))
    with ExitStack() as undo:
        try:
            _call("cuMemExportToShareableHandle", ctypes.byref(fd), handle, _DESCRIPTOR, _Flags(0))
            undo.callback(os.close, fd.value)
            block = _mapped(handle, size)
        finally:  # mapping and descriptor hold the memory
            _call("cuMemRelease", handle)
        undo.pop_all()
    block.bytes(0, size).zero_()
    torch.cuda.synchronize()
    return block, fd.value


def opened(fd: object, size: object) -> Block:
    """The block behind a descriptor that another process has exported; the descriptor stays open.

    Raises Unavailable for what is no such descriptor, and where CUDA refuses.
    """
    if type(fd) is not int or fd < 0:
        raise Unavailable(f"expected a file descriptor, got {fd!r}")
    if type(size) is not int or size <= 0 or size % GRAIN:
        raise Unavailable(f"expected a size that is a multiple of {GRAIN} bytes, got {size!r}")
    handle = _Handle()
    _call("cuMemImportFromShareableHandle", ctypes.byref(handle), ctypes.c_void_p(fd), _DESCRIPTOR)
    try:
        return _mapped(handle, size)
    finally:
        _call("cuMemRelease", handle)


def _mapped(handle: ctypes.c_uint64, size: int) -> Block:
    """The memory of a handle, mapped into this process for the current device to read and write. Where it raises Unavailable, nothing is mapped."""
    address, access = _Address(), _Access(_here(), _READ_WRITE)
    with ExitStack() as undo:
        _call("cuMemAddressReserve", ctypes.byref(address), _Size(size), _Size(0), _Address(0), _Flags(0))  # fmt: skip
        undo.callback(_call, "cuMemAddressFree", address, _Size(size))
        _call("cuMemMap", address, _Size(size), _Size(0), handle, _Flags(0))
        undo.callback(_call, "cuMemUnmap", address, _Size(size))
        _call("cuMemSetAccess", address, _Size(size), ctypes.byref(access), _Size(1))
        return Block(address.value, size, undo.pop_all().close)


def _here() -> _Location:
    _driver()  # raises Unavailable where torch would say less
    return _Location(_ON_DEVICE, torch.cuda.current_device())


def _call(function: str, *arguments: Any) -> None:
    """One call of the CUDA driver in torch's own context. Raises Unavailable with the driver's name for what went wrong."""
    driver = _driver()
    torch.cuda.synchronize()  # makes torch's context the current one of this thread
    result = getattr(driver, function)(*arguments)
    if result:
        name = ctypes.c_char_p()
        driver.cuGetErrorName(result, ctypes.byref(name))
        said = (name.value or b"an error without a name").decode()
        raise Unavailable(f"{function}: {said} ({result})")


@functools.cache
def _driver() -> ctypes.CDLL:
    if not torch.cuda.is_available():
        raise Unavailable("torch sees no GPU here")
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise Unavailable(f"the CUDA driver cannot be loaded: {error}") from None
