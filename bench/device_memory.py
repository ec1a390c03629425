"""Memory of a GPU that judge and runner share: the judge allocates and exports it, the runner opens it. CUDA IPC through the driver's C interface.

torch.multiprocessing is not used for it. What that exports is a whole segment of the caching allocator, with whatever other tensors of the
judge lie there; it counts references in files of /dev/shm, which a runner does not see; and with expandable segments it needs pidfd_getfd,
which the sandbox refuses. Here one block is allocated by cuMemAlloc for this purpose alone, which no setting of the allocator reaches. It is
zeroed, since a driver hands freed memory of the same process out again as it is, and a multiple of 2 MiB: smaller blocks may share a page
with others, and a handle opens whole pages (CUDA C++ Programming Guide, Interprocess Communication).

On the wire a handle is text: base64 of its 64 bytes. The importer must be another process than the exporter.
"""

from __future__ import annotations

import base64
import binascii
import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

GRAIN = 2 << 20
# Two sets of the largest case of a trial's shapes take 2 GiB and red zones, and as much again in float32.
DEVICE_BYTES = 5 << 30
HANDLE_BYTES = 64  # CU_IPC_HANDLE_SIZE
_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS, the only flag there is

_Address = ctypes.c_uint64


class Unavailable(RuntimeError):
    """This machine, or this handle, gives no shared device memory; the message says why."""


class _Handle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_ubyte * HANDLE_BYTES)]


class Block:
    """A range of device memory as a Region; `close` undoes what made it."""

    def __init__(self, address: int, size: int, undo: str) -> None:
        self.address, self.size, self._undo = address, size, undo

    def bytes(self, start: int, end: int) -> Tensor:
        if not 0 <= start <= end <= self.size:
            raise ValueError(f"bytes {start} to {end} of a memory of {self.size}")
        if start == end:
            return torch.empty(0, dtype=torch.uint8, device="cuda")
        return torch.as_tensor(_Bytes(self, start, end), device="cuda")

    def close(self) -> None:
        _call(self._undo, _Address(self.address))


class _Bytes:
    """What torch makes a tensor of without a copy; the tensor keeps it, and it keeps the block."""

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

    words = "CUDA IPC"

    def __init__(self, size: int = DEVICE_BYTES) -> None:
        self.size = -(-size // GRAIN) * GRAIN
        self._block: Block | None = None

    def offer(self) -> tuple[dict[str, Any], int | None]:
        self._block = allocate(self.size)
        return {"handle": export(self._block), "bytes": self.size}, None

    def write(self, start: int, values: Tensor) -> None:
        self._bytes(start, start + len(values)).copy_(values)

    def read(self, start: int, into: Tensor) -> None:
        into.copy_(self._bytes(start, start + len(into)))

    def settle(self) -> None:
        # a copy from pageable memory returns when it is staged, not when it has arrived
        torch.cuda.synchronize()

    def close(self) -> None:
        if self._block is not None:
            self._block.close()
            self._block = None

    def _bytes(self, start: int, end: int) -> Tensor:
        if self._block is None:
            raise Unavailable("this memory has not been offered to anybody")
        return self._block.bytes(start, end)


def lendable(device: str) -> DeviceMemory | None:
    """What a Judge of a device is given as `memory`: None for a CPU, with which shared memory is shared."""
    return DeviceMemory() if device == "cuda" else None


def allocate(size: int) -> Block:
    """A zeroed block of `size` bytes, a multiple of GRAIN. Raises Unavailable."""
    address = _Address()
    _call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
    block = Block(address.value, size, "cuMemFree_v2")
    block.bytes(0, size).zero_()
    torch.cuda.synchronize()
    return block


def export(block: Block) -> str:
    """The handle by which another process opens the block, as text. Raises Unavailable."""
    handle = _Handle()
    _call("cuIpcGetMemHandle", ctypes.byref(handle), _Address(block.address))
    return base64.b64encode(bytes(handle.reserved)).decode()


def opened(handle: object, size: object) -> Block:
    """The block that another process has exported. Raises Unavailable for a handle or a size that is malformed, and where CUDA refuses."""
    raw, count = parse(handle, size)
    address = _Address()
    _call(
        "cuIpcOpenMemHandle_v2",
        ctypes.byref(address),
        _Handle.from_buffer_copy(raw),
        ctypes.c_uint(_PEER_ACCESS),
    )
    return Block(address.value, count, "cuIpcCloseMemHandle")


def parse(handle: object, size: object) -> tuple[bytes, int]:
    """A handle and a size as they came over the wire, checked. Raises Unavailable."""
    if not isinstance(handle, str):
        raise Unavailable(f"expected a handle as text, got {type(handle).__name__}")
    try:
        raw = base64.b64decode(handle, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unavailable(f"expected a handle in base64: {error}") from None
    if len(raw) != HANDLE_BYTES:
        raise Unavailable(f"expected a handle of {HANDLE_BYTES} bytes, got {len(raw)}")
    if type(size) is not int or size <= 0 or size % GRAIN:
        raise Unavailable(f"expected a size that is a multiple of {GRAIN} bytes, got {size!r}")
    return raw, size


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
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise Unavailable(f"the CUDA driver cannot be loaded: {error}") from None
    driver.cuMemAlloc_v2.argtypes = [ctypes.POINTER(_Address), ctypes.c_size_t]
    driver.cuMemFree_v2.argtypes = [_Address]
    driver.cuIpcGetMemHandle.argtypes = [ctypes.POINTER(_Handle), _Address]
    driver.cuIpcOpenMemHandle_v2.argtypes = [ctypes.POINTER(_Address), _Handle, ctypes.c_uint]
    driver.cuIpcCloseMemHandle.argtypes = [_Address]
    driver.cuGetErrorName.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
    return driver
