"""The JIT: one build for two processes, nothing half-written, errors in the compiler's words, a cache that may be read-only.

Every build here is of a source of a few lines in a folder of its own, so that the tests do not depend on what other caches hold.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kernels import jit

ROOT = Path(__file__).resolve().parent.parent
SOURCE = """
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include "answer.h"
#define NAMED(ns, m) STABLE_TORCH_LIBRARY(ns, m)
#define KERNELS(ns, d, m) STABLE_TORCH_LIBRARY_IMPL(ns, d, m)
int64_t answer(torch::stable::Tensor t) { return ANSWER * t.numel(); }
NAMED(TORCH_EXTENSION_NAME, m) { m.def("answer(Tensor t) -> int"); }
KERNELS(TORCH_EXTENSION_NAME, CPU, m) { m.impl("answer", TORCH_BOX(&answer)); }
"""
PLAIN = '#include "answer.h"\nextern "C" int answer() { return ANSWER; }\n'  # never loaded
BUILD = "import sys; from pathlib import Path; from kernels import jit; print(jit.build(Path(sys.argv[1])))"


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "answer.h").write_text("#define ANSWER 21\n")
    (folder / "demo.cpp").write_text(SOURCE)
    return folder / "demo.cpp"


def start(source, **env):
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(source)],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return Path(out.strip()), err


def test_load_builds_once_and_content_decides_the_name(source, monkeypatch, capsys):
    monkeypatch.setattr(jit, "CSRC", source.parent)
    jit.load.cache_clear()
    assert jit.load("demo").answer(torch.ones(2)) == 42
    assert "building demo.cpp ..." in capsys.readouterr().err

    first = jit.build(source)
    jit.load.cache_clear()
    # the same object again: not a second registration
    assert jit.load("demo").answer(torch.ones(2)) == 42
    assert capsys.readouterr().err == ""  # and not a second build
    assert not list(first.parent.glob("*.scratch"))

    (source.parent / "answer.h").write_text("#define ANSWER 1\n")  # a header is content too
    jit.load.cache_clear()
    assert jit.load("demo").answer(torch.ones(2)) == 2
    assert jit.build(source) != first
    jit.load.cache_clear()


def test_headers_that_a_source_reaches_and_no_others_are_part_of_the_name(source):
    folder = source.parent
    source.write_text('#include "answer.h"\n#include <plain.h>\nint x;\n')
    (folder / "answer.h").write_text('#include "deep.h"\n')
    for name in ("deep.h", "other.h", "plain.h"):
        (folder / name).write_text("// one\n")

    def name() -> str:
        return jit._digest(source, ())

    names = [name()]
    (folder / "other.h").write_text("// two\n")
    assert name() == names[0]
    for changed in ("deep.h", "plain.h", "answer.h"):
        with (folder / changed).open("a") as header:
            header.write("// two\n")
        names.append(name())
    assert len(set(names)) == 4


def test_compiler_error_is_shown_with_its_source_line(source):
    source.write_text(PLAIN.replace("return ANSWER", "return undeclared_answer"))
    with pytest.raises(jit.BuildError):
        jit.build(source)
    with pytest.raises(jit.BuildError) as raised:  # and again, in the same process
        jit.build(source)
    message = str(raised.value)
    assert "demo.cpp:2:" in message
    assert "return undeclared_answer;" in message
    assert "ninja" not in message
    assert not list(jit.cache_directory().glob("*.scratch"))

    # the failure leaves nothing behind that disturbs the next build
    source.write_text(PLAIN)
    assert jit.build(source).is_file()


def test_a_source_that_changes_while_it_is_compiled_leaves_no_object(source, monkeypatch):
    from torch.utils import cpp_extension

    compiled = cpp_extension.load

    def saved_meanwhile(*arguments, **named):
        source.write_text(PLAIN + "// saved by an editor\n")
        return compiled(*arguments, **named)

    monkeypatch.setattr(cpp_extension, "load", saved_meanwhile)
    source.write_text(PLAIN)
    with pytest.raises(jit.BuildError, match="changed while it was compiled"):
        jit.build(source)
    assert not list(jit.cache_directory().glob("demo*.so"))


def test_building_does_not_run_the_source(source, tmp_path):
    marker = tmp_path / "ran"
    source.write_text(
        PLAIN + f'#include <fstream>\nstatic std::ofstream ran("{marker}", std::ios::app);\n'
    )
    built = jit.build(source)
    assert not marker.exists()
    torch.ops.load_library(str(built))
    assert marker.exists()


def test_two_processes_build_one_object(source):
    (first, err1), (second, err2) = map(finish, [start(source), start(source)])
    assert first == second
    assert (err1 + err2).count("built demo.cpp") == 1
    assert (err1 + err2).count("waiting for the process that builds demo.cpp") <= 1


def test_kill_mid_build_then_success(source):
    # a second of compiling to be killed in; torch's headers would take three
    source.write_text("#include <regex>\n" + PLAIN)
    victim = start(source)
    scratch = None
    while not scratch:  # the compiler runs from here until the object appears
        assert victim.poll() is None
        scratch = list((jit.cache_directory()).glob("*.scratch/*.ninja"))
        time.sleep(0.01)
    # Its compiler lives on for a moment, in a folder that the next build removes.
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    assert not list(jit.cache_directory().glob("*.so"))

    built, _ = finish(start(source))
    assert built.is_file()
    assert not list(jit.cache_directory().glob("*.scratch"))


def test_unwritable_cache_builds_in_a_private_folder_under_tmpdir(source, tmp_path, monkeypatch):
    source.write_text(PLAIN)

    # Refused here and not by chmod: root may write to a read-only folder.
    def refuse(dir):
        raise PermissionError(f"{dir} is read-only")

    monkeypatch.setattr(jit.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(jit.tempfile, "gettempdir", lambda: str(tmp_path))
    built = jit.build(source)
    assert built.parent == tmp_path / f"lab-{os.getuid()}"
    assert stat.S_IMODE(built.parent.stat().st_mode) == 0o700
    assert not list(jit.cache_directory().iterdir())


def test_what_is_missing_is_said(source, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="target='sparc': expected one of"):
        jit.build(source, "sparc")
    with pytest.raises(FileNotFoundError, match=r"no nothing\.cpp in "):
        jit.build(tmp_path / "nothing.cpp")
    cuda = source.with_suffix(".cu")
    cuda.write_text("")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(jit.BuildError, match="demo.cu needs CUDA, and this torch"):
        jit.build(cuda)
    monkeypatch.setenv("CXX", "no-such-compiler")
    jit._version.cache_clear()
    try:
        with pytest.raises(jit.BuildError, match="'no-such-compiler' is not on the PATH"):
            jit.build(source)
    finally:
        jit._version.cache_clear()


def test_setup_builds_every_instruction_set_where_load_looks(source, tmp_path):
    checkout = source.parent.parent
    source.write_text(PLAIN)
    shutil.copytree(ROOT / "kernels", checkout / "kernels")
    shutil.copy(ROOT / "setup.py", checkout)
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = [line.split(": ") for line in done.stdout.splitlines()]
    assert [name for name, _ in built] == [f"demo.cpp {target}" for target in jit.targets()]
    assert len({path for _, path in built}) == len(jit.targets())
    if platform.machine() == "x86_64":
        assert jit.targets() == ("amx", "avx512", "avx2", "generic")

    load = "from kernels import jit; print(jit.build(jit.CSRC / 'demo.cpp'))"
    done = subprocess.run(
        [sys.executable, "-c", load], cwd=checkout, capture_output=True, text=True
    )
    assert done.stderr == ""  # found in csrc/build, not built again
    assert done.stdout.strip() in {str(checkout / path) for _, path in built}
    assert not (tmp_path / "cache").exists()


def test_editable_install_compiles_nothing_and_needs_no_torch(tmp_path):
    without_torch = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['setup.py', '-q', '--name'];"
    )
    run = "exec(compile(open('setup.py').read(), 'setup.py', 'exec'), {'__file__': 'setup.py', '__name__': '__main__'})"
    done = subprocess.run(
        [sys.executable, "-c", without_torch + run], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "kernel-lab\n"


def test_the_folder_that_must_hold_the_object_is_not_replaced(source, tmp_path, monkeypatch):
    source.write_text(PLAIN)

    def refuse(dir):
        raise PermissionError(f"{dir} is read-only")

    monkeypatch.setattr(jit.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(jit.tempfile, "gettempdir", lambda: str(tmp_path))
    assert jit.build(source, into=tmp_path / "held").parent == tmp_path / "held"


def test_cub_is_built_without_nvtx_which_loads_libraries():
    assert {"-DNVTX_DISABLE", "-DCCCL_DISABLE_NVTX"} <= set(jit.CUDA_FLAGS)


def test_another_nvcc_makes_another_object(tmp_path, monkeypatch):
    from torch.utils import cpp_extension

    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    nvcc, names = tmp_path / "bin" / "nvcc", set()
    nvcc.parent.mkdir()
    (tmp_path / "x.cu").touch()
    for release in ("12.8", "13.1"):
        nvcc.write_text(f"#!/bin/sh\necho nvcc\necho release {release}\n")
        nvcc.chmod(0o755)
        jit._version.cache_clear()
        names.add(jit._digest(tmp_path / "x.cu", ()))
    jit._version.cache_clear()
    assert len(names) == 2
