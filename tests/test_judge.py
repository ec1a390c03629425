"""The wire: what happens when a runner does not answer as asked."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from lab_tree import write

from bench.contracts import contract
from bench.examination import Examination
from bench.judge import Judge, Refused, error_line
from bench.protocol import MAX_LINE, Channel, ProtocolError

HEAD = '"""A candidate."""\nimport torch\n'
FUNCTION = "\ndef rms_norm(x, weight=None, eps=1e-6):\n    return x\n"


def tree(folder: Path, body: str) -> Path:
    """A tree whose kernels/rms_norm.py runs `body` when it is loaded."""
    write(folder, {"kernels/__init__.py": "", "kernels/rms_norm.py": HEAD + body + FUNCTION})
    return folder


def load(folder: Path) -> None:
    with Judge(folder) as judge:
        judge.ask("load", op="rms_norm", tree=str(folder), timeout=60.0)


def test_a_call_loads_no_compiler(tmp_path: Path) -> None:
    """A comparison makes new processes all the time: torch's compiler, 1.5 s in each, left it so few rounds that 5 % were lost in noise."""
    folder = tree(tmp_path, "")
    (folder / "kernels" / "rms_norm.py").write_text(
        "import sys\n\n\ndef rms_norm(x, weight=None, eps=1e-6):\n"
        "    assert 'torch._dynamo' not in sys.modules, 'the compiler is here'\n    return x * 1.0\n"
    )
    with Judge(folder) as judge:
        judge.ask("load", op="rms_norm", tree=str(folder))
        examination = Examination(contract("rms_norm"), judge, 0)
        laid = examination.lay(contract("rms_norm").trial["cpu"][0])
        examination.ask(laid)
        with pytest.raises(Refused, match="the compiler is here"):
            examination.ask(laid, mode="inductor")


def test_calls_that_take_too_long_together_are_refused_as_that(tmp_path: Path) -> None:
    folder = tree(tmp_path, "")
    (folder / "kernels" / "rms_norm.py").write_text(
        "import time\n\n\ndef rms_norm(x, weight=None, eps=1e-6):\n    time.sleep(60)\n    return x * 1.0\n"
    )
    with Judge(folder) as judge:
        judge.ask("load", op="rms_norm", tree=str(folder))
        examination = Examination(contract("rms_norm"), judge, 0)
        examination.until = 0.0
        laid = examination.lay(contract("rms_norm").trial["cpu"][0])
        with pytest.raises(Refused, match="all its calls together have taken 900 s"):
            examination.ask(laid)


def test_a_full_disk_is_no_fault_of_the_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Judge(tree(tmp_path, ""), cache_writable=True) as judge:
        judge.ask("recall", outputs=[])
        own, plain = judge._sandbox.watchdog._folders[0], os.statvfs
        full = SimpleNamespace(f_bavail=1, f_frsize=1 << 20)
        # Of this runner's folder alone: others of this process may be watched as well.
        monkeypatch.setattr(os, "statvfs", lambda path: full if path == own else plain(path))
        judge._sandbox.process.wait(10)  # the watchdog sees it within half a second
        with pytest.raises(OSError, match=r"the disk had less than .* free space there") as raised:
            judge.ask("recall", outputs=[])
    assert raised.value.errno == errno.ENOSPC


def test_an_exception_at_import_is_shown(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such luck") as refused:
        load(tree(tmp_path, "raise RuntimeError('no such luck')"))
    assert refused.value.kind == "RuntimeError"


def test_a_forged_answer_without_the_nonce_is_refused(tmp_path: Path) -> None:
    forged = 'import os, sys\nos.write(int(sys.argv[1]), b\'{"nonce": 1, "ok": true, "implementations": []}\\n\')'
    with pytest.raises(Refused, match="this request's nonce"):
        load(tree(tmp_path, forged))


def test_an_answer_without_a_field_is_the_runner_s_fault(tmp_path: Path) -> None:
    renamed = (
        "import socket\nsend = socket.socket.sendall\n"
        "socket.socket.sendall = lambda end, data: send(end, data.replace(b'implementations', b'others'))"
    )
    with Judge(tree(tmp_path, renamed)) as judge:
        answer = judge.ask("load", op="rms_norm", tree=str(tmp_path))
        with pytest.raises(Refused, match="no 'implementations'") as refused:
            answer["implementations"]
    assert refused.value.kind == "structure"


def test_an_endless_answer_is_cut(tmp_path: Path) -> None:
    flood = (
        f"import os, sys\nfor _ in range(64): os.write(int(sys.argv[1]), b'x' * {MAX_LINE // 8})"
    )
    with pytest.raises(Refused, match="longer than"):
        load(tree(tmp_path, flood))


def test_a_request_that_no_runner_knows_is_named(tmp_path: Path) -> None:
    with Judge(tree(tmp_path, ""), device="cpu") as judge:
        with pytest.raises(Refused, match="the runner knows no request 'sing'"):
            judge.ask("sing")


def test_a_message_that_is_not_json_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b"hello\n")
    with pytest.raises(ProtocolError, match="not JSON"):
        Channel(ours).receive(1.0)


def test_a_descriptor_travels_with_a_message(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    file = tmp_path / "data"
    file.write_text("bell")
    fd = os.open(file, os.O_RDONLY)
    Channel(ours).send({"do": "train"}, fd)
    os.close(fd)
    message, received = Channel(theirs).receive(1.0)
    assert message == json.loads('{"do": "train"}')
    assert received is not None
    assert os.read(received, 10) == b"bell"
    os.close(received)


def test_an_answer_given_twice_is_refused(tmp_path: Path) -> None:
    twice = (
        "import os, socket, sys\nsend = socket.socket.sendall\n"
        "socket.socket.sendall = lambda end, data: (send(end, data), send(end, data))[0]"
    )
    with Judge(tree(tmp_path, twice)) as judge:
        judge.ask("load", op="rms_norm", tree=str(tmp_path))
        deadline = time.monotonic() + 10
        while not judge._channel.pending() and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(Refused, match="without being asked"):
            judge.ask("recall", outputs=[])


def test_progress_and_pieces_of_a_line_do_not_move_the_deadline(tmp_path: Path) -> None:
    """A runner that goes on telling, whole lines or one byte at a time, is late when it is late."""
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.05):
            theirs.sendall(b" ")

    thread = threading.Thread(target=drip)
    thread.start()
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        Channel(ours).receive(0.4)
    assert time.monotonic() - started < 30
    stop.set()
    thread.join()
    with Judge(tree(tmp_path, "")) as judge:
        judge.ask("recall", outputs=[])
        channel = judge._channel
        told = []

        class Telling:
            """The real wire, on which progress is told as long as anybody listens."""

            def pending(self) -> bool:
                return False

            def send(self, message: dict, fd: int | None, timeout: float) -> None:
                self.nonce = message["nonce"]

            def receive(self, timeout: float) -> tuple[dict, None]:
                if timeout <= 0:
                    raise TimeoutError
                time.sleep(0.01)
                return {"nonce": self.nonce, "progress": {}}, None

        judge._channel = Telling()
        with pytest.raises(Refused, match=r"within 0\.3 s") as refused:
            judge.ask("train", timeout=0.3, progress=told.append)

        def nobody_reads(told: dict) -> None:
            raise OSError("nobody reads")

        with pytest.raises(OSError, match="nobody reads"):
            judge.ask("train", timeout=5.0, progress=nobody_reads)
        judge._channel = channel
    assert refused.value.kind == "timeout"
    assert told


def test_a_request_that_the_runner_does_not_take_is_a_time_out() -> None:
    ours, theirs = socket.socketpair()
    with pytest.raises(TimeoutError):
        Channel(ours).send({"calls": "x" * (8 << 20)}, None, 0.3)
    theirs.close()


def test_descriptors_that_come_with_an_answer_do_not_stay_open() -> None:
    ours, theirs = socket.socketpair()
    own = os.readlink(f"/proc/self/fd/{ours.fileno()}")
    for _ in range(3):
        socket.send_fds(theirs, [b" "], [ours.fileno()])
    with pytest.raises(ProtocolError, match="more than one descriptor"):
        Channel(ours).receive(1.0)
    # Others are opened and closed meanwhile, by watchdogs and by whoever collects garbage.
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    assert found.count(own) == 1


STACK = 'impl=triton eager: Traceback (most recent call last):\n  File "calls.py", line 57, in call\n    return plain(x)\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{STACK}InductorError: RuntimeError: no C compiler\n\nSet TORCHDYNAMO_VERBOSE=1 for more\n", "InductorError: RuntimeError: no C compiler"),
        (f"{STACK}RuntimeError: CUDA error: illegal address\nCompile with `TORCH_USE_CUDA_DSA`\n", "RuntimeError: CUDA error: illegal address"),
        (f"{STACK}BuildError: a.cpp could not be built:\n/a.cpp:3: error: no\n    3 | x\n", "BuildError: a.cpp could not be built: /a.cpp:3: error: no"),
        ("the runner died\nstopped: it used more memory", "stopped: it used more memory"),
    ],
)  # fmt: skip
def test_an_error_in_one_line_is_what_went_wrong(text: str, said: str) -> None:
    assert error_line(Refused("x", text)) == said


def test_an_answer_that_is_no_json_is_named_and_ends_no_runner(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").touch()
    (tmp_path / "model" / "train.py").write_text(
        "import torch\n\n\nclass Trainer:\n    def __init__(self, spec):\n        self.model = torch.nn.Linear(2, 2)\n\n"
        "    def warm_up(self, tokens): ...\n\n    def describe(self):\n        return {'depth': torch.ones(())}\n"
    )
    with Judge(tree(tmp_path, "")) as judge:
        judge.ask("load", tree=str(judge.tree))
        warm_up = judge.arena.place("int32", (4,))
        judge.arena.view(warm_up).zero_()
        with pytest.raises(Refused, match="Tensor is not JSON serializable") as refused:
            judge.ask("setup", spec={}, ops={}, warm_up=warm_up)
        assert refused.value.kind == "structure"
        judge.ask("state")
