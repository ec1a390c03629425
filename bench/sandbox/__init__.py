"""Start the runner where it can do no harm: the one place in this tree that starts a process around candidate code.

From outside to inside: a control group; namespaces with an allow-list of read-only mounts and writable folders in memory, made by
bubblewrap or by our own launcher; then bench/sandbox/confine.py drops capabilities, and takes on Landlock, seccomp and rlimits, before it becomes the
runner. A watchdog in the judge bounds what no kernel does. The environment is built from nothing. Which layers a machine gives is found
out by bench/sandbox/isolation.py; `Sandbox.isolation` names those in use, and is written to the ledger with every result.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from bench.sandbox import cgroup, devices, isolation, linux, namespaces, processes
from bench.sandbox.confine import Terms
from bench.sandbox.devices import Gpu
from bench.sandbox.limits import Limits, default
from bench.sandbox.watchdog import Watchdog

BENCH = Path(__file__).resolve().parent.parent
# Copied for the runner, which sees nothing else of bench: its own code, and what confines it.
RUNNER_FILES = (
    *("protocol.py", "device_memory.py", "aot.py"),
    *(f"runner/{path.name}" for path in sorted((BENCH / "runner").glob("*.py"))),
    *(
        f"sandbox/{name}.py"
        for name in (
            "confine",
            "linux",
            "processes",
            "namespaces",
            "landlock",
            "seccomp",
            "instead",
        )
    ),
)
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt/cuda", "/usr/local")
# What programs look up of the machine: shared libraries, `c++` on Debian, user names, the time zone.
SETTINGS = (
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/localtime",
)
PROCESSORS = "/sys/devices/system"  # instruction sets, caches, cores; a GPU needs all of /sys
# What a runner sees of /proc where the processes of others are in sight as well.
OWN_KERNEL_FILES = (
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/version",
    "/proc/filesystems",
    "/proc/sys/kernel",
    "/proc/sys/vm",
    "/proc/driver",
    # CUDA reads both as it starts
    "/proc/devices",
    "/proc/modules",
)
# What torch.compile and Triton make names its files by whole paths, so it lies at the same path in every runner that has a root of its own.
COMPILED = "/compiled"
PATIENCE_S = 10.0
TAIL = 4000  # bytes of what a runner printed, for a refusal
PADDED_BYTES = 32 << 10  # more than arguments and variables take
COMPILERS = 8  # forked workers of torch.compile; without a cgroup each is counted with all the memory that it shares with the runner
_NOTHING: Mapping[str, str] = MappingProxyType({})
_numbers = itertools.count()


@dataclass
class Sandbox:
    """A running child, its scratch folder and what holds it."""

    process: subprocess.Popen[bytes]
    scratch: Path
    log: Path
    isolation: str
    group: cgroup.Group | None = None
    # the process sweeps up what it leaves when it is asked to end
    reaps: bool = False
    watchdog: Watchdog | None = field(default=None, repr=False)

    def stop(self) -> None:
        """Kill the whole process tree and remove the scratch folder."""
        if self.watchdog is not None:
            self.watchdog.stop()
        self.kill()
        self.process.wait()
        if self.group is not None:
            self.group.remove()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def kill(self) -> None:
        """Every process, whatever session it has moved to.

        What our child waits for ends first, and then our child by itself. Killed together, the former would be left to the machine's first process, which
        in many containers reaps nobody: each runner would stay there as a zombie.
        """
        if self._ends():
            # else its tree grows faster than it ends, or a driver holds it
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE_S)
        if self.group is not None:
            self.group.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _ends(self) -> bool:
        """Whether our child now ends by itself, after all that is behind it."""
        if self.process.poll() is not None:
            return False
        if self.reaps:
            self.process.terminate()
            return True
        # the first process of a pid namespace, with which all others end; none where there is no namespace yet
        first = processes.children(self.process.pid)
        for pid in first:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(first)

    def tail(self) -> str:
        """The last of what the child printed, with control characters escaped, and the limit that ended it if one did."""
        try:
            with self.log.open("rb") as handle:
                handle.seek(max(0, self.log.stat().st_size - TAIL))
                text = handle.read(TAIL).decode(errors="replace")
        except OSError:
            text = ""
        excess = self.excess()
        shown = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
        return f"{shown}\nstopped: {excess}" if excess else shown

    def excess(self) -> str:
        """Which limit was passed, in words; empty if none was."""
        seen = self.watchdog.excess if self.watchdog is not None else ""
        return seen or (self.group.excess() if self.group is not None else "")


def start(
    module: str,
    arguments: Sequence[str],
    *,
    tree: Path,
    cache: Path,
    cache_writable: bool = False,
    pass_fds: Sequence[int] = (),
    device: str = "cpu",
    poison: bool = False,
    limits: Limits | None = None,
    layers: Collection[str] | None = None,
    environment: Mapping[str, str] = _NOTHING,
    readable: Sequence[str] = (),
) -> Sandbox:
    """Run `python -m bench.<module>` on the candidate files of `tree` (its kernels/, csrc/ and model/).

    poison: memory of the host that the runner allocates and never writes reads as -1.7e38 in float32 and bfloat16.
    limits: those of the device by default. layers: names of `isolation.held`, by default all of them.
    environment, readable: variables, and paths to be read, beside what all get.
    """
    _sweep()
    limits = limits or default(device)
    layers = isolation.held() if layers is None else layers
    with contextlib.ExitStack() as undo:  # where it does not start, nothing of it stays
        scratch = Path(tempfile.mkdtemp(prefix=processes.mark()))
        undo.callback(shutil.rmtree, scratch, ignore_errors=True)
        launch, own = _prepare(scratch)
        cache.mkdir(parents=True, exist_ok=True)
        gpu = devices.first() if device == "cuda" else None
        terms = _terms(tree, launch, own, cache, cache_writable, gpu, limits, layers, readable)
        command = [
            sys.executable,
            "-P",
            "-m",
            "bench.sandbox.confine",
            terms.as_json(),
            module,
            *arguments,
        ]
        variables = {**_environment(launch, own, cache, terms, gpu, poison), **environment}
        variables["PADDING"] = _padding([*command, *(f"{n}={v}" for n, v in variables.items())])
        if terms.wrapped:
            command = [*_bubblewrap(terms), "--chdir", str(own), "--", *command]
        group = None
        if "cgroup" in layers:
            name = f"{processes.mark()}{next(_numbers)}"
            group = cgroup.make(
                isolation.place(), name, memory=limits.memory, processes=limits.processes
            )
            undo.callback(group.remove)
            command = [*isolation.joining(group), *command]
        log = scratch / "log"
        # Where libraries, heap and stacks lie makes processes of one kernel differ by some 1.5 %: in all arms they lie alike (results/HISTORY.md).
        with log.open("wb") as output, linux.fixed_addresses():
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=own,
                env=variables,
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )
        reaps = not terms.wrapped and "namespaces" not in layers
        sandbox = Sandbox(process, scratch, log, _words(layers, gpu), group, reaps)
        undo.callback(sandbox.stop)
        folders = [own] if not terms.private else []
        sandbox.watchdog = Watchdog(
            process.pid,
            limits,
            sandbox.kill,
            log=log,
            counted=group.excess if group is not None else None,
            folders=[*folders, cache] if cache_writable else folders,
        )
        undo.pop_all()
    return sandbox


def _words(layers: Collection[str], gpu: Gpu | None) -> str:
    """What holds a runner, for a person."""
    shared = f", {len(gpu.nodes)} nodes of all GPUs" if gpu is not None and not gpu.alone else ""
    return f"{isolation.words(layers)}{shared}"


def seen_by_runners(program: str) -> str | None:
    """Where a runner finds a program, by its own PATH or a path that is given; None if it sees none: of programs it has SYSTEM's and this Python's."""
    found = shutil.which(program, path=_path())
    if found is None:
        return None
    folders = map(os.path.realpath, (*SYSTEM, sys.prefix, sys.base_prefix))
    real = Path(os.path.realpath(found))
    return found if any(real.is_relative_to(folder) for folder in folders) else None


def _path() -> str:
    return f"{sysconfig.get_path('scripts')}:/usr/local/bin:/usr/bin:/bin"


def _sweep() -> None:
    """Remove the folders of judges and commands that were killed: their runners died with them."""
    for folder in Path(tempfile.gettempdir()).glob("lab-*-*"):
        if processes.is_left_behind(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _prepare(scratch: Path) -> tuple[Path, Path]:
    """The folder with the runner's code, and the one that is the runner's own."""
    home = scratch / "judge" / "bench"
    for folder in (home, home / "runner", home / "sandbox"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    for name in RUNNER_FILES:
        shutil.copy(BENCH / name, home / name)
    for name in ("tmp", "root"):
        (scratch / name).mkdir()
    return home.parent, scratch / "tmp"


def _terms(
    tree: Path,
    launch: Path,
    own: Path,
    cache: Path,
    cache_writable: bool,
    gpu: Gpu | None,
    limits: Limits,
    layers: Collection[str],
    more: Sequence[str],
) -> Terms:
    """An allow-list: what is not named here does not exist for the runner."""
    wrapped = "bubblewrap" in layers
    alone = wrapped or "namespaces" in layers
    readable = [*SYSTEM, *SETTINGS, sys.prefix, sys.base_prefix, "/sys" if gpu else PROCESSORS]
    # Links are resolved: one that leads into /usr, which is there already, cannot be bound over itself.
    readable += map(os.path.realpath, more)
    readable += [str(tree / name) for name in ("kernels", "csrc", "model")]
    if gpu and "CUDA_HOME" in os.environ:
        readable.append(os.path.realpath(os.environ["CUDA_HOME"]))
    writable = [str(cache)] if cache_writable else []
    readable += [str(launch)] if cache_writable else [str(launch), str(cache)]
    # Without a root of its own, the scratch folder lies on the disk, and /dev/shm is everybody's: it gets none.
    private = dict.fromkeys((str(own), "/dev/shm", COMPILED), limits.disk) if alone else {}
    return Terms(
        layers=[n for n in ("namespaces", "capabilities", "landlock", "seccomp") if n in layers],
        wrapped=wrapped,
        readable=[path for path in readable if os.path.exists(path)],
        writable=writable if alone else [*writable, str(own)],
        devices=gpu.nodes if gpu else (),
        private=private,
        listable=[str(tree)],
        kernel_files=("/proc",) if alone else OWN_KERNEL_FILES,
        limits=limits.rlimits(),
        root=str(own.parent / "root"),
    )


def _bubblewrap(terms: Terms) -> list[str]:
    wrapper = isolation.bubblewrap()
    if wrapper is None:
        raise OSError("bubblewrap was asked for, and none works here: see `python -m agent doctor`")
    private = {p: ["--size", str(size), "--tmpfs", p] for p, size in terms.private.items()}
    # Before what is readable: the scratch folder and the tree may lie there.
    arguments = [*isolation.unshared(wrapper), "--dev", "/dev", *private.pop(namespaces.SHARED, [])]
    for path in terms.readable:
        arguments += ["--ro-bind", path, path]
    # Inside, uid 0 may be the real one, to whom the files in /proc/sys belong.
    arguments += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys"]
    for path in terms.devices:
        arguments += ["--dev-bind", path, path]
    for mount in private.values():
        arguments += mount
    for path in terms.writable:
        arguments += ["--bind", path, path]
    return [*arguments, "--remount-ro", "/dev", "--remount-ro", "/"]


def _padding(texts: Iterable[str]) -> str:
    """Fills up the arguments and variables of a process: its stack begins below them, and the length of a tree's name shall not move it."""
    return "." * (-sum(len(os.fsencode(text)) + 1 for text in texts) % PADDED_BYTES)


def _compilers(terms: Terms) -> dict[str, str]:
    """Of the pool that compiles for torch.compile beside a GPU.

    By default it starts CUDA in a process of its own, which may not name its threads (bench/sandbox/confine.py lets a runner name its own alone), and CUDA
    does not start without. Forked workers know the device from the runner. They need semaphores, which lie in /dev/shm: without it a compilation breaks.
    """
    cores = len(os.sched_getaffinity(0)) if namespaces.SHARED in terms.private else 1
    return {
        "TORCHINDUCTOR_WORKER_START": "fork",
        "TORCHINDUCTOR_COMPILE_THREADS": str(min(COMPILERS, cores)),
    }


def _environment(
    launch: Path, own: Path, cache: Path, terms: Terms, gpu: Gpu | None, poison: bool
) -> dict[str, str]:
    """Built from nothing; what is taken over from the judge's own environment is named here."""
    compiled = Path(COMPILED) if COMPILED in terms.private else own
    environment = {
        "PATH": _path(),
        "HOME": str(own),
        "TMPDIR": str(own),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(launch),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONUNBUFFERED": "1",
        "TORCH_EXTENSIONS_DIR": str(cache),
        "TRITON_CACHE_DIR": str(compiled / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(compiled / "inductor"),
        # How long an OpenMP thread spins before it sleeps. torch's default (300,000 rounds) starves the other thread when
        # anything else runs: on 2 cores beside one busy process a trial fell from 12,000 to 600 tokens/s; with this, to 3,700.
        "GOMP_SPINCOUNT": "10000",
        # Freed memory stays with the process: by default glibc gives large blocks back, and the page faults of getting them again
        # swing a call of plain torch five-fold from one process to the next (rms_norm: 2,000 or 350 us of processor time).
        "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    }
    if poison:
        environment["MALLOC_PERTURB_"] = "1"  # glibc fills with its complement, 0xFE
    # Where OpenMP's is not set, torch has as many threads as MKL: with a number that the judge alone knew, runners would use more than it allows.
    kept = ["CXX", "CC", "OMP_NUM_THREADS", "MKL_NUM_THREADS"]
    if gpu is not None:
        environment |= {"CUDA_VISIBLE_DEVICES": gpu.visible, **_compilers(terms)}
        # The assembler that Triton brings may be older than the kernels need; the path must be one that a runner can read, such as the toolkit's.
        kept += ["LD_LIBRARY_PATH", "TRITON_PTXAS_PATH"]
    # For all runners, also those without a GPU's nodes, which build: what they compile is found by a name that contains the architecture.
    if "CUDA_HOME" in os.environ:
        environment["CUDA_HOME"] = os.path.realpath(os.environ["CUDA_HOME"])
    if architectures := os.environ.get("TORCH_CUDA_ARCH_LIST") or devices.architecture():
        environment["TORCH_CUDA_ARCH_LIST"] = architectures
    return {**environment, **{name: os.environ[name] for name in kept if name in os.environ}}
