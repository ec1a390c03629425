"""What a C++ or CUDA file of the surface may not contain, read from its text with comments and strings taken out.

As for Python, these rules stop what is plain to see; what the preprocessor could hide is refused with it (token pasting, macros as
headers), and the sandbox meets the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from agent.scope import without_comments
from agent.static_python import Report

_STANDARD = frozenset(
    "algorithm array atomic bit cassert cfloat climits cmath complex concepts cstddef cstdint cstdio cstdlib cstring exception "
    "functional initializer_list iostream iterator limits map memory new numbers numeric optional ranges set span sstream stdexcept string "
    "string_view tuple type_traits unordered_map utility variant vector "
    "math.h stdint.h stddef.h string.h stdlib.h float.h assert.h limits.h "
    "sys/mman.h unistd.h "  # for madvise and sysconf; what else they declare is refused by name
    "immintrin.h x86intrin.h emmintrin.h arm_neon.h arm_sve.h omp.h "
    "mma.h cooperative_groups.h".split()
)
_FAMILIES = (
    "torch/",
    "ATen/",
    "c10/",
    "cuda",
    "cub/",
    "cute/",
    "cutlass/",
    "cooperative_groups/",
    "pybind11/",
    "vector_",
)
_HINTS = {
    "thread": "; torch::stable::parallel_for is the pool to use",
    "chrono": "; the judge keeps the clock",
    "fstream": "; a kernel neither reads nor writes files",
}
# Whatever they are used for: calling, aliasing or declaring them.
_WORDS = re.compile(
    r"\b(system|popen|v?fork|exec(?:l|le|lp|v|ve|vp|vpe)|posix_spawnp?|dlopen|dlm?open|dlsym|dlvsym|getenv|secure_getenv|setenv|putenv|"
    r"syscall|ptrace|process_vm_(?:read|write)v|mprotect|memfd_create|fopen|freopen|fdopen|pthread_create|jthread|quick_exit|_exit|_Exit|"
    r"at_quick_exit|atexit|dup[23]?|setsid|pwrite|pread|unlink|readlink|sigaction|clock_gettime|gettimeofday|__rdtscp?|_rdtsc|rdtscp?|__builtin_ia32_rdtscp?|steady_clock|"
    r"high_resolution_clock|system_clock|clock64|globaltimer|LD_PRELOAD)\b"
)
# Common enough as names of one's own: only as a plain call.
_CALLS = re.compile(
    r"(?<![\w.>:])(?:::|std\s*::\s*)?(open|socket|connect|kill|signal|raise|exit|mmap|clone|clock|async|u?sleep|nanosleep)\s*\("
)
_ASM = re.compile(r"\b(asm|__asm__|__asm)\b")
_ATTRIBUTES = re.compile(
    r"(?:__attribute__|gnu\s*::)[^;{]*?\b(constructor|destructor|section|alias|ifunc|weak)\b"
)
_TORCH_OWN = re.compile(r"\b\w*TORCH_LIBRARY\w*\s*\(\s*(aten|prims?|_)\s*,")


def inspect_source(path: str, source: str) -> Report:
    """Read one file of csrc/."""
    report = Report()
    code = without_comments(_spliced(source), strings=False)
    directives = without_comments(_spliced(source))  # an #include's name is a string
    report.refusals = sorted({*_directives(directives), *_code(path, code)})
    for match in re.finditer(r"#\s*include\s*<(torch/extension\.h|ATen/ATen\.h)>", directives):
        line = directives.count("\n", 0, match.start()) + 1
        report.advice.append(
            (
                line,
                f"<{match[1]}> costs 20 s a build; torch/csrc/stable/ costs 2 s (see csrc/lab.h)",
            )
        )
    return report


def _spliced(source: str) -> str:
    """Lines that end in a backslash joined with the next, as the compiler does; the newlines follow, so that counts agree."""

    def join(match: re.Match[str]) -> str:
        return match.group().replace("\\\n", "") + "\n" * match.group().count("\\\n")

    return re.sub(r"[^\n]*\\\n(?:[^\n]*\\\n)*[^\n]*", join, source)


def _directives(code: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(code.splitlines(), 1):
        directive = re.match(r"\s*(?:#|%:|\?\?=)\s*(\w+)\s*(.*)", line)
        if directive is None:
            continue
        if directive[1] in ("include", "include_next", "import", "embed"):
            yield from ((number, text) for text in _include(directive[1], directive[2].strip()))
        if re.search(r"##|%:%:", directive[2]):
            yield (
                number,
                "`##` pastes words together, which hides what is called; write the name out",
            )
        if directive[1] == "pragma" and re.match(r"(comment|redefine_extname|weak)", directive[2]):
            yield number, f"#pragma {directive[2].split()[0]}: the linker is left alone"


def _include(kind: str, name: str) -> Iterator[str]:
    own = re.fullmatch(r'"\w+\.(?:h|cuh)"', name)
    system = re.fullmatch(r"<([\w./+-]+)>", name) or re.fullmatch(
        r'"((?:torch|ATen|c10|cuda)[\w./+-]*)"', name
    )
    if kind in ("include", "include_next") and own:
        return
    if kind != "include" or system is None or ".." in name:
        yield f'#{kind} {name}: include a header of csrc/ as "name.h", or a system header by its name'
    elif system[1] not in _STANDARD and not system[1].startswith(_FAMILIES):
        hint = _HINTS.get(
            system[1], "; a kernel needs arithmetic, torch's headers and the C++ containers"
        )
        yield f"#include <{system[1]}>: not among the headers that a kernel has business with{hint}"


def _code(path: str, code: str) -> Iterator[tuple[int, str]]:
    def line(match: re.Match[str]) -> int:
        return code.count("\n", 0, match.start()) + 1

    for match in _WORDS.finditer(code):
        yield (
            line(match),
            f"`{match[1]}`: a kernel has no business with processes, files, libraries, timers or the environment",
        )
    for match in _CALLS.finditer(code):
        yield (
            line(match),
            f"call of `{match[1]}`: a kernel has no business with processes, files, the network or timers",
        )
    if not path.endswith(
        ".cu"
    ):  # PTX is how a CUDA kernel reaches mma and cp.async; timers in it are refused above as words
        for match in _ASM.finditer(code):
            yield (
                line(match),
                f"`{match[1]}`: inline assembly cannot be read; use intrinsics (immintrin.h)",
            )
    for match in re.finditer(r"\bthread\s*[({]|\bstd\s*::\s*thread\b", code):
        if "std" in match.group():
            yield (
                line(match),
                "`std::thread`: use torch::stable::parallel_for, the pool that the trial counts on",
            )
    for match in _ATTRIBUTES.finditer(code):
        yield (
            line(match),
            f"attribute `{match[1]}`: code that runs at load time or replaces another symbol",
        )
    for match in _TORCH_OWN.finditer(code):
        yield line(match), f"registers into `{match[1]}`: torch's own operators stay as they are"
    for match in re.finditer(r"\\[uU][0-9a-fA-F]{4}", code):
        yield line(match), "a universal character name in code; write the letter"
