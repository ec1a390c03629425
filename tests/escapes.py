"""What a candidate may try to get out of the sandbox: each function raises if it is refused, and returns if it got through.

tests/test_sandbox.py puts this file in the place of a kernel. It runs all functions named in `ATTEMPTS` when it is imported and raises what became
of each as JSON. Where things lie outside is told in targets.json beside it, so that only the sandbox stands between.
"""

import ctypes
import json
import os
import resource
import signal
import socket
from pathlib import Path

import torch

TARGETS = json.loads(Path(__file__).with_name("targets.json").read_text())
JUDGE, FOLDER = TARGETS["judge"], Path(TARGETS["folder"])
libc = ctypes.CDLL(None, use_errno=True)


def call(function, *arguments):
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def tcp_connect():
    socket.create_connection(("127.0.0.1", TARGETS["port"]), timeout=2)


def tcp_listen():
    socket.create_server(("0.0.0.0", 0))


def udp_send():
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", TARGETS["udp"]))


def abstract_socket():
    socket.socket(socket.AF_UNIX).connect("\0" + TARGETS["abstract"])


def abstract_datagram():
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", "\0" + TARGETS["datagram"])


def socket_file():
    # the path of a socket has 107 bytes at most
    socket.socket(socket.AF_UNIX).connect(f"/proc/self/fd/{os.open(FOLDER, os.O_PATH)}/socket")


def datagram_by_a_pair():
    ours, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.sendto(b"x", "\0" + TARGETS["datagram"])


def packet_socket():
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW)


def write_outside():
    (FOLDER / "written").write_text("x")


def write_in_tmp():
    Path("/tmp", TARGETS["marker"]).write_text("x")


def write_at_home():
    Path(TARGETS["home"], TARGETS["marker"]).write_text("x")


def write_in_etc():
    Path("/etc", TARGETS["marker"]).write_text("x")


def write_the_own_source():
    Path(__file__).write_text("x")


def write_a_module_beside():
    Path(__file__).with_name("attention.py").write_text("x")


def write_the_runner():
    Path(os.environ["PYTHONPATH"], "bench", "runner", "__main__.py").write_text("x")


def write_the_cache():
    Path(os.environ["TORCH_EXTENSIONS_DIR"], TARGETS["marker"]).write_text("x")


def write_into_torch():
    Path(torch.__file__).with_name(TARGETS["marker"]).write_text("x")


def write_a_setting_of_the_kernel():
    setting = Path("/proc/sys/vm/swappiness")
    setting.write_text(setting.read_text())


def change_the_mode_of_a_file():
    os.chmod(FOLDER / "val.bin", 0o777)


def change_the_time_of_a_file():
    os.utime(FOLDER / "val.bin", (0, 0))


def link_a_file_into_scratch():
    os.link(FOLDER / "val.bin", Path(os.environ["TMPDIR"], "val.bin"))


def remove_a_file():
    os.unlink(FOLDER / "val.bin")


def read_the_validation_data():
    (FOLDER / "val.bin").read_bytes()


def read_the_ledger():
    (FOLDER / "ledger.sqlite").read_bytes()


def read_through_a_symlink():
    link = Path(os.environ["TMPDIR"], "link")
    link.symlink_to(FOLDER / "val.bin")
    link.read_bytes()


def read_the_environment():
    return os.environ["LAB_TEST_KEY"]


def read_the_environment_of_the_judge():
    Path(f"/proc/{JUDGE}/environ").read_bytes()


def read_the_environment_of_the_parent():
    Path(f"/proc/{os.getppid()}/environ").read_bytes()


def read_the_references():
    __import__("bench.contracts")


def open_the_memory_of_the_judge():
    Path(f"/proc/{JUDGE}/mem").open("rb")


def open_the_memory_of_the_parent():
    Path(f"/proc/{os.getppid()}/mem").open("rb")


def _read_memory(process):
    buffer = ctypes.create_string_buffer(8)
    local = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    call(libc.process_vm_readv, process, local, 1, local, 1, 0)


def copy_the_memory_of_the_judge():
    _read_memory(JUDGE)


def copy_the_memory_of_the_parent():
    _read_memory(os.getppid())


def trace_the_judge():
    call(libc.ptrace, 0x4206, JUDGE, None, None)  # PTRACE_SEIZE does not stop it


def trace_the_parent():
    call(libc.ptrace, 0x4206, os.getppid(), None, None)


def signal_the_judge():
    os.kill(JUDGE, 0)


def signal_the_parent():
    os.kill(os.getppid(), 0)


def signal_everybody():
    os.kill(-1, signal.SIGURG)  # ignored by all but the judge, which counts
    raise OSError("this call succeeds where it reached nobody")


def take_a_descriptor_of_the_parent():
    opened = libc.syscall(434, os.getppid(), 0)  # some builds of Python lack os.pidfd_open
    if opened < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    call(libc.syscall, 438, opened, 0, 0)


def limit_the_judge():
    resource.prlimit(JUDGE, resource.RLIMIT_CPU, (1 << 20, 1 << 20))


def slow_the_judge_down():
    os.setpriority(os.PRIO_PROCESS, JUDGE, 1)


def move_the_judge_to_one_core():
    os.sched_setaffinity(JUDGE, {0})


def mount():
    call(libc.mount, b"tmpfs", os.environ["TMPDIR"].encode(), b"tmpfs", 0, None)


def new_namespaces():
    call(libc.unshare, 0x10000000 | 0x20000)


def namespaces_of_the_judge():
    call(libc.setns, os.open("/proc/1/ns/net", os.O_RDONLY), 0)


def _system_call(number):
    call(libc.syscall, number, 0, 0, 0, 0, 0)


def io_uring():
    _system_call(425)


def bpf():
    _system_call({"x86_64": 321, "aarch64": 280}[os.uname().machine])


def performance_counters():
    _system_call({"x86_64": 298, "aarch64": 241}[os.uname().machine])


def page_faults():
    _system_call({"x86_64": 323, "aarch64": 282}[os.uname().machine])


def kernel_keys():
    _system_call({"x86_64": 250, "aarch64": 219}[os.uname().machine])


def shared_memory_that_stays():
    call(libc.shmget, 0x1AB, 4096, 0o1600)


def a_filter_of_its_own():
    call(libc.prctl, 22, 2, None)


def capabilities():
    status = Path("/proc/self/status").read_text()
    if "CapEff:\t0000000000000000" in status and "CapBnd:\t0000000000000000" in status:
        raise PermissionError("none is left")


def gpu_device():
    return next(Path("/dev").glob("nvidia*"))


def a_file_beyond_its_size():
    with Path(os.environ["TMPDIR"], "large").open("wb") as file:
        file.truncate(TARGETS["file"] + 1)


ATTEMPTS = [name for name, found in list(globals().items())
            if callable(found) and getattr(found, "__module__", "") == __name__
            and name != "call" and not name.startswith("_")]  # fmt: skip


def outcomes():
    """What became of each attempt: the name of the exception, or `got through`."""
    found = {}
    for name in ATTEMPTS:
        try:
            globals()[name]()
        except Exception as error:
            found[name] = type(error).__name__
        else:
            found[name] = "got through"
    return found


if "kernels" in __name__:
    raise RuntimeError("OUTCOMES " + json.dumps(outcomes()) + " END")
