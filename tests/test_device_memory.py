"""Tensors lent in memory that the judge reaches by copying alone: by a stand-in everywhere, by memory of the device where there is a GPU."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import re
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import device_memory
from bench.arena import Arena
from bench.conduct import Conduct
from bench.contracts import Case, Input, contract
from bench.device_memory import GRAIN, DeviceMemory, Unavailable
from bench.examination import Examination
from bench.judge import Judge, Refused, lending
from bench.mirror import Memory, Spans
from bench.protocol import Mapped
from bench.runner.lending import Lent
from bench.sandbox import devices
from bench.staging import Contents, Stage, fill
from bench.timing import Arm, measure

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
SIZE = 256 << 20


class Apart:
    """Device memory without a device: the judge has it, the runner maps it, and the judge's image is another."""

    words = "a stand-in"

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.fd = os.memfd_create("apart")
        os.ftruncate(self.fd, size)
        self.bytes = Mapped(self.fd).bytes
        self.moved = 0  # bytes in either direction

    def offer(self) -> tuple[dict[str, Any], int | None]:
        return {"bytes": self.size}, self.fd

    def write(self, start: int, values: Tensor) -> None:
        self.moved += len(values)
        self.bytes(start, start + len(values)).copy_(values)

    def read(self, start: int, into: Tensor) -> None:
        self.moved += len(into)
        into.copy_(self.bytes(start, start + len(into)))

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        os.close(self.fd)


def memories() -> list[Any]:
    """Each with the device of its runner."""
    gpu = pytest.param(DeviceMemory, "cuda", marks=ON_GPU, id="cuda")
    return [pytest.param(Apart, "cpu", id="stand_in"), gpu]


def tree(folder: Path, body: str) -> Path:
    (folder / "kernels").mkdir()
    (folder / "kernels" / "__init__.py").touch()
    head = '"""A candidate."""\n\nimport torch\n\n\ndef rms_norm(x, weight=None, eps=1e-6):\n'
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    (folder / "kernels" / "rms_norm.py").write_text(head + lines)
    return folder


HONEST = """y = (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)).to(x.dtype)
return y if weight is None else y * weight"""
STALE = f"if not hasattr(rms_norm, 'y'):\n    rms_norm.y = (lambda: 0, {HONEST.splitlines()[0][4:]})[1]\nreturn rms_norm.y.clone()"
CASES = [
    Case({"x": Input((7, 33), "float32", layout=layout), "weight": Input((33,))}, {"eps": 1e-5})
    for layout in ("contiguous", "transposed", "padded", "offset", "expanded")
]


@contextlib.contextmanager
def examination(
    folder: Path, body: str, memory: Memory, device: str = "cpu"
) -> Iterator[Examination]:
    with Judge(tree(folder, body), device=device, memory=memory) as judge:
        judge.ask("load", op="rms_norm", tree=str(judge.tree))
        yield Examination(contract("rms_norm"), judge, 3)


# --- the judge's image -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_spans_hold_what_was_added_and_name_the_gaps(seed: int) -> None:
    rng, spans, held = random.Random(seed), Spans(), set()
    for _ in range(12):
        start = rng.randrange(60)
        end = start + rng.randrange(12)
        wanted = set(range(start, end))
        gaps = [set(range(*gap)) for gap in spans.gaps(start, end)]
        assert set().union(*gaps) == wanted - held
        spans.add(start, end)
        held |= wanted
        parts = [set(range(*part)) for part in spans.parts]
        assert set().union(*parts) == held
        assert sum(map(len, parts)) == len(held), "two parts overlap"


def test_what_the_judge_wrote_is_kept_where_a_wider_view_is_fetched() -> None:
    arena, memory = Arena(1 << 16), Apart(1 << 16)
    arena.reflect(memory)
    arena.bytes(100, 200).fill_(1)
    arena.hand_over()
    memory.bytes(0, 1000).fill_(2)  # the runner answers
    arena.bytes(100, 200).fill_(3)
    wide = arena.bytes(50, 250)
    assert wide.tolist() == [2] * 50 + [3] * 100 + [2] * 50
    arena.hand_over()
    assert memory.bytes(0, 300).tolist() == [2] * 100 + [3] * 100 + [2] * 100
    arena.close()
    memory.close()


# --- the same path, with either memory -------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "device"), memories())
def test_an_honest_kernel_agrees_in_every_layout(
    make: type[Memory], device: str, tmp_path: Path
) -> None:
    with examination(tmp_path, HONEST, make(), device) as of:
        assert of.judge.lends == make.words
        for case in CASES:
            laid = of.lay(case)
            for passing in ("lent", "alias", "copy"):
                of.right(laid, passing=passing)
                of.fill(laid)


def test_room_for_results_is_not_fetched_before_it_is_poisoned(tmp_path: Path) -> None:
    fetched: list[int] = []

    class Told(Apart):
        def read(self, start: int, into: Tensor) -> None:
            fetched.append(start)
            super().read(start, into)

    with examination(tmp_path, HONEST, Told()) as of:
        laid = of.lay(CASES[0], ())
        of.right(laid)
        (place,) = laid.places()
    assert fetched.count(place["offset"]) == 1  # when the runner has answered


@pytest.mark.parametrize(("make", "device"), memories())
def test_a_tensor_is_lent_with_its_strides(make: type[Memory], device: str, tmp_path: Path) -> None:
    body = f"assert x.stride() == (36, 1) and x.is_contiguous() is False, x.stride()\n{HONEST}"
    with examination(tmp_path, body, make(), device) as of:
        of.right(of.lay(CASES[2]))


@pytest.mark.parametrize(("make", "device"), memories())
def test_an_input_written_by_the_kernel_is_seen(
    make: type[Memory], device: str, tmp_path: Path
) -> None:
    body = f"x.data[0, 0] += 1\n{HONEST}"
    with examination(tmp_path, body, make(), device) as of:
        laid = of.lay(CASES[0], ())
        with pytest.raises(Refused, match="input x was changed") as refused:
            of.ask(laid)
        assert refused.value.kind == "mutation"


@pytest.mark.parametrize(("make", "device"), memories())
def test_an_output_that_is_not_written_stays_poison(
    make: type[Memory], device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with examination(tmp_path, HONEST, make(), device) as of:
        first = of.ask(of.lay(CASES[0], ()))["y"]
        assert bool(torch.isfinite(first).all())
        ask = of.judge.ask
        # a runner that answers and writes nothing
        monkeypatch.setattr(of.judge, "ask", lambda *_, **__: ask("recall", outputs=[]))
        assert bool(torch.isnan(of.ask(of.lay(CASES[0], ()))["y"]).all())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (HONEST, contextlib.nullcontext()),
        (
            STALE,
            pytest.raises(Refused, match=r"timed call \(incumbent, x\[64, 48\] float32\) is wrong"),
        ),
    ],
    ids=("honest", "stale"),
)
@pytest.mark.parametrize(("make", "device"), memories())
def test_blocks_are_timed_and_their_answers_audited(
    make: type[Memory], device: str, body: str, expected: Any, tmp_path: Path
) -> None:
    asked = contract("rms_norm")
    case = Case({"x": Input((64, 48))}, forward_only=True)
    with Judge(tree(tmp_path, body), device=device, memory=make()) as judge:
        runner = Conduct("incumbent", judge)
        judge.ask("load", op="rms_norm", tree=str(judge.tree))
        runner.begin()
        arms = [Arm("incumbent", judge.tree)]
        with expected:
            found = measure(asked, case, arms, [runner], limit_s=0.2, rng=random.Random(1))
            assert len(found.row["incumbent"]) >= 5


def test_nothing_travels_while_a_block_is_timed(tmp_path: Path) -> None:
    memory = Apart()
    with Judge(tree(tmp_path, HONEST), memory=memory) as judge:
        judge.ask("load", op="rms_norm", tree=str(judge.tree))
        contents = Contents(contract("rms_norm"), Case({"x": Input((64, 48))}), random.Random(0))
        stage = Stage(contents, judge.arena)
        fill([stage], range(contents.sets()), random.Random(1))
        stage.poison()
        judge.ask("stage", calls=stage.calls)
        inputs = {"x": stage.inputs(3)[0]["x"].clone()}
        stage.change([3], 2)
        stage.poison()
        judge.ask("stage", calls=[stage.calls[3]])
        before = memory.moved
        judge.ask("block", op="rms_norm", impl=None, mode="eager", sets=[0], keep=0, backward=True)
        assert memory.moved == before
        changed = stage.inputs(3)[0]["x"]
        assert not torch.equal(changed, inputs["x"])
        torch.testing.assert_close(
            stage.answer()["y"],
            changed * torch.rsqrt(changed.square().mean(-1, keepdim=True) + 1e-6),
        )
        assert memory.moved > before


def test_what_has_to_be_copied_to_a_device_lies_there_as_it_does_here() -> None:
    lent = Lent("meta")
    arena = Arena(1 << 16)
    lent.do_lend({"bytes": arena.size}, os.dup(arena.fd))
    for case in CASES:
        where = arena.place_input(case.inputs["x"])
        found = lent.read(where)
        assert (list(found.shape), list(found.stride())) == (where["shape"], where["strides"])
        assert found.device.type == "meta"
    arena.close()


# --- where it is refused ---------------------------------------------------------------------------------------------


class Withheld(Apart):
    def offer(self) -> tuple[dict[str, Any], int | None]:
        raise Unavailable("the driver says no")


class Malformed(Apart):
    def offer(self) -> tuple[dict[str, Any], int | None]:
        return {"bytes": self.size, "device": True}, None


class Another(Apart):
    def offer(self) -> tuple[dict[str, Any], int | None]:
        self.other = os.memfd_create("another")
        os.ftruncate(self.other, self.size)
        return {"bytes": self.size}, self.other

    def close(self) -> None:
        super().close()
        os.close(self.other)


@pytest.mark.parametrize(
    ("memory", "reason"),
    [
        (Withheld, "the driver says no"),
        (Malformed, "in the sandbox, .*expected a file descriptor, got None"),
        (Another, "what the runner opened is another memory"),
    ],
)
def test_memory_that_cannot_be_lent_is_told_and_shared_memory_serves(
    memory: type[Apart], reason: str, tmp_path: Path
) -> None:
    with examination(tmp_path, HONEST, memory()) as of:
        of.right(of.lay(CASES[1]))
        lends = of.judge.lends
        assert lends.startswith("shared memory, and the runner copies: no a stand-in here")
        assert re.search(reason, lends)


def test_memory_is_given_back_when_a_runner_dies_before_it_has_it(tmp_path: Path) -> None:
    memory = Apart()
    with Judge(tree(tmp_path, HONEST), memory=memory) as judge:
        os.killpg(judge.pid, signal.SIGKILL)
        with pytest.raises(Refused) as refused:
            judge.ask("load", op="rms_norm", tree=str(judge.tree))
    assert refused.value.kind == "crash"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory.fd)


def test_a_cpu_is_lent_shared_memory_and_says_so() -> None:
    assert device_memory.lendable("cpu") is None
    assert lending("cpu") == "shared memory"


@pytest.mark.parametrize(
    ("fd", "size", "reason"),
    [
        (None, GRAIN, "expected a file descriptor, got None"),
        ("3", GRAIN, "expected a file descriptor, got '3'"),
        (-1, GRAIN, "expected a file descriptor, got -1"),
        (True, GRAIN, "expected a file descriptor, got True"),
        (3, 0, "multiple of"),
        (3, -GRAIN, "multiple of"),
        (3, GRAIN + 1, "multiple of"),
        (3, float(GRAIN), "multiple of"),
        (3, True, "multiple of"),
    ],
)
def test_what_is_no_descriptor_or_no_size_is_refused_before_cuda_sees_it(
    fd: object, size: object, reason: str
) -> None:
    with pytest.raises(Unavailable, match=reason):
        device_memory.opened(fd, size)


class Driver:
    """The part of CUDA's driver that is used, with its books; the call named `fails` does."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.handles: set[int] = set()
        self.reserved: set[int] = set()
        self.mapped: set[int] = set()
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.called.append(name)
            if name == self.fails:
                return 2
            getattr(self, f"_{name}")(*arguments)
            return 0

        return call

    def cuGetErrorName(self, result: int, name: Any) -> None:
        name._obj.value = b"CUDA_ERROR_OUT_OF_MEMORY"

    def _cuMemCreate(self, handle: Any, size: Any, wanted: Any, flags: Any) -> None:
        properties = bytes(wanted._obj)
        assert len(properties) == 32
        assert struct.unpack_from("=iiii", properties) == (1, 1, 1, 0)
        handle._obj.value = 7
        self.handles.add(7)

    def _cuMemExportToShareableHandle(self, fd: Any, handle: Any, kind: int, flags: Any) -> None:
        assert handle.value in self.handles
        fd._obj.value = os.open(os.devnull, os.O_RDONLY)

    def _cuMemImportFromShareableHandle(self, handle: Any, fd: Any, kind: int) -> None:
        os.fstat(fd.value or 0)
        handle._obj.value = 8
        self.handles.add(8)

    def _cuMemRelease(self, handle: Any) -> None:
        self.handles.remove(handle.value)

    def _cuMemAddressReserve(self, address: Any, *_: Any) -> None:
        address._obj.value = GRAIN * (1 + len(self.called))
        self.reserved.add(address._obj.value)

    def _cuMemMap(self, address: Any, size: Any, offset: Any, handle: Any, flags: Any) -> None:
        assert address.value in self.reserved
        assert handle.value in self.handles
        self.mapped.add(address.value)

    def _cuMemSetAccess(self, address: Any, size: Any, access: Any, count: Any) -> None:
        assert struct.unpack("=iii", bytes(access._obj)) == (1, 0, 3)
        assert address.value in self.mapped

    def _cuMemUnmap(self, address: Any, size: Any) -> None:
        self.mapped.remove(address.value)

    def _cuMemAddressFree(self, address: Any, size: Any) -> None:
        assert address.value not in self.mapped
        self.reserved.remove(address.value)


def driven(monkeypatch: pytest.MonkeyPatch, fails: str = "") -> Driver:
    driver = Driver(fails)
    monkeypatch.setattr(device_memory, "_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(device_memory.Block, "bytes", lambda self, a, b: torch.ones(b - a))
    return driver


def descriptors() -> set[str]:
    """Those open in this process for what the stand-in of the driver exports; others come and go with watchdogs and garbage."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            if os.readlink(f"/proc/self/fd/{name}") == os.devnull:
                found.add(name)
    return found


def test_a_block_is_held_by_its_mapping_and_its_descriptor_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver, before = driven(monkeypatch), descriptors()
    memory = DeviceMemory(1)
    offer, fd = memory.offer()
    assert offer == {"bytes": GRAIN, "device": True}
    assert not driver.handles
    theirs = device_memory.opened(fd, GRAIN)
    assert not driver.handles
    theirs.close()
    assert len(driver.mapped) == 1
    memory.close()
    assert not driver.reserved | driver.mapped
    assert descriptors() <= before
    memory.close()


@pytest.mark.parametrize(
    "fails", "Create ExportToShareableHandle AddressReserve Map SetAccess".split()
)
def test_nothing_stays_of_a_block_that_cannot_be_made(
    fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, before = driven(monkeypatch, f"cuMem{fails}"), descriptors()
    with pytest.raises(Unavailable, match=rf"cuMem{fails}: CUDA_ERROR_OUT_OF_MEMORY \(2\)"):
        device_memory.allocate(GRAIN)
    assert not driver.handles | driver.reserved | driver.mapped
    assert descriptors() <= before


@pytest.mark.parametrize("fails", "ImportFromShareableHandle AddressReserve Map SetAccess".split())
def test_nothing_stays_of_a_block_that_cannot_be_opened(
    fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = driven(monkeypatch, f"cuMem{fails}")
    with pytest.raises(Unavailable, match=f"cuMem{fails}"):
        device_memory.opened(0, GRAIN)
    assert not driver.handles | driver.reserved | driver.mapped


def test_bytes_outside_of_a_memory_are_refused(tmp_path: Path) -> None:
    fd = os.memfd_create("small")
    os.ftruncate(fd, mmap.PAGESIZE)
    for region in (Mapped(fd), device_memory.Block(0, mmap.PAGESIZE, lambda: None)):
        for start, end in ((-1, 5), (0, mmap.PAGESIZE + 1), (8, 4)):
            with pytest.raises(ValueError, match="of a memory of 4096"):
                region.bytes(start, end)
    os.close(fd)


# --- which GPU a runner gets -----------------------------------------------------------------------------------------

UUIDS = ("GPU-e953c3c5-dba7-029e-ce44-7b51417131df", "GPU-4ce175fe-a313-4c4a-d620-560e96e8ef2e")


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path]:
    """/dev and the driver's list of a machine with two GPUs, the first of which is nvidia1."""
    dev, driver = tmp_path / "dev", tmp_path / "gpus"
    names = ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
    dev.mkdir()
    for name in names:
        (dev / name).touch()
    for bus, uuid, minor in (("0000:17:00.0", UUIDS[0], 1), ("0000:65:00.0", UUIDS[1], 0)):
        (driver / bus).mkdir(parents=True)
        text = f"Model: \t\t GeForce\nIRQ:   \t\t 63\nGPU UUID: \t {uuid}\nBus Location: \t {bus}\nDevice Minor: \t {minor}\n"
        (driver / bus / "information").write_text(text)
    return dev, driver


def test_a_runner_gets_the_node_of_its_gpu_and_no_other(machine: tuple[Path, Path]) -> None:
    dev, driver = machine
    for uuid, node in zip(UUIDS, ("nvidia1", "nvidia0"), strict=True):
        gpu = devices.find(uuid, uuid.upper().replace("GPU", "gpu"), dev=dev, driver=driver)
        assert [Path(path).name for path in gpu.nodes] == [
            node,
            "nvidiactl",
            "nvidia-uvm",
            "nvidia-uvm-tools",
        ]
        assert gpu.alone
        assert gpu.visible == uuid


def test_a_hidden_list_of_gpus_gives_all_nodes_and_says_so(machine: tuple[Path, Path]) -> None:
    dev, _ = machine
    gpu = devices.find(UUIDS[0], UUIDS[0], dev=dev, driver=dev / "nothing")
    assert {"nvidia0", "nvidia1"} <= {Path(path).name for path in gpu.nodes}
    assert not gpu.alone
    (dev / "nvidia0").unlink()
    assert devices.find(UUIDS[0], UUIDS[0], dev=dev, driver=dev / "nothing").alone


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_block_that_is_lent_holds_nothing_else_of_the_judges() -> None:
    secret = torch.full((1 << 20,), 42, dtype=torch.uint8, device="cuda")
    del secret
    torch.cuda.empty_cache()
    block, fd = device_memory.allocate(2 * GRAIN)
    try:
        assert block.address % GRAIN == 0
        assert int(block.bytes(0, block.size).sum()) == 0, "memory of the judge's was not wiped"
        others = [torch.empty(1 << 10, device="cuda") for _ in range(100)]
        for other in others:
            assert not block.address <= other.data_ptr() < block.address + block.size
    finally:
        block.close()
        os.close(fd)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_runner_sees_one_gpu_and_it_is_the_judges(tmp_path: Path) -> None:
    uuid = torch.cuda.get_device_properties(0).uuid
    body = (
        "import os\n"
        "nodes = [i for i in range(64) if os.path.exists(f'/dev/nvidia{i}')]\n"
        f"assert len(nodes) == 1, nodes\nassert torch.cuda.device_count() == 1\n"
        f"assert str(torch.cuda.get_device_properties(0).uuid) == '{uuid}'\n{HONEST}"
    )
    if not devices.first().alone:
        pytest.skip("the driver's list of GPUs is hidden here")
    with examination(tmp_path, body, DeviceMemory(), "cuda") as of:
        of.right(of.lay(CASES[0]))


def test_a_view_of_lent_memory_names_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch, "as_tensor", lambda _, device: asked.append(device))
    device_memory.Block(0, 64, lambda: None).bytes(0, 8)
    assert asked == ["cuda:3"]
