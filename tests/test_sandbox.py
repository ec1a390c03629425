"""The sandbox: what a candidate tries and does not get, with every layer that this machine has, and with some of them alone.

The attempts are functions of tests/escapes.py. Bombs go off in sandboxes with small limits: half a gigabyte, 64 processes.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from lab_tree import write

from bench import sandbox
from bench.judge import CACHE, Judge, Refused
from bench.sandbox import isolation
from bench.sandbox.limits import Limits, default

ROOT = Path(__file__).resolve().parent.parent
ESCAPES = Path(__file__).with_name("escapes.py")
NAMES = [
    node.name
    for node in ast.parse(ESCAPES.read_text()).body
    if isinstance(node, ast.FunctionDef)
    and node.name not in ("call", "outcomes")
    and not node.name.startswith("_")
]
SMALL = Limits(
    memory=768 << 20, data=4 << 30, processes=64, file=64 << 20, disk=96 << 20, output=8 << 20
)
# Sets of layers: all that this machine has, and each part without which the others must do.
BARE = ("capabilities", "landlock", "seccomp")
SETS = {
    "all": tuple(sorted(isolation.held())),
    "own launcher": ("namespaces", *BARE),
    "without namespaces": BARE,
}
FUNCTION = "\ndef rms_norm(x, weight=None, eps=1e-6):\n    return x\n"


def lacking(layers: Collection[str]) -> str:
    """Which of the layers this machine does not give, as a reason to skip."""
    given = {layer.name for layer in isolation.layers() if layer.holds} | isolation.held()
    return ", ".join(sorted(set(layers) - given))


def tree(folder: Path, body: str) -> Path:
    """A tree whose kernels/rms_norm.py runs `body` when it is loaded."""
    text = '"""A candidate."""\n' + body + FUNCTION
    write(folder, {"kernels/__init__.py": "", "kernels/rms_norm.py": text})
    return folder


def load(
    folder: Path, layers: Collection[str] | None = None, limits: Limits = SMALL, timeout: float = 60
) -> None:
    with Judge(folder, layers=layers, limits=limits) as judge:
        judge.ask("load", op="rms_norm", tree=str(folder), timeout=timeout)


@pytest.fixture(params=SETS)
def layers(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return layers_of(request.param)


def layers_of(name: str) -> tuple[str, ...]:
    """The layers of a set; skips the test where this machine lacks one."""
    if missing := lacking(SETS[name]):
        pytest.skip(f"not on this machine: {missing}")
    return SETS[name]


class World:
    """What lies outside, for the attempts to aim at; one for all of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.marker = folder, f"lab-escape-{os.getpid()}-{folder.name}"
        self.signals: list[int] = []
        signal.signal(signal.SIGURG, lambda number, frame: self.signals.append(number))
        for name in ("val.bin", "ledger.sqlite"):
            (folder / name).write_text("secret")
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind(f"\0{self.marker}")
        self.datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.datagram.bind(f"\0{self.marker}-datagram")
        self.file = socket.socket(socket.AF_UNIX)
        with contextlib.chdir(folder):  # the path of a socket has 107 bytes at most
            self.file.bind("socket")
        for listener in (self.abstract, self.file):
            listener.listen()
        self.before = self.state()

    def targets(self) -> dict[str, object]:
        return {
            "judge": os.getpid(),
            "folder": str(self.folder),
            "home": str(Path.home()),
            "marker": self.marker,
            "port": self.tcp.getsockname()[1],
            "udp": self.udp.getsockname()[1],
            "abstract": self.marker,
            "datagram": f"{self.marker}-datagram",
            "file": SMALL.file,
        }

    def state(self) -> object:
        """What an attempt could have changed."""
        files = {
            p.name: (p.lstat().st_mode, p.lstat().st_mtime, p.lstat().st_nlink)
            for p in self.folder.iterdir()
        }
        places = ("/tmp", "/etc", "/dev/shm", str(Path.home()), str(CACHE))
        strays = [place for place in places if Path(place, self.marker).exists()]
        return (
            self.signals[:],
            files,
            strays,
            os.sched_getaffinity(0),
            os.getpriority(os.PRIO_PROCESS, 0),
        )

    def arrived(self) -> list[str]:
        """Sockets on which something came in."""
        found = []
        for name in ("tcp", "udp", "abstract", "datagram", "file"):
            listener = getattr(self, name)
            listener.setblocking(False)
            try:
                listener.accept() if listener.type == socket.SOCK_STREAM else listener.recv(1)
            except BlockingIOError:
                continue
            found.append(name)
        return found

    def close(self) -> None:
        for name in ("tcp", "udp", "abstract", "datagram", "file"):
            getattr(self, name).close()
        signal.signal(signal.SIGURG, signal.SIG_DFL)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("judge"))
    os.environ["LAB_TEST_KEY"] = "secret"
    yield made
    del os.environ["LAB_TEST_KEY"]
    made.close()


@functools.cache
def attempts(world: World, layers: tuple[str, ...]) -> dict[str, str]:
    """What became of every attempt in one sandbox of these layers."""
    folder = tree(world.folder.parent / f"tree-{'-'.join(layers)}", ESCAPES.read_text())
    (folder / "kernels" / "targets.json").write_text(json.dumps(world.targets()))
    with pytest.raises(Refused, match="OUTCOMES") as refused:
        load(folder, layers)
    text = str(refused.value)
    found: dict[str, str] = json.loads(text[text.rindex("OUTCOMES") + 9 : text.rindex(" END")])
    return found


# Calls with arguments of zeros, which a kernel without the filter answers with EINVAL or EFAULT.
FILTERED = ("io_uring", "bpf", "performance_counters", "kernel_keys", "a_filter_of_its_own")


@pytest.mark.parametrize("attempt", NAMES)
def test_an_attempt_to_escape_is_refused(
    attempt: str, layers: tuple[str, ...], world: World
) -> None:
    became = attempts(world, layers)[attempt]
    # the other names are those of a slip in the attempt itself
    slips = ("NameError", "AttributeError", "TypeError", "ArgumentError", "SyntaxError")
    assert became not in ("got through", *slips)
    if attempt in FILTERED and "seccomp" in layers:
        assert became == "PermissionError"


def test_nothing_outside_has_changed_and_nothing_arrived(
    layers: tuple[str, ...], world: World
) -> None:
    assert set(attempts(world, layers)) == set(NAMES)
    assert world.state() == world.before
    assert world.arrived() == []


def test_the_attempts_get_through_without_a_sandbox(tmp_path: Path, world: World) -> None:
    """Else they would show nothing. Only those that leave the machine as it was."""
    harmless = ["tcp_connect", "udp_send", "abstract_socket", "abstract_datagram", "socket_file", "datagram_by_a_pair",
                "read_the_validation_data", "read_the_ledger", "read_the_environment", "read_the_environment_of_the_judge",
                "signal_the_judge", "signal_the_parent", "write_outside", "write_in_tmp", "change_the_mode_of_a_file",
                "a_file_beyond_its_size", "change_the_time_of_a_file", "read_through_a_symlink"]  # fmt: skip
    yama = Path("/proc/sys/kernel/yama/ptrace_scope")
    if not yama.exists() or yama.read_text().strip() == "0":  # 1, as on Ubuntu: a child may not
        harmless.append("open_the_memory_of_the_judge")
    before = signal.getsignal(signal.SIGURG)
    own = World(tmp_path)
    (tmp_path / "targets.json").write_text(json.dumps(own.targets()))
    shutil.copy(ESCAPES, tmp_path / "escapes.py")
    script = f"import json, escapes\nescapes.ATTEMPTS = {harmless!r}\nprint(json.dumps(escapes.outcomes()))"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "LAB_TEST_KEY": "secret"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    own.close()
    signal.signal(signal.SIGURG, before)
    Path("/tmp", own.marker).unlink()
    assert {
        name: told for name, told in json.loads(done.stdout).items() if told != "got through"
    } == {}


BOMBS = {
    # each child forks as well
    "processes": "import os, time\nfor _ in range(9):\n    os.fork()\ntime.sleep(10)",
    "memory": "kept = []\nwhile True:\n    kept.append(bytearray(b'x') * (16 << 20))",
    "memory of many": (
        "import os, time\nfor _ in range(9):\n    if os.fork() == 0:\n"
        "        kept = bytearray(b'x') * (120 << 20)\n        time.sleep(10)\ntime.sleep(10)"
    ),
    "files": (
        "import os, itertools\nfor i in itertools.count():\n"
        "    open(os.environ['TMPDIR'] + f'/{i}', 'wb').write(bytes(1 << 20))"
    ),
    "one file": (
        "import os\nwith open(os.environ['TMPDIR'] + '/one', 'wb') as file:\n"
        "    while True: file.write(bytes(1 << 20))"
    ),
    "output": "for _ in range(1 << 10): print('x' * (1 << 20))",
    "exit": "import os\nos._exit(0)",
    "exit by signal": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "closed connection": "import os\nos.closerange(0, 4096)",
    "system exit": "raise SystemExit(0)",
}
ENDINGS = ("exit", "exit by signal", "closed connection", "system exit")
EXPECTED = {
    "processes": "processes|memory|BlockingIOError",
    "memory": "memory|MemoryError",
    "memory of many": "memory|MemoryError",
    "files": "No space left|MiB of files",
    "one file": "File too large|No space left",
    # the file-size limit or the watchdog, whichever is first
    "output": "printed more than 8 MiB|File too large",
}
ORPHAN = """import os, subprocess
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 4096)
        os.execv("/bin/sleep", ["sleep", "MARK"])
    os._exit(0)
os.wait()
"""


def running(mark: str) -> list[int]:
    """Processes with this word on their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "cmdline").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def becomes(there: bool, mark: str, seconds: float = 5) -> bool:
    """Whether such a process is there, or gone, within some seconds."""
    deadline = time.monotonic() + seconds
    while bool(running(mark)) != there and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(running(mark)) == there


def goes_off(bomb: str, layers: tuple[str, ...], folder: Path) -> None:
    """And is refused, soon and for what it is."""
    with Judge(tree(folder, BOMBS[bomb]), layers=layers, limits=SMALL) as judge:
        # Its start takes as long as the machine lets it.
        judge.ask("recall", outputs=[])
        started = time.monotonic()
        with pytest.raises(Refused, match=EXPECTED.get(bomb, ".")) as refused:
            judge.ask("load", op="rms_norm", tree=str(folder), timeout=60)
        took = time.monotonic() - started
    assert bomb not in ENDINGS or refused.value.kind == "crash"
    assert took < 25


# What ends the connection is the same under all layers, and goes off once, under all of them (below).
# What one process does is limited alike with and without namespaces.
@pytest.mark.parametrize(
    ("bomb", "layers"),
    [
        *((bomb, "without namespaces") for bomb in sorted(set(BOMBS) - set(ENDINGS))),
        ("processes", "own launcher"),
        ("memory of many", "own launcher"),
    ],
)
def test_a_bomb_ends_in_a_refusal(bomb: str, layers: str, tmp_path: Path) -> None:
    goes_off(bomb, layers_of(layers), tmp_path)


def test_an_orphan_in_a_session_of_its_own_dies_with_the_runner(
    layers: tuple[str, ...], tmp_path: Path
) -> None:
    mark = f"3{os.getpid()}{len(layers)}"
    folder = tree(tmp_path, ORPHAN.replace("MARK", mark))
    with Judge(folder, layers=layers, limits=SMALL) as judge:
        judge.ask("load", op="rms_norm", tree=str(folder))
        assert becomes(True, mark)
    assert becomes(False, mark)


def test_runners_die_with_a_judge_that_is_killed(layers: tuple[str, ...], tmp_path: Path) -> None:
    """One that is idle reads the end of its wire; one in a candidate's loop reads nothing."""
    marks = [f"{kind}{os.getpid()}{len(layers)}" for kind in (4, 5)]
    for mark, then in zip(marks, ("", "while True: pass\n"), strict=True):
        tree(tmp_path / mark, ORPHAN.replace("MARK", mark) + then)
    script = (
        "import pathlib\nfrom bench.judge import Judge\njudges = []\n"
        f"for mark in {marks!r}:\n"
        f"    folder = pathlib.Path({str(tmp_path)!r}, mark)\n"
        f"    judges.append(Judge(folder, layers={layers!r}))\n"
        "    judges[-1].ask('load', op='rms_norm', tree=str(folder))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as judge:
        there = [becomes(True, mark, seconds=120) for mark in marks]
        judge.kill()
    assert there == [True, True]
    assert all(becomes(False, mark) for mark in marks)


@pytest.mark.slow
def test_after_every_bomb_the_judge_goes_on_with_the_next_proposal(tmp_path: Path) -> None:
    """One judge with all its layers, which nothing may wear out."""
    for bomb in BOMBS:
        goes_off(bomb, layers_of("all"), tmp_path / bomb)
    load(tree(tmp_path / "orphan", ORPHAN.replace("MARK", "30")))
    load(tree(tmp_path / "good", ""))


def test_an_endless_loop_is_stopped_and_the_process_is_gone(
    layers: tuple[str, ...], tmp_path: Path
) -> None:
    endless = "import signal\nsignal.signal(15, signal.SIG_IGN)\nwhile True: pass"
    with Judge(tree(tmp_path, endless), layers=layers, limits=SMALL) as judge:
        # Its start takes as long as the machine lets it.
        judge.ask("recall", outputs=[])
        started = time.monotonic()
        with pytest.raises(Refused) as refused:
            judge.ask("load", op="rms_norm", tree=str(tmp_path), timeout=1.0)
        took, process = time.monotonic() - started, judge._sandbox.process
    assert refused.value.kind == "timeout"
    assert process.poll() is not None
    assert took < 20


def test_a_cgroup_is_removed_with_its_sandbox(tmp_path: Path) -> None:
    if missing := lacking(["cgroup"]):
        pytest.skip(f"not on this machine: {missing}")
    with Judge(tree(tmp_path, "")) as judge:
        group = judge._sandbox.group
        assert group is not None
        judge.ask("load", op="rms_norm", tree=str(tmp_path))
        assert all((folder / "cgroup.procs").read_text() for folder in group.folders)
    assert not any(folder.exists() for folder in group.folders)


def test_the_scratch_folder_is_removed(layers: tuple[str, ...], tmp_path: Path) -> None:
    with Judge(tree(tmp_path, ""), layers=layers) as judge:
        scratch = judge._sandbox.scratch
        assert scratch.is_dir()
    assert not scratch.exists()


def test_a_layer_that_does_not_hold_ends_the_runner_before_the_candidate(tmp_path: Path) -> None:
    """Bubblewrap has taken the right to make namespaces from what runs in it."""
    if missing := lacking(["bubblewrap"]):
        pytest.skip(f"not on this machine: {missing}")
    marker = tmp_path / "ran"
    folder = tree(tmp_path, f"open({str(marker)!r}, 'w')")
    with pytest.raises(Refused, match="Operation not permitted|No space left"):
        load(folder, ("bubblewrap", "capabilities", "namespaces"))
    assert not marker.exists()


def test_a_path_that_is_a_link_is_bound_where_it_leads(tmp_path: Path) -> None:
    """As /usr/local/cuda does: bwrap cannot bind a link over itself."""
    (tmp_path / "cuda-13").mkdir()
    (tmp_path / "cuda").symlink_to(tmp_path / "cuda-13")
    terms = sandbox._terms(
        tmp_path, tmp_path, tmp_path, tmp_path, False, None, default("cpu"), (), [str(tmp_path / "cuda")]
    )  # fmt: skip
    assert str(tmp_path / "cuda-13") in terms.readable
    assert str(tmp_path / "cuda") not in terms.readable


def test_what_does_not_start_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(sandbox.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sandbox.subprocess, "Popen", full)
    with pytest.raises(BlockingIOError):
        sandbox.start("runner", [], tree=tmp_path, cache=CACHE)
    assert not list(tmp_path.glob("lab-*"))


def test_a_runner_that_builds_compiles_for_the_gpu_that_it_does_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else cpp_extension finds no architecture to compile for, and no runner the object, whose name holds it."""
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(sandbox.devices, "architecture", lambda: "9.0")
    body = "import os\nraise RuntimeError(os.environ['TORCH_CUDA_ARCH_LIST'] + ' ' + os.environ['CUDA_HOME'])\n"
    with Judge(tree(tmp_path, body)) as judge, pytest.raises(Refused, match=f"9.0 {tmp_path}"):
        judge.ask("load", op="rms_norm", tree=str(judge.tree))


def test_the_scratch_folder_may_lie_in_shared_memory(
    layers: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox.tempfile, "tempdir", "/dev/shm")
    load(tree(tmp_path, ""), layers)
