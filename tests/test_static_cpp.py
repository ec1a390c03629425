"""The static gate on C++ and CUDA, as written and as the preprocessor gives it to the compiler."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from lab_tree import CPP, Rules
from static_gate import judged
from torch.utils.cpp_extension import COMMON_NVCC_FLAGS

from agent import gates
from agent.records import Candidate, Change
from agent.static import cpp, preprocessed


@pytest.mark.parametrize(
    "line",
    [
        "#include <fstream>",
        "#include <thread>",
        "#include <future>",
        "#include <sys/socket.h>",
        '#include "../bench/secret.h"',
        '#include "/etc/passwd"',
        "#define NAME <cstdlib>\n#include NAME",
        "#  include <dlfcn.h>",
        '#embed "weights.bin"',
        'int f() { return system("ls"); }',
        "auto f = ::system;",
        "int f() { return sys\\\ntem(0); }",
        "void f() { fork(); }",
        "int f() { return dup(0); }",
        "void* f() { return dlopen(0, 2); }",
        'const char* f() { return std::getenv("HOME"); }',
        'void f() { asm("syscall"); }',
        'void f() { asm("vaddps %zmm0, %zmm1, %zmm2\\n\\t.byte 0x0f, 0x05"); }',
        'int f() asm("system");',
        '#define TEXT "syscall"\nvoid f() { asm(TEXT); }',
        "int f()\n{ return ::open\n(0, 0); }",
        "void f() { auto t = std::\n::std::thread(); }",
        'Tensor g() { return torch_call_dispatcher("aten::scaled_dot_product_attention", "", 0); }',
        'void g(const char* name) { torch_call_dispatcher(name, "", 0); }',
        "void g() { aoti_torch_cpu__scaled_dot_product_flash_attention(); }",
        '#line 1 "/usr/include/stdio.h"',
        "#if 0\n' /*\n#endif\nvoid f() { fork(); }\n// */",
        'void f() { asm("nop\\n" R"(syscall)" : : ); }',
        'void f() { asm("vx : syscall"); }',
        "void g() { auto call = torch_call_dispatcher; }",
        'void g() { torch_call_dispatcher("aten::" "from_file", "", 0); }',
        "void f() { stdout->_fileno = 5; }",
        "#pragma GCC system_header",
        "#if __has_include(</judge>)\nint x;\n#endif",
        '[[gnu::section(".text")]] const int code = 1;',
        'void f() { __asm__ volatile("rdtsc"); }',
        "__attribute__((constructor)) void f() {}",
        "[[gnu::constructor]] void f() {}",
        "void f() { std::thread t; }",
        "void f() { at::parallel_for(0, 9, 1, [](int, int) {}); }",
        "void f() {\n#pragma omp parallel for\n  for (int i = 0; i < 9; ++i) {}\n}",
        "void f() { pthread_create(0, 0, 0, 0); }",
        "void f() { _exit(0); }",
        "void f() { ::exit(0); }",
        'int f() { return open("/x", 0); }',
        "TORCH_LIBRARY_IMPL(aten, CPU, m) {}",
        "STABLE_TORCH_LIBRARY_IMPL(aten, CPU, m) {}",
        "void f() { \\u0073ystem(0); }",
        '#define BAR\nconst char* s = BAR"("; static long start = time(0); // )"',
        """int tens = 1'0 + '"'; static long start = time(0); // ' \"""",
        """char f() { return'"'; static long start = time(0); return 0; } // \"""",
        # lines and strings as a compiler sees them
        '// a\r#line 1 "/usr/include/stdio.h"',
        '#\fline 1 "/usr/include/stdio.h"',
        'const char* s = R"(\\\n# 1 "/usr/include/x.h"\n)";',
        '[[gnu::\nsection(".text")]] const int code = 1;',
        'void f() {\nstatic L lib(1, "at" "en", "CPU", "x", 1); }',
        "void f() {\nusing L = int; auto k = L::Kind::IMPL; }",
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
        "void f(float* dup, float dy, float gate) { *dup = dy * gate; }",
        "alignas(64) float x[4]; __attribute__((aligned(64))) float y[4];",
        "#pragma omp simd reduction(+ : sum)\nint z;",
        "#define UNROLL 4",
        "#include <experimental/simd>\n#include <sched.h>\nint raise(int x, int n); int f() { return raise(2, 3); }",
        'void f(const void* p) { asm volatile("cldemote (%0)\\n\\t{vex} vpdpbusd %%ymm0, %%ymm1, %%ymm2\\n\\tmovntdq %%xmm0, (%0)" ::"r"(p)); }',
        "template <typename F> static double time(F&& f) { f(); return 0; }",
        "int systematic = 1, executor = 2, forked = 3, timer = 4;",
        "#include <sys/mman.h>\nvoid f(void* p) { madvise(p, 1, MADV_HUGEPAGE); }",
        '#include <torch/csrc/stable/library.h>\nvoid f(StableIValue* s) { TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::add", "Tensor", s, 0)); }',
        "int x = 1'000'000; char c = '\"'; char d = '\\'';",
        "#include <chrono>\nint f() { static const int best = [&] { const auto a = std::chrono::steady_clock::now(); return a < std::chrono::steady_clock::now() ? 1 : 2; }(); return best; }",
    ],
)
def test_cpp_that_only_looks_odd_passes(line: str) -> None:
    found = judged("csrc/scale.cpp", f"{CPP}{line}\n")
    assert found.passed, found.reason


@pytest.mark.parametrize(
    "text",
    [
        "#define GLUE(a, b) a##b\nint f() { return GLUE(sys, tem)(0); }",
        "%:define GLUE(a, b) a %:%: b\nint f() { return GLUE(ge, tenv)(0); }",
        "#define NAME sys\n#define TAIL tem\n#define G(a, b) a##b\n#define H(a, b) G(a, b)\nauto f = &H(NAME, TAIL);",
        "#define G(a, b) a##b\nint f() { return ::G(op, en)\n(0, 0); }",
        "#define A(x) __attribute__((x))\n#define G(a, b) a##b\nA(G(con, structor)) void f() {}",
        "#define G(a, b) a##b\nvoid f() { std::G(thr, ead) t; }",
        '_Pragma("redefine_extname f system") int f(const char*);',
        '#define G(a, b) a##b\nvoid f() { G(torch_lib, rary_impl)(0, "x", 0, 0); }',
        "#include <ctime>\n#define KEEP static\n#define ASK time\nlong f() { KEEP long start = ASK(0); return start; }",
    ],
)
def test_what_macros_hide_shows_after_the_preprocessor(text: str) -> None:
    found = judged("csrc/scale.cpp", text + "\n")
    assert not found.passed
    assert "after the preprocessor" in found.reason


def test_a_header_that_changes_is_read_in_the_sources_that_include_it(tmp_path: Path) -> None:
    (tmp_path / "csrc").mkdir()
    header = "#define GLUE(a, b) a##b\n"
    (tmp_path / "csrc/glue.h").write_text(header)
    source = '#include "glue.h"\nint f() { return GLUE(sys, tem)(0); }\n'
    (tmp_path / "csrc/scale.cpp").write_text(source)
    change = Change("csrc/glue.h", "100644", "100644", b"", header.encode())
    candidate = Candidate("all", tmp_path, tmp_path, (change,))
    found = gates.static(candidate, gates.Context(Rules()))
    assert "csrc/scale.cpp:2: `system`" in found.reason


def test_cuda_may_write_ptx_and_read_the_clock_which_is_advice() -> None:
    mma = 'asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0}, {%1}, {%2}, {%3};");'
    assert judged("csrc/scale.cu", f"__device__ void f() {{ {mma} }}\n").passed
    assert not judged("csrc/scale.cu", 'void f() { asm volatile("syscall"); }\n').passed
    assert cpp.inspect_source("csrc/scale.cu", "#include <cublas_v2.h>\n").refusals == []
    found = judged("csrc/scale.cu", "__device__ long long f() { return clock64(); }\n")
    assert found.passed
    assert "`clock64`" in found.evidence["advice"][0]


@pytest.mark.parametrize(
    "line",
    [
        "long f() { return time(0); }",
        "long f() { return std::clock(); }",
        "const char* when = __TIME__;",
        "using C = std::chrono::steady_clock; long begun = 0; void f() { begun = C::now().time_since_epoch().count(); }",
        "using C = std::chrono::steady_clock; C::time_point begun; bool f() { return C::now() - begun > std::chrono::hours(1); }",
        "using C = std::chrono::steady_clock; auto f() { const auto a = C::now(); return [=] { return C::now() - a; }; }",
        "using C = std::chrono::steady_clock; const auto born = C::now();",
        "using C = std::chrono::steady_clock; auto f() { const auto a = C::now(); return [=](int (*g)()) { return C::now() - a; }; }",
        "using C = std::chrono::steady_clock; C::time_point k; void f() { const auto a = C::now(); k = a; }",
    ],
)
def test_what_time_it_is_decides_nothing(line: str) -> None:
    found = judged("csrc/scale.cpp", f"#include <chrono>\n#include <ctime>\n{CPP}{line}\n")
    assert "clock" in found.reason


@pytest.mark.parametrize(
    "line",
    [
        "using C = std::chrono::steady_clock; long f() { const auto a = C::now(); const auto b = C::now(); return (b - a).count(); }",
        "using C = std::chrono::steady_clock; long f() { auto a = C::now(); return (C::now() - a).count(); }",
        "using C = std::chrono::steady_clock; void f(double* s) { const auto a = C::now(); const auto b = C::now(); s[0] = std::chrono::duration<double>{b - a}.count(); }",
        "long f() { const std::chrono::time_point<std::chrono::steady_clock> a = std::chrono::steady_clock::now(); return (std::chrono::steady_clock::now() - a).count(); }",
        "struct Timer { double time(int n); }; double f(Timer& t) { return t.time(0); }",
    ],
)
def test_a_duration_within_one_function_passes(line: str) -> None:
    found = judged("csrc/scale.cpp", f"#include <chrono>\n{CPP}{line}\n")
    assert found.passed, found.reason


def test_what_the_preprocessor_takes_for_some_instruction_sets_alone_is_refused() -> None:
    found = judged("csrc/scale.cpp", "#ifdef __AVX512F__\n#error too large\n#endif\nint x;\n")
    assert "does not pass the preprocessor for amx, avx512" in found.reason


def test_cuda_is_preprocessed_with_the_macros_that_it_is_built_with() -> None:
    assert {f for f in COMMON_NVCC_FLAGS if f.startswith("-D")} == set(preprocessed.CUDA_MACROS)


def test_words_that_a_header_pastes_are_told_by_the_header_s_line(tmp_path: Path) -> None:
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc/glue.h").write_text("\n#define GLUE(a, b) a##b\n")
    found = cpp.inspect(tmp_path, "csrc/scale.cpp", '#include "gone.h"\n#include "glue.h"\n')
    ((line, said),) = found.refusals
    assert line == 1
    assert said.startswith("csrc/glue.h:2: `##` pastes words together")


@pytest.mark.parametrize(
    "text",
    [
        "Library" * 8_000,
        "gnu:" * 15_000,
        "__attribute__" * 4_500,
        "aoti_torch_" * 5_500,
        "auto t = now(); x" + "(" * 30_000,
    ],
)
def test_a_text_made_to_be_read_slowly_is_read_within_seconds(text: str) -> None:
    began = time.monotonic()
    cpp.inspect_source("csrc/scale.cpp", f"void f() {{ {text}; }}\n")
    assert time.monotonic() - began < 10
