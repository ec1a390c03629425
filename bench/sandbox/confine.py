"""Second stage of the sandbox: runs inside it, takes from itself what a candidate has no use for, and becomes the runner.

    python -m bench.sandbox.confine TERMS MODULE ARGUMENTS...      TERMS as JSON, written by bench/sandbox/__init__.py
    python -m bench.sandbox.confine probe                          what this machine gives, as JSON: {layer: why not, or null}

The order matters: namespaces first, because Landlock forbids mounts; then no_new_privs, which Landlock and seccomp ask for; seccomp last.
A layer that was asked for and does not hold ends the process before candidate code is read: nothing is left out in silence.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import runpy
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.sandbox import landlock, linux, namespaces, seccomp

TO_PROBE = ("/usr", "/bin", "/lib", "/lib64")


@dataclass(frozen=True)
class Terms:
    """What a runner may have; paths are absolute, and those that do not exist are left out."""

    # some of namespaces, capabilities, landlock, seccomp
    layers: Sequence[str]
    # bubblewrap has made namespaces around this process
    wrapped: bool = False
    readable: Sequence[str] = ()
    writable: Sequence[str] = ()
    devices: Sequence[str] = ()
    # empty folders of its own, in memory, with their size in bytes
    private: Mapping[str, int] = field(default_factory=dict)
    # folders that may be listed, with those below: Python finds modules by listing
    listable: Sequence[str] = ()
    # files and folders of /proc that may be read
    kernel_files: Sequence[str] = ("/proc",)
    # by their names in the module `resource`
    limits: Mapping[str, int] = field(default_factory=dict)
    # an empty folder on which our own launcher builds the new root
    root: str = ""

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def main() -> None:
    if sys.argv[1:] == ["probe"]:
        print(json.dumps(probe()))
        return
    terms = Terms(**json.loads(sys.argv[1]))
    _, _, module, *arguments = sys.argv
    apply(terms)
    # Off until the module's main: what torch makes at its import stays, and collecting through it again and again takes a tenth of its 0.9 s.
    gc.disable()
    sys.argv = [module, *arguments]
    runpy.run_module(f"bench.{module}", run_name="__main__", alter_sys=True)


def apply(terms: Terms) -> None:
    """Confine this process, which from here on may be a child of the one that called. Raises OSError where a layer does not hold."""
    if len(os.listdir("/proc/self/task")) != 1:
        raise OSError("a thread is running already, and would stay outside")
    if "namespaces" in terms.layers:
        namespaces.enter(
            Path(terms.root), terms.readable, terms.writable, terms.devices, terms.private
        )
    elif not terms.wrapped:
        namespaces.watch_descendants()
    for name, value in terms.limits.items():
        _limit(getattr(resource, name), value)
    if "capabilities" in terms.layers:
        linux.drop_capabilities()
    linux.prctl(linux.SET_NO_NEW_PRIVS, 1)
    if "landlock" in terms.layers:
        landlock.restrict(_rights(terms))
    if "seccomp" in terms.layers:
        bare = not (terms.wrapped or "namespaces" in terms.layers)
        scoped = "landlock" in terms.layers and landlock.abi() >= landlock.SIGNALS_SINCE
        seccomp.install(sees_others=bare, signals=bare and not scoped, sees_files=bare)


def _rights(terms: Terms) -> list[tuple[str, int]]:
    return [
        *((path, landlock.RUN) for path in terms.readable),
        *((path, landlock.READ_DIR) for path in terms.listable),
        *((path, landlock.READ) for path in terms.kernel_files),
        *((path, landlock.WRITE) for path in (*terms.writable, *terms.private)),
        *((path, landlock.DEVICE) for path in (*namespaces.NODES, *terms.devices)),
        # CUDA gives its threads names
        *([("/proc/self/task", landlock.WRITE)] if terms.devices else []),
    ]


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def probe() -> dict[str, str | None]:
    """Each layer tried in a child of its own: why it does not hold, or None."""
    with tempfile.TemporaryDirectory(prefix="lab-probe-") as root:
        return {
            "namespaces": _why_not(lambda: _try_namespaces(root)),
            "capabilities": _why_not(_try_capabilities),
            "landlock": _why_not(_try_landlock),
            "seccomp": _why_not(_try_seccomp),
        }


def _why_not(attempt: Callable[[], None]) -> str | None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            attempt()
            code = 0
        except OSError as error:
            os.write(writer, str(error).encode() or b"refused")
        finally:  # whatever went wrong: no child may go on as its parent
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        said = answer.read().decode()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return said or (f"the process that tried it ended with status {code}" if code else None)


def _try_namespaces(root: str) -> None:
    namespaces.enter(Path(root), TO_PROBE, (), (), {"/tmp": 1 << 20})
    if os.getpid() != 2 or os.path.exists(root):
        raise OSError("the new namespaces show what lies outside")


def _try_capabilities() -> None:
    linux.drop_capabilities()
    if linux.effective_capabilities():
        raise OSError("capabilities are left")


def _try_landlock() -> None:
    linux.prctl(linux.SET_NO_NEW_PRIVS, 1)
    landlock.restrict([(path, landlock.RUN) for path in TO_PROBE])
    _must_be_refused(lambda: os.open("/proc/self/status", os.O_RDONLY))


def _try_seccomp() -> None:
    linux.prctl(linux.SET_NO_NEW_PRIVS, 1)
    seccomp.install(sees_others=True, signals=True, sees_files=True)
    _must_be_refused(socket.socket)


def _must_be_refused(act: Callable[[], object]) -> None:
    try:
        act()
    except PermissionError:
        return
    raise OSError("it was accepted, and refused nothing")


if __name__ == "__main__":
    main()
