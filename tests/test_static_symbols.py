"""What a built object imports and exports, held against what C++ of a kernel needs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from lab_tree import Rules
from static_gate import ROOT, judged

from agent import gates
from agent.records import Candidate, Change
from agent.static import symbols
from bench.finding import Finding
from kernels import jit

HONEST_CPP = """
#include <immintrin.h>
#include <array>
#include <chrono>
#include <mutex>
#include <random>
#include <unordered_map>
#define DISPATCH(name, type) void name##_##type(type* p) { *p = type(0); }
DISPATCH(clear, float)
namespace {
constexpr std::array<int, 4> kTiles{16, 32, 64, 128};
thread_local std::vector<float> scratch;
std::mutex guard;
std::unordered_map<long, int> best;  // tile by shape
using Kernel = void (*)(const float*, float*, long);
template <int kTile> void run(const float* x, float* y, long n) {
  for (long i = 0; i < n; ++i) y[i] = x[i] * static_cast<float>(kTile);
}
constexpr Kernel kKernels[] = {run<16>, run<32>, run<64>, run<128>};
int tune(const float* x, float* y, long n) {
  std::lock_guard<std::mutex> lock(guard);
  if (auto found = best.find(n); found != best.end()) return found->second;
  int fastest = 0;
  double least = 1e30;
  for (int k = 0; k < 4; ++k) {
    const auto start = std::chrono::steady_clock::now();
    kKernels[k](x, y, n);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    if (took.count() < least) least = took.count(), fastest = k;
  }
  std::mt19937 order(static_cast<unsigned>(n));
  std::printf("%d", kTiles[order() % 4]);
  asm volatile("" ::: "memory");
  return best[n] = fastest;
}
float sum(const float* x) {
#if defined(__AVX__)
  __m256 v = _mm256_loadu_ps(x);
  return _mm256_cvtss_f32(_mm256_hadd_ps(v, v));
#else
  return x[0];
#endif
}
// open(), system() and exec are words in a comment
const char* kSays = "cannot open system file";
Tensor scale(const Tensor& x, double factor) {
  STD_TORCH_CHECK(x.is_contiguous(), "scale: expected a contiguous tensor, use ", factor);
  Tensor y = torch::stable::empty_like(x);
  scratch.resize(static_cast<size_t>(x.numel()));
  tune(reads<float>(x), writes<float>(y), x.numel());
  clear_float(writes<float>(y));
  y = std::signbit(sum(reads<float>(x))) ? y : y;
  std::copy_n(kSays, 0, reinterpret_cast<char*>(writes<float>(y)));
  return y;
}
}  // namespace
LAB_SCHEMAS(m) { m.def("scale(Tensor x, float factor) -> Tensor"); }
LAB_KERNELS(CPU, m) { m.impl("scale", TORCH_BOX(&scale)); }
"""


def test_honest_cpp_passes_as_text_and_as_an_object(tmp_path: Path) -> None:
    text = f'#include "lab.h"\n{HONEST_CPP}'
    found = judged("csrc/scale.cpp", text)
    assert found.passed, found.reason
    assert any("steady_clock" in line for line in found.evidence["advice"])
    assert symbols.problems(built(tmp_path, text)) == []


def built(folder: Path, text: str) -> Path:
    """The object that kernels/jit.py makes of a source among csrc's headers."""
    for header in (ROOT / "csrc").glob("*.h"):
        (folder / header.name).write_bytes(header.read_bytes())
    (folder / "scale.cpp").write_text(text)
    return jit.build(folder / "scale.cpp", into=folder)


@pytest.fixture(scope="module")
def plain_object(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Objects of plain C++, without torch's headers, from the compiler itself."""

    def make(text: str) -> Path:
        folder = tmp_path_factory.mktemp("object")
        (folder / "a.cpp").write_text(text)
        command = [
            os.environ.get("CXX", "c++"),
            "-std=c++20",
            "-O1",
            "-shared",
            "-fPIC",
            "a.cpp",
            "-o",
            "a.so",
        ]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return folder / "a.so"

    return make


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('extern "C" int f(const char*) asm("system"); int g() { return f("ls"); }', "system"),
        ('extern "C" long syscall(long, ...); long g() { return syscall(39); }', "syscall"),
        ('extern "C" int dl_iterate_phdr(void*, void*); int g() { return dl_iterate_phdr(nullptr, nullptr); }', "dl_iterate_phdr"),
        ("namespace at { void launch(int); } void g() { using namespace at; launch(1); }", "launch"),
        ('extern "C" int socket(int, int, int); int g() { return socket(2, 1, 0); }', "socket"),
        ('#include <fstream>\nvoid g() { std::ofstream("/tmp/x") << 1; }', "filebuf"),
        ("#include <thread>\nvoid g() { std::thread([] {}).detach(); }", "thread"),
        ("#include <random>\nunsigned g() { return std::random_device()(); }", "random_device"),
        ('extern "C" void* PyDict_New(); void* g() { return PyDict_New(); }', "PyDict_New"),
        ('extern "C" char** environ; char** g() { return environ; }', "environ"),
        ('extern "C" void* malloc(unsigned long) { return nullptr; }', "defines `malloc`"),
        ("void* operator new(unsigned long) { return nullptr; }", "defines `_Znwm`"),
        ("__attribute__((constructor)) void now() {}", "now"),
        ("namespace at::native { struct S { void* p; }; extern S copy_stub; } void* g() { return at::native::copy_stub.p; }", "copy_stub"),
        ("namespace at { unsigned long addGlobalCallback(int); } unsigned long g() { return at::addGlobalCallback(1); }", "addGlobalCallback"),
        ("namespace c10 { struct Dispatcher { static Dispatcher& realSingleton(); }; } void* g() { return &c10::Dispatcher::realSingleton(); }", "Dispatcher"),
        ("namespace at { void set_num_threads(int); } void g() { at::set_num_threads(1); }", "set_num_threads"),
        ("namespace at { void set_num_interop_threads(int); } void g() { at::set_num_interop_threads(1); }", "set_num_interop_threads"),
        ("namespace c10::utils { bool get_env(const char*); } bool g() { return c10::utils::get_env(\"HOME\"); }", "get_env"),
        ("#include <fstream>\nvoid* g() { static std::__basic_file<char> f; return f.open(\"/x\", std::ios::in); }", "__basic_file"),
        ("namespace c10 { struct TensorImpl { virtual void look(); }; } struct Later : c10::TensorImpl {}; void* g() { return new Later; }", "TensorImpl"),
    ],
)  # fmt: skip
def test_an_object_that_asks_for_more_is_refused_by_the_symbol(
    text: str, names: str, plain_object: Callable[[str], Path]
) -> None:
    problems = symbols.problems(plain_object(text))
    assert len(problems) >= 1
    assert any(names in problem for problem in problems)


def test_an_object_of_arithmetic_has_no_problem(plain_object: Callable[[str], Path]) -> None:
    text = "#include <cmath>\n#include <vector>\n#include <cstdio>\nstatic std::vector<double> table(8, std::sin(1.0));\n"
    text += 'double g(int n) { std::printf("%d", n); return std::pow(table[0], n) + std::erf(n) + __builtin_popcount(n); }'
    text += "\n#include <mutex>\nvoid once() { static std::once_flag f; std::call_once(f, [] { table[0] = 1; }); }"
    text += "\n#include <complex>\nusing C = std::complex<float>;\nC h(C a, C b) { return a * b / b + std::exp(a) * std::abs(b); }"
    assert symbols.problems(plain_object(text)) == []


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("source", sorted((ROOT / "csrc").glob("*.cpp")), ids=lambda p: p.stem)
def test_no_object_of_this_project_has_a_problem(source: Path) -> None:
    """Else every edit of it would be refused, whatever it is."""
    assert symbols.problems(jit.build(source)) == []


def test_what_is_no_object_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    for content in (b"", b"\x7fELF", b"\x7fELF\x02\x01" + b"\0" * 40, b"MZ" * 100):
        (tmp_path / "a.so").write_bytes(content)
        (problem,) = symbols.problems(tmp_path / "a.so")
        assert "not an object that can be read" in problem


def test_the_build_gate_refuses_what_the_object_asks_for(
    plain_object: Callable[[str], Path],
) -> None:
    made = plain_object('extern "C" int f(const char*) asm("system"); int g() { return f("ls"); }')

    class Builds(Rules):
        def build(self, tree: Path, changed: Sequence[str]) -> Finding:
            return Finding(True, "built", {"objects": {"scale.cpp": str(made)}})

    change = Change("csrc/scale.cpp", "100644", "100644", b"", b"int x;\n")
    found = gates.build(Candidate("all", ROOT, ROOT, (change,)), gates.Context(Builds()))
    assert not found.passed
    assert "csrc/scale.cpp: calls `system`" in found.reason
