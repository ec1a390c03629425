"""Each layer of the sandbox by itself: the filter of system calls on both architectures, Landlock, namespaces, control groups, the watchdog."""

from __future__ import annotations

import errno
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.judge import Judge
from bench.sandbox import cgroup, isolation, linux, processes, seccomp
from bench.sandbox.confine import Terms
from bench.sandbox.limits import Limits, default
from bench.sandbox.watchdog import Watchdog

ROOT = Path(__file__).resolve().parent.parent
HEADERS = {
    0: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    1: Path("/usr/include/asm-generic/unistd.h"),
}
ALLOWED, KILLED = 0x7FFF0000, 0x80000000
TABLES = [
    *(seccomp.REFUSED, seccomp.SIGNALS, seccomp.OF_FILES),
    {name: numbers for name, numbers, *_ in (*seccomp.BY_ARGUMENT, *seccomp.ON_OTHERS)},
    {"clone3": seccomp.CLONE3},
]
# What every program needs, on x86_64 and aarch64.
HARMLESS = {"read": (0, 63), "openat": (257, 56), "futex": (202, 98), "mmap": (9, 222)}


@pytest.mark.parametrize("column", HEADERS)
def test_numbers_of_system_calls_are_those_of_the_kernel(column: int) -> None:
    if not HEADERS[column].is_file():
        pytest.skip(f"no {HEADERS[column]} here")
    known: dict[str, int] = {}
    for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[column].read_text()):  # fmt: skip
        known.setdefault(name, int(number))
    ours = {name: numbers[column] for table in TABLES for name, numbers in table.items()}
    newer = {"fchmodat2"}  # than the headers of many distributions
    found = {name: known.get(name, -1) for name in ours if name in known or name not in newer}
    assert {name: ours[name] for name in found} == found


def verdict(column: int, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the filter answers: a machine for the few instructions that it uses."""
    data = {0: number, 4: seccomp._AUDIT[column] if architecture is None else architecture}
    data |= {16 + 8 * i: value & 0xFFFFFFFF for i, value in enumerate(arguments)}
    tests: dict[int, Callable[[int, int], bool]] = {
        0x15: lambda a, k: a == k,
        0x35: lambda a, k: a >= k,
        0x45: lambda a, k: bool(a & k),
    }
    program = list(seccomp.program(sees_others=True, signals=False, sees_files=False))
    accumulator = at = 0
    while True:
        operation, if_true, if_false, value = program[at]
        at += 1
        if operation == 0x20:
            accumulator = data.get(value, 0)
        elif operation == 0x06:
            return value
        else:
            at += if_true if tests[operation](accumulator, value) else if_false


@pytest.mark.parametrize("column", [0, 1])
def test_the_filter_refuses_what_it_names_and_nothing_else(
    column: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seccomp, "machine", lambda: column)
    refused = 0x00050000 | errno.EPERM
    for numbers in seccomp.REFUSED.values():
        if numbers[column] >= 0:
            assert verdict(column, numbers[column]) == refused
    for numbers in HARMLESS.values():
        assert verdict(column, numbers[column]) == ALLOWED
    calls = {name: numbers[column] for name, numbers, *_ in seccomp.BY_ARGUMENT}
    unix, inet, stream, datagram, raw, cloexec = 1, 2, 1, 2, 3, 0o2000000
    assert verdict(column, calls["socket"], unix, stream | cloexec) == ALLOWED
    assert verdict(column, calls["socket"], inet, stream) == refused
    assert verdict(column, calls["socket"], unix, datagram | cloexec) == refused
    assert verdict(column, calls["socket"], unix, raw) == refused
    assert verdict(column, calls["socketpair"], unix, stream) == ALLOWED
    threads, children = 0x3D0F00, 17
    assert verdict(column, calls["clone"], threads) == ALLOWED
    assert verdict(column, calls["clone"], children) == ALLOWED
    for flag in linux.NEW_NAMESPACES.values():
        assert verdict(column, calls["clone"], children | flag) == refused
    assert verdict(column, seccomp.CLONE3[column]) == 0x00050000 | errno.ENOSYS
    others = {name: numbers[column] for name, numbers, *_ in seccomp.ON_OTHERS}
    assert verdict(column, others["prlimit64"], 0) == ALLOWED
    assert verdict(column, others["prlimit64"], 4711) == refused
    assert verdict(column, others["setpriority"], 2, 0) == refused
    assert verdict(column, 0, architecture=0x40000003) == KILLED
    if column == 0:
        assert verdict(column, 0x40000000 | 1) == 0x00050000 | errno.ENOSYS


def confined(terms: Terms, script: str) -> str:
    """What a script prints in a process that took these terms on."""
    program = f"from bench.sandbox import confine\nconfine.apply(confine.Terms(**{terms.__dict__!r}))\n{script}"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout.strip() + done.stderr[-500:]


def needs(layer: str) -> None:
    held = {found.name: found for found in isolation.layers()}[layer]
    if not held.holds:
        pytest.skip(f"not on this machine: {held.how}")


def attempt(act: str) -> str:
    return f"try:\n    {act}\n    print('got through')\nexcept OSError as error:\n    print(type(error).__name__)"


def test_seccomp_alone_stops_the_network_and_leaves_files(tmp_path: Path) -> None:
    needs("seccomp")
    (tmp_path / "file").write_text("x")
    terms = Terms(["seccomp"])
    assert confined(terms, f"import socket\n{attempt('socket.socket()')}") == "PermissionError"
    assert confined(terms, attempt(f"open({str(tmp_path / 'file')!r}).close()")) == "got through"


def test_landlock_alone_stops_files_and_leaves_sockets_of_other_kinds(tmp_path: Path) -> None:
    needs("landlock")
    (tmp_path / "file").write_text("x")
    (tmp_path / "own").mkdir()
    terms = Terms(["landlock"], readable=["/usr"], writable=[str(tmp_path / "own")])
    assert confined(terms, attempt(f"open({str(tmp_path / 'file')!r}).close()")) == "PermissionError"  # fmt: skip
    own = str(tmp_path / "own" / "file")
    assert confined(terms, attempt(f"open({own!r}, 'w').close()")) == "got through"
    assert confined(terms, attempt("__import__('os').kill(__import__('os').getppid(), 0)")) == (
        "PermissionError"
    )


def test_namespaces_of_our_own_launcher_show_only_what_is_named(tmp_path: Path) -> None:
    needs("namespaces")
    (tmp_path / "root").mkdir()
    terms = Terms(
        ["namespaces"], readable=["/usr", "/bin", "/lib", "/lib64"], private={"/own": 1 << 20},
        root=str(tmp_path / "root"),
    )  # fmt: skip
    seen = "import os\nprint(os.getpid(), sorted(os.listdir('/')), [p for p in os.listdir('/proc') if p.isdigit()])"
    assert (
        confined(terms, seen) == "2 ['bin', 'dev', 'lib', 'lib64', 'own', 'proc', 'usr'] ['1', '2']"
    )
    full = "import errno\ntry:\n    open('/own/x', 'wb').write(bytes(2 << 20))\nexcept OSError as error:\n    print(error.errno == errno.ENOSPC)"
    assert confined(terms, full) == "True"
    assert confined(terms, attempt("open('/x', 'w')")) == "OSError"
    assert confined(terms, attempt("open('/proc/sys/vm/swappiness', 'a')")) == "OSError"


def test_capabilities_are_gone_from_what_is_executed_as_well() -> None:
    needs("capabilities")
    script = "import subprocess\nprint(subprocess.run(['grep', 'Cap', '/proc/self/status'], capture_output=True, text=True).stdout)"
    lines = confined(Terms(["capabilities"]), script).splitlines()
    assert {line.split()[1] for line in lines} == {"0" * 16}


def test_a_control_group_bounds_processes_and_ends_them_all() -> None:
    needs("cgroup")
    group = cgroup.make(isolation.place(), f"{processes.mark()}test", memory=1 << 28, processes=8)
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 60 & done; wait"
    process = subprocess.Popen(
        [*isolation.joining(group), "sh", "-c", script], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 10
    while not group.excess() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "more processes than its cgroup allows" in group.excess()
    group.kill()
    process.wait(10)
    assert group._processes() == set()
    group.remove()
    assert not any(folder.exists() for folder in group.folders)


def version_2(folder: Path, controllers: dict[str, str]) -> None:
    """Files as the kernel shows them for groups of version 2."""
    for path, handed_on in controllers.items():
        (folder / path).mkdir(parents=True, exist_ok=True)
        (folder / path / "cgroup.procs").touch()
        control = folder / path / "cgroup.subtree_control"
        control.write_text(handed_on)
        if not handed_on:
            control.chmod(0o444)


def test_the_nearest_ancestor_that_hands_on_memory_and_pids_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version_2(tmp_path, {"": "cpu memory pids", "user.slice": "memory pids", "user.slice/shell.scope": ""})  # fmt: skip
    monkeypatch.setattr(cgroup, "_own", lambda: iter([("", "/user.slice/shell.scope")]))
    monkeypatch.setattr(cgroup, "_mounts", lambda: iter([("", (tmp_path, "/"))]))
    monkeypatch.setattr(
        cgroup, "_divisible", lambda folder: "" if "memory" in (folder / "cgroup.subtree_control").read_text() else "busy"
    )  # fmt: skip
    assert cgroup.find() == cgroup.Place(2, (tmp_path / "user.slice",))


def test_a_group_hierarchy_that_cannot_be_written_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "_own", lambda: iter([("", "/")]))
    monkeypatch.setattr(cgroup, "_mounts", lambda: iter([("", (tmp_path / "absent", "/"))]))
    with pytest.raises(OSError, match="absent is not writable"):
        cgroup.find()


def test_a_mount_without_a_source_hides_no_hierarchy(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "23 1 0:21 / /x rw - tmpfs  rw\n31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    plain = Path.read_text
    # of this file alone: a watchdog of another test's runner that cannot read /proc ends that runner
    monkeypatch.setattr(
        Path, "read_text", lambda path: told if path.name == "mountinfo" else plain(path)
    )
    mounts = dict(cgroup._mounts())
    monkeypatch.undo()
    assert mounts == {"": (Path("/sys/fs/cgroup"), "/")}


QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"pod/cpu.max": "max 100000", "cpu.max": "150000 100000", "pod/memory.max": "4096"},
            (1.5, 4096),
        ),
        (
            {f"pod/{QUOTA}": "400000", f"pod/{PERIOD}": "100000", "memory.limit_in_bytes": "8192"},
            (4.0, 8192),
        ),
        (
            {f"pod/{QUOTA}": "-1", f"pod/{PERIOD}": "100000", "pod/memory.max": "max"},
            (math.inf, math.inf),
        ),
    ],
)
def test_what_a_container_may_use_is_read_from_its_group_and_those_above(
    files: dict[str, str],
    expected: tuple[float, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "pod").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(cgroup, "_own", lambda: iter([("", "/pod"), ("elsewhere", "/")]))
    monkeypatch.setattr(cgroup, "_mounts", lambda: iter([("", (tmp_path, "/"))]))
    assert cgroup.allowance() == expected


def test_a_sandbox_stays_below_the_memory_of_its_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "allowance", lambda: (math.inf, 4 << 30))
    assert default("cpu").memory <= 3 << 30
    assert default("cpu").disk <= 1 << 30


def test_the_watchdog_counts_processes_and_says_what_it_killed_for(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    process = subprocess.Popen(
        ["sh", "-c", "for i in 1 2 3 4 5 6; do sleep 60 & done; wait"], start_new_session=True
    )
    watchdog = Watchdog(
        process.pid, Limits(processes=4), lambda: os.killpg(process.pid, 9),
        log=tmp_path / "log", counted=None, folders=[],
    )  # fmt: skip
    assert process.wait(10) == -9
    watchdog.stop()
    assert watchdog.excess == "it ran more than 4 processes"


def test_the_watchdog_bounds_a_folder_on_a_disk(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    own = tmp_path / "own"
    own.mkdir()
    (own / "old").write_bytes(bytes(4 << 20))
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    watchdog = Watchdog(
        process.pid, Limits(disk=1 << 20), process.kill,
        log=tmp_path / "log", counted=None, folders=[own],
    )  # fmt: skip
    time.sleep(1)
    assert process.poll() is None  # what was there before does not count
    (own / "new").write_bytes(bytes(2 << 20))
    process.wait(10)
    watchdog.stop()
    assert watchdog.excess == "it wrote more than 1 MiB of files"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_watchdog_that_fails_leaves_nothing_running_unwatched(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    watchdog = Watchdog(
        process.pid, Limits(), process.kill,
        log=tmp_path / "absent", counted=None, folders=[],
    )  # fmt: skip
    assert process.wait(10) == -9
    watchdog.stop()
    assert watchdog.excess == "its watchdog failed"


def test_the_folder_of_a_killed_process_is_known_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with processes.scratch() as folder:
        assert not processes.is_left_behind(Path(folder))
        monkeypatch.setattr(processes, "_PROC", tmp_path)  # where no process is
        assert processes.is_left_behind(Path(folder))
        monkeypatch.setattr(processes, "_NAMESPACE", "1")  # of another container
        assert not processes.is_left_behind(Path(folder))


def test_processes_that_end_while_they_are_looked_for_do_no_harm() -> None:
    forking = (
        "import os\nprint(flush=True)\nwhile True:\n    os.fork() or os._exit(0)\n    os.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", forking], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            # from here on it forks
            process.stdout.readline()
            seen = [processes.descendants(process.pid) for _ in range(3000)]
        finally:
            process.kill()
    assert any(seen)
    assert max(map(len, seen)) == 1


def test_default_limits_leave_the_machine_room() -> None:
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for device, least in (("cpu", 0), ("cuda", 32 << 30)):  # a GPU's may still be growing
        assert default(device).memory <= max(machine * 3 // 4, least)
        assert default(device).disk <= max(machine // 4, least // 8)


def test_a_group_without_a_kill_file_is_ended_process_by_process(tmp_path: Path) -> None:
    """As version 2 was before Linux 5.14."""
    with subprocess.Popen(["sleep", "60"]) as process:
        joins = tmp_path / "cgroup.procs"
        joins.write_text(f"{process.pid}\n")
        threading.Timer(0.2, lambda: joins.write_text("")).start()
        cgroup.Group(2, (tmp_path,)).kill()
        assert process.wait(10) == -signal.SIGKILL


def test_the_watchdog_holds_where_the_parent_is_out_of_sight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in `docker exec`, and as the first process of a container: the parent's number is 0."""
    monkeypatch.setattr(os, "getppid", lambda: 0)
    assert isolation._watchdog().holds


def test_processes_that_may_not_be_read_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pid, parent in ((7, 1), (8, 7), (9, 1)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (x) S {parent} 0\n")
    plain = Path.read_text

    def read(path: Path) -> str:
        if path.parent.name == "9":
            raise PermissionError
        return plain(path)

    monkeypatch.setattr(processes, "_PROC", tmp_path)
    monkeypatch.setattr(Path, "read_text", read)
    assert processes.tree(7) == [7, 8]


def test_a_bubblewrap_that_does_not_end_or_start_is_one_that_does_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "_TIMEOUT_S", 1)
    hangs, broken, old = (tmp_path / name for name in ("hangs", "broken", "old"))
    hangs.write_text("#!/bin/sh\nexec sleep 30\n")
    broken.write_text("no program")
    # before 0.7 a folder in memory has no bounds
    old.write_text(
        '#!/bin/sh\ncase "$*" in *--size*) echo "Unknown option --size" >&2; exit 1;; esac\n'
    )
    for file in (hangs, broken, old):
        file.chmod(0o755)
    assert "does not end within 1 s" in isolation._why_not(str(hangs))
    assert "does not start" in isolation._why_not(str(broken))
    assert "--size" in isolation._why_not(str(old))


@pytest.mark.parametrize("dies", ["os.kill(os.getpid(), 9)", "os._exit(3)", "{}['x']"])
def test_a_layer_whose_trial_dies_does_not_hold(dies: str) -> None:
    script = (
        f"import os\nfrom bench.sandbox import confine\nprint(confine._why_not(lambda: {dies}))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert done.stdout.strip() not in ("", "None")


def test_the_watchdog_looks_at_the_disk_of_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log").touch()
    own, cache = tmp_path / "own", tmp_path / "cache"
    own.mkdir()
    cache.mkdir()
    plain = os.statvfs
    full = SimpleNamespace(f_bavail=1, f_frsize=1 << 20)
    monkeypatch.setattr(os, "statvfs", lambda path: full if path == cache else plain(path))
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    watchdog = Watchdog(
        process.pid, Limits(), process.kill,
        log=tmp_path / "log", counted=None, folders=[own, cache],
    )  # fmt: skip
    assert process.wait(10) == -9
    watchdog.stop()
    assert watchdog.excess.endswith(f"left at {cache}")


@pytest.mark.parametrize(
    "layers", [None, ["namespaces", "seccomp"], []], ids=["all", "own", "bare"]
)
def test_a_runner_that_is_ended_leaves_no_zombie_to_a_first_process_that_reaps_nobody(
    layers: list[str] | None, tmp_path: Path
) -> None:
    """Orphans come to this process instead, which does not wait for them."""
    isolation.held()  # tried once in a process
    linux.prctl(linux.SET_CHILD_SUBREAPER, 1)
    try:
        before = processes.children(os.getpid())
        with Judge(tmp_path, layers=layers) as judge:
            judge.ask("recall", outputs=[])
        assert set(processes.children(os.getpid())) <= set(before)
    finally:
        linux.prctl(linux.SET_CHILD_SUBREAPER, 0)
