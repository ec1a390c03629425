"""The static gate: refuses what a kernel has no business with, by line, and nothing that an honest file holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab_tree import CPP, PY, TRAIN, Rules

from agent import gates, static_cpp, static_python
from agent.judging import Bench
from agent.records import Candidate, Change
from bench.finding import Finding

ROOT = Path(__file__).resolve().parent.parent


def judged(path: str, text: str, complete: bool = True) -> Finding:
    change = Change(path, "100644", "100644", b"", text.encode())
    return gates.static(
        Candidate("all", ROOT, ROOT, (change,)), gates.Context(Rules(), complete=complete)
    )


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "import subprocess as s",
        "from ctypes import CDLL",
        "import sys, math",
        "import importlib",
        "import gc, inspect",
        "import socket",
        "import time",
        "import threading",
        "import builtins",
        "import requests",
        "from . import jit",
        "from torch.utils import cpp_extension",
        "from torch.utils.cpp_extension import load_inline as build",
        "import torch.utils.cpp_extension as e",
        "import torch\ntorch.load('w.pt')",
        "import torch as t\nt.hub.load('a', 'b')",
        "from torch import hub",
        "import torch\ntorch.os.system('ls')",
        "import functools\nfunctools.sys.modules",
        "import torch\ntorch.ops.load_library('a.so')",
        "import numpy as np\nnp.fromfile('/dev/shm/x')",
        "import numpy as np\nW = np.memmap",
        "import torch\ntorch.UntypedStorage.from_file('x')",
        "exec('1')",
        "f = eval",
        "__import__('os')",
        "open('/etc/passwd')",
        "compile('1', 'a', 'exec')",
        "globals()['a'] = 1",
        "getattr(scale, '__glo' + 'bals__')",
        "getattr(scale, '__globals__')",
        "scale.__globals__",
        "(1).__class__.__base__.__subclasses__()",
        "def f(e):\n    return e.__traceback__.tb_frame",
        "import torch\ntorch.allclose = lambda *a: True",
        "import torch\ntorch.Tensor.__eq__ = None",
        "import torch.nn.functional as F\nF.linear, b = 1, 2",
        "import torch\ndel torch.allclose",
        "import torch\ntorch.__dict__['allclose'] = 1",
        "import torch\nsetattr(torch, 'allclose', None)",
        "import torch\nfor torch.allclose in [1]: pass",
        "import torch\ntorch.set_default_dtype(torch.float16)",
        "import torch\ntorch.manual_seed(0)",
        "from torch.library import Library\nL = Library('aten', 'IMPL')",
        "import torch\ntorch.library.impl('aten::mm', 'CPU')",
        "import torch\ntorch.cuda.Event(enable_timing=True)",
        "from operator import attrgetter",
        "from types import CodeType",
    ],
)
def test_python_that_reaches_out_is_refused_with_its_line(line: str) -> None:
    found = judged("kernels/scale.py", f"{PY}\n{line}\n")
    assert not found.passed
    assert "kernels/scale.py:" in found.reason


@pytest.mark.parametrize(
    "line",
    [
        "import math, functools, itertools",
        "import torch.nn.functional as F\nF.silu",
        "from torch.utils.checkpoint import checkpoint",
        "import torch\nscale.calls = 0\n@torch.compile(dynamic=False)\ndef g(x): return x.eval",
        "import torch\n@torch.library.custom_op('kernels::scale', mutates_args=())\ndef op(x: torch.Tensor) -> torch.Tensor: ...",
        "class A:\n    def __init__(self, n):\n        self.n = getattr(n, 'n', 0)",
        "# os.system('rm') would be refused\n'import os'",
        "def f(input, timeout): return input",
        "from torch import compile\ncompile(scale)",
        "import warnings\nwarnings.filterwarnings('ignore')",
        "import torch\nwith torch.no_grad(), torch.autocast('cpu'): pass",
        "def load(x): return x.load",
        "stream = 1; system = 2",
    ],
)
def test_python_that_only_looks_odd_passes(line: str) -> None:
    found = judged("kernels/scale.py", f"{PY}\n{line}\n")
    assert found.passed, found.reason


def test_python_that_does_not_parse_is_refused_with_its_line() -> None:
    found = judged("kernels/scale.py", PY + "\ndef broken(:\n")
    assert not found.passed
    assert "does not parse" in found.reason
    assert "kernels/scale.py:11" in found.reason
    assert "does not parse" in judged("kernels/scale.py", "x = 1\0").reason


def test_a_broad_except_is_advice_and_no_refusal() -> None:
    found = judged("kernels/scale.py", PY + "\ntry:\n    scale(1)\nexcept Exception:\n    pass\n")
    assert found.passed
    assert "kernels/scale.py:13: a broad except" in found.evidence["advice"][0]


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        (PY.replace("def scale", "def scaled"), "write `def scale(x, factor=2.0)`"),
        (PY.replace("factor=2.0", "factor=3.0"), "is not the public signature"),
        (PY.replace("factor=2.0", "factor"), "is not the public signature"),
        (PY.replace("(x, factor", "(y, factor"), "is not the public signature"),
        (PY.replace("*, impl=None", "more"), "does not parse"),
        (PY.replace("IMPLEMENTATIONS", "KINDS"), "no IMPLEMENTATIONS"),
    ],
)
def test_the_public_function_must_stay_and_the_reason_says_how_it_looks(
    text: str, mend: str
) -> None:
    assert mend in judged("kernels/scale.py", text).reason


def test_a_single_file_needs_neither_impl_nor_implementations() -> None:
    text = "def scale(x, factor=2e0, fast=True):\n    return x * factor\n"
    assert judged("kernels/scale.py", text, complete=False).passed


def test_the_trainer_keeps_the_methods_that_the_trial_calls() -> None:
    assert judged("model/train.py", TRAIN).passed
    assert "lacks logits" in judged("model/train.py", TRAIN.replace("logits", "scores")).reason


def test_the_model_may_keep_time_and_find_its_kernels_and_no_more() -> None:
    honest = "import importlib, queue, resource, threading, time\nimport torch\n"
    honest += "torch.backends.cuda.matmul.allow_tf32 = True\ntorch.manual_seed(1)\n"
    honest += 'op = "rms_norm"\nimportlib.import_module(f"kernels.{op}")\n'
    assert judged("model/optim.py", honest).passed
    for line in (
        'importlib.import_module("os")',
        "importlib.reload(torch)",
        "resource.setrlimit(1, 2)",
        "torch.mm = None",
    ):
        assert not judged("model/optim.py", honest + line).passed, line


@pytest.mark.parametrize(
    "line",
    [
        "#include <fstream>",
        "#include <thread>",
        "#include <chrono>",
        "#include <sys/socket.h>",
        '#include "../bench/secret.h"',
        '#include "/etc/passwd"',
        "#define NAME <cstdlib>\n#include NAME",
        "#  include <dlfcn.h>",
        '#embed "weights.bin"',
        'int f() { return system("ls"); }',
        "auto f = ::system;",
        "int f() { return sys\\\ntem(0); }",
        "#define GLUE(a, b) a##b",
        "%:define GLUE(a, b) a %:%: b",
        "void f() { fork(); }",
        "void* f() { return dlopen(0, 2); }",
        'const char* f() { return std::getenv("HOME"); }',
        'void f() { asm("nop"); }',
        'void f() { __asm__ volatile("rdtsc"); }',
        "unsigned long long f() { return __rdtsc(); }",
        "__attribute__((constructor)) void f() {}",
        "[[gnu::constructor]] void f() {}",
        "void f() { std::thread t; }",
        "void f() { pthread_create(0, 0, 0, 0); }",
        "void f() { _exit(0); }",
        "void f() { ::exit(0); }",
        'int f() { return open("/x", 0); }',
        "TORCH_LIBRARY_IMPL(aten, CPU, m) {}",
        "STABLE_TORCH_LIBRARY_IMPL(aten, CPU, m) {}",
        "void f() { \\u0073ystem(0); }",
    ],
)
def test_cpp_that_reaches_out_is_refused_with_its_line(line: str) -> None:
    found = judged("csrc/scale.cpp", f"{CPP}{line}\n")
    assert not found.passed
    assert any(f"csrc/scale.cpp:{n}:" in found.reason for n in (4, 5))


@pytest.mark.parametrize(
    "line",
    [
        "// system() and fork() are refused; asm too",
        "/* #include <fstream>\n popen */ int x;",
        'const char* s = "system, fork, asm and a ## b";',
        '#include <immintrin.h>\n#include <torch/csrc/stable/tensor.h>\n#include "lab.h"',
        "struct Signal { int kill, clone; }; void f(Signal& s) { s.open(); s->signal(); }",
        "alignas(64) float x[4]; __attribute__((aligned(64))) float y[4];",
        "#pragma omp simd reduction(+ : sum)\nint z;",
        "#define UNROLL 4",
        "int systematic = 1, executor = 2, forked = 3, timer = 4;",
        "#include <sys/mman.h>\nvoid f(void* p) { madvise(p, 1, MADV_HUGEPAGE); }",
        "int x = 1'000'000; char c = '\"'; char d = '\\'';",
    ],
)
def test_cpp_that_only_looks_odd_passes(line: str) -> None:
    found = judged("csrc/scale.cpp", f"{CPP}{line}\n")
    assert found.passed, found.reason


def test_cuda_may_write_ptx_but_not_read_the_clock() -> None:
    mma = 'asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0}, {%1}, {%2}, {%3};");'
    assert judged("csrc/scale.cu", f"__device__ void f() {{ {mma} }}\n").passed
    assert not judged("csrc/scale.cu", "__device__ long long f() { return clock64(); }\n").passed


def test_this_project_s_own_files_pass() -> None:
    real = Bench()
    for folder in ("kernels", "csrc", "model"):
        for file in sorted((ROOT / folder).glob("*.*")):
            if file.suffix not in (".py", ".cpp", ".cu", ".h") or file.name in (
                "__init__.py",
                "jit.py",
            ):
                continue
            change = Change(f"{folder}/{file.name}", "100644", "100644", b"", file.read_bytes())
            found = gates.static(Candidate("all", ROOT, ROOT, (change,)), gates.Context(real))
            assert found.passed, found.reason


@pytest.mark.parametrize(
    "file", sorted((ROOT / "tests/honest").glob("*.*")), ids=lambda path: path.stem
)
def test_honest_oddities_pass(file: Path) -> None:
    reader = static_python if file.suffix == ".py" else static_cpp
    folder = "kernels" if file.suffix == ".py" else "csrc"
    assert reader.inspect_source(f"{folder}/{file.name}", file.read_text()).refusals == []
