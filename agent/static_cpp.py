"""What a C++ or CUDA file of the surface may not contain: read as it is written, and as the preprocessor gives it to the compiler.

The text as written shows every branch, for other machines too; the preprocessed text shows what macros and pasted words come to. Of the
latter only the lines that stem from csrc/ are read, by the line markers. What the object imports is read in agent/static_object.py.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
import resource
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from agent.scope import without_comments
from agent.static_python import Report

_STANDARD = frozenset(
    "algorithm any array atomic bit bitset cassert cctype cerrno cfloat charconv chrono cinttypes climits cmath compare complex concepts "
    "cstddef cstdint cstdio cstdlib cstring ctime deque exception format functional initializer_list iomanip iostream iterator limits "
    "list map memory memory_resource mutex new numbers numeric optional ostream queue random ranges ratio set shared_mutex "
    "source_location span sstream stack stdexcept string string_view tuple type_traits typeindex typeinfo unordered_map "
    "unordered_set utility valarray variant vector version "
    "math.h stdint.h stddef.h stdbool.h string.h stdlib.h stdio.h float.h assert.h limits.h inttypes.h errno.h time.h "
    "sys/mman.h unistd.h "  # for madvise and sysconf; what else they declare is refused by name
    "immintrin.h x86intrin.h emmintrin.h xmmintrin.h pmmintrin.h tmmintrin.h smmintrin.h nmmintrin.h arm_neon.h arm_sve.h omp.h "
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
    "vector_",
)
# Parts of these families that reach the interpreter, other libraries, files, the environment or threads of their own.
_REACHING = re.compile(
    r"python|pybind|/py|env\.h|DynamicLibrary|/jit/|/distributed/|/profiler/|/dynamo/|/serialize|tempfile|thread_pool|FileSystem"
)
_HINTS = {
    "thread": "; torch::stable::parallel_for is the pool to use",
    "future": "; torch::stable::parallel_for is the pool to use",
    "fstream": "; a kernel neither reads nor writes files",
}
# Whatever they are used for: calling, aliasing or declaring them.
_WORDS = re.compile(
    r"\b(system|popen|v?fork|exec(?:l|le|lp|v|ve|vp|vpe)|posix_spawnp?|dlopen|dlm?open|dlsym|dlvsym|dladdr|dlinfo|getenv|secure_getenv|"
    r"setenv|putenv|environ|syscall|ptrace|process_vm_(?:read|write)v|mprotect|mremap|memfd_create|shm_open|fopen|freopen|fdopen|fmemopen|"
    r"openat|opendir|ifstream|ofstream|basic_[io]?fstream|filebuf|pthread_create|pthread_kill|jthread|thrd_create|quick_exit|_exit|_Exit|"
    r"at_quick_exit|atexit|dup[23]?|setsid|pwrite|pread|unlink|readlink|sigaction|sigprocmask|setjmp|longjmp|setitimer|"
    r"Py(?:Run|Eval|Object|Frame|Import|Err|Dict|Module|Thread|Sys|GIL|Code|Interp|List|Tuple|Call|Function|Gen|Type)\w*_\w+|pybind11|DynamicLibrary|tmpfile|tmpnam|mkstemp|intraop_launch|"
    r"timer_create|sched_setaffinity|pthread_setaffinity_np|setrlimit|prctl|random_device|sleep_for|sleep_until|LD_PRELOAD)\b"
)
# Common enough as names of one's own: only as a plain call.
_CALLS = re.compile(
    r"(?<![\w.>:])(?:::|std\s*::\s*)?(open|socket|connect|kill|signal|raise|exit|mmap|clone|async|u?sleep|nanosleep)\s*\("
)
_THREADS = re.compile(
    r"\b(at\s*::\s*launch|std\s*::\s*(?:thread|async|packaged_task|this_thread))\b"
)
_CLOCKS = re.compile(
    r"\b(steady_clock|high_resolution_clock|system_clock|clock_gettime|gettimeofday|__rdtscp?|_rdtsc|clock64|globaltimer)\b"
)
# A reading that outlives its call tells the first minutes of a process, when it is judged, from the rest.
_LASTING = re.compile(
    r"\b(?:static|thread_local|inline)\b[^;{}]{0,200}(?:\bnow|\btime|\bclock|__rdtscp?|_rdtsc)\s*\("
)
_ASM = re.compile(
    r"\b(?:asm|__asm__|__asm)\b(?:\s*(?:volatile|__volatile__|inline|goto))*\s*\(\s*((?:\"(?:\\.|[^\"\\])*\"\s*)*)"
)
# Arithmetic on vector registers, fences and hints; the rest can call anything.
_INSTRUCTION = re.compile(
    r"v[a-z0-9]+|prefetch\w+|[a-z0-9]+[ps][sd]|nop|pause|[lsm]fence|tdp\w+|tile\w+"
)
_ATTRIBUTES = re.compile(
    r"(?:__attribute__|gnu\s*::)[^;{]*?\b(?:__)?(constructor|destructor|section|alias|ifunc|weak|weakref|init_priority)(?:__)?\b"
)
# Registering into a namespace of torch's own, written out or as LAB_KERNELS and its like come out of the preprocessor.
_TORCH_OWN = re.compile(r"\b\w*TORCH_LIBRARY\w*\s*\(\s*(aten|prims?|_)\s*,")
_TORCH_OWN_STRING = re.compile(r"Library\w*\s*[({][^;]{0,200}?\"(aten|prims?|_)\"")
_WHOLE_OPS = re.compile(
    r"\b(?:aten::|aoti_torch_\w*?_?|at::(?:native::)?)(_?\w*(?:scaled_dot_product|flash_attention|efficient_attention|"
    r"rms_norm|layer_norm|linalg_svd|linalg_qr|linalg_eigh|linalg_polar|flex_attention|linear_cross_entropy)\w*)"
)
_DISPATCH = re.compile(
    r"\b(torch_call_dispatcher|aoti_torch_call_dispatcher|findSchemaOrThrow|findOp)\s*\(\s*([^,)]*)"
)
_PASTE = re.compile(r"##|%:%:")
_TIMEOUT_S = 20
_MEMORY = 2 << 30
JIT = Path(__file__).resolve().parent.parent / "kernels" / "jit.py"


def inspect(tree: Path, path: str, source: str) -> Report:
    """Read a file of csrc/ as it is written and, if it is one that a compiler is given, preprocessed among the headers of `tree`."""
    report = inspect_source(path, source)
    if report.refusals or not path.endswith((".cpp", ".cu")):
        return report
    try:
        lines = preprocess(tree.resolve(), path, source)
    except subprocess.TimeoutExpired:
        report.refusals.append((1, f"not through the preprocessor within {_TIMEOUT_S} s"))
        return report
    if lines is None:
        hidden = (
            "and what comes of it cannot be seen: no compiler is here, or it does not get through"
        )
        report.refusals += [(line, f"{what}, {hidden}") for line, what in _pasted(source, tree)]
        return report
    for name, number, line in lines:
        # A header's line is named with its header, at line 1 of the file that includes it.
        place, prefix = (number, "") if name == path else (1, f"{name}:{number}: ")
        code = without_comments(line, strings=False)
        found = [*_words(path, code), *_whole_ops(line)]
        found += [what for _, what in _directives(line)]
        report.refusals += [(place, f"{prefix}{text}, after the preprocessor") for text in found]
    report.refusals = sorted(set(report.refusals))
    return report


def inspect_source(path: str, source: str) -> Report:
    """Read one file of csrc/ as it is written."""
    report = Report()
    if "\0" in source or "\ufffd" in source:
        report.refusals.append(
            (1, "not UTF-8 text: kernels are built from source, nothing else is taken")
        )
        return report
    spliced = _spliced(source)
    code = without_comments(spliced, strings=False)
    directives = without_comments(spliced)  # an #include's name is a string
    report.refusals = sorted(
        {*_directives(directives), *_code(path, code), *_strings(path, directives)}
    )
    for match in re.finditer(r"#\s*include\s*<(torch/extension\.h|ATen/ATen\.h)>", directives):
        text = f"<{match[1]}> costs 20 s a build; torch/csrc/stable/ costs 2 s (see csrc/lab.h)"
        report.advice.append((_line(directives, match), text))
    for match in _CLOCKS.finditer(code):
        text = (
            f"`{match[1]}`: right in an autotuner on its first call; the judge keeps its own clock"
        )
        report.advice.append((_line(code, match), text))
    for line, text in _pasted(source, None):
        report.advice.append((line, f"{text}; it is read after the preprocessor"))
    return report


# ---- the preprocessor ----


def preprocess(tree: Path, path: str, source: str) -> list[tuple[str, int, str]] | None:
    """(file, line number, text) of each line that stems from csrc/, for every instruction set that kernels/jit.py builds for.

    None if there is no compiler, or if the file does not get through (the build gate then says why). Raises TimeoutExpired.
    """
    compiler = _compiler(path)
    if compiler is None:
        return None
    own = [source, *(h.read_text(errors="replace") for h in sorted((tree / "csrc").glob("*.h")))]
    branches = any(re.search(r"#\s*(if|elif)", text) for text in own)
    targets = list(_flags()[1].values()) if branches else [()]
    found: set[tuple[str, int, str]] = set()
    for target in targets:
        text = _run(compiler, path, source, tree, target)
        if text is not None:
            found |= set(_own_lines(text, path, f"{tree}/csrc/"))
    return sorted(found) or None


def _compiler(path: str) -> str | None:
    return shutil.which("nvcc" if path.endswith(".cu") else os.environ.get("CXX", "c++"))


def _run(compiler: str, path: str, source: str, tree: Path, target: tuple[str, ...]) -> str | None:
    """The preprocessed source under the flags of kernels/jit.py, or None. Raises TimeoutExpired."""
    cuda = path.endswith(".cu")
    # Named as jit names it, so that no branch can tell this run from the build.
    name = f"-DTORCH_EXTENSION_NAME={Path(path).stem}_{secrets.token_hex(6)}"
    flags = _flags()[0] if cuda else (*_flags()[0], *target, "-fPIC")
    command = [
        compiler,
        "-E",
        "-x",
        "cu" if cuda else "c++",
        *flags,
        f"-I{tree / 'csrc'}",
        *_includes(),
        name,
        "-",
    ]
    try:
        done = subprocess.run(
            command,
            input=source.encode(),
            capture_output=True,
            timeout=_TIMEOUT_S,
            cwd="/",
            env={"PATH": "/usr/local/cuda/bin:/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"},
            preexec_fn=_limits,
        )
    except OSError:
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_TIMEOUT_S, _TIMEOUT_S))


@functools.cache
def _flags() -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """CXX_FLAGS and ISA_FLAGS of kernels/jit.py, which is read and not imported: the judge imports nothing from there."""
    found = {}
    for node in ast.parse(JIT.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id in ("CXX_FLAGS", "ISA_FLAGS"):
                found[node.targets[0].id] = ast.literal_eval(node.value)
    return found["CXX_FLAGS"], found["ISA_FLAGS"]


@functools.cache
def _includes() -> tuple[str, ...]:
    """Where torch's headers lie, without importing torch."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return ()
    include = Path(found.submodule_search_locations[0]) / "include"
    return ("-isystem", str(include), "-isystem", str(include / "torch/csrc/api/include"))


def _own_lines(text: str, path: str, folder: str) -> Iterator[tuple[str, int, str]]:
    """Lines of a preprocessed file that stem from standard input or from csrc/, statements that were one line joined again."""
    name, number = "", 0
    held: tuple[str, int, str] | None = None
    for line in text.splitlines():
        marker = re.match(r'#(?:line)? (\d+) "(.*?)"', line)
        if marker:
            file = marker[2]
            own = file == "<stdin>" or file.startswith(folder)
            name = "" if not own else path if file == "<stdin>" else f"csrc/{Path(file).name}"
            number = int(marker[1])
            continue
        if name and line.strip():
            # A call may have its parenthesis on the next line.
            if held and held[0] == name and line.lstrip().startswith(("(", "::")):
                held = (name, held[1], f"{held[2]} {line.strip()}")
            else:
                yield from (held,) if held else ()
                held = (name, number, line)
        number += 1
    yield from (held,) if held else ()


# ---- what is refused ----


def _line(text: str, match: re.Match[str]) -> int:
    return text.count("\n", 0, match.start()) + 1


def _spliced(source: str) -> str:
    """Lines that end in a backslash joined with the next, as the compiler does; the newlines follow, so that counts agree."""
    lines: list[str] = []
    joined, owed = "", 0
    for line in source.split("\n"):
        whole = line.rstrip(" \t\r")
        if whole.endswith("\\"):
            joined, owed = joined + whole[:-1], owed + 1
        else:
            lines += [joined + line, *[""] * owed]
            joined, owed = "", 0
    return "\n".join([*lines, *([joined] if owed else [])])


def _pasted(source: str, tree: Path | None) -> list[tuple[int, str]]:
    """Where words are pasted together, in the file or in a header beside it."""
    texts = [source]
    if tree is not None:
        texts += [h.read_text(errors="replace") for h in sorted((tree / "csrc").glob("*.h"))]
    found = []
    for text in texts:
        code = without_comments(_spliced(text), strings=False)
        found += [(_line(code, m), "`##` pastes words together") for m in _PASTE.finditer(code)]
    return found


def _directives(code: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(code.splitlines(), 1):
        directive = re.match(r"\s*(?:#|%:|\?\?=)\s*(\w+)\s*(.*)", line)
        if directive is None:
            continue
        if directive[1] in ("include", "include_next", "import", "embed"):
            yield from ((number, text) for text in _include(directive[1], directive[2].strip()))
        if re.search(r"__has_(include|embed)", directive[2]):
            yield number, "`__has_include`: what a machine has is no business of a kernel"
        if directive[1] in ("line", "ident"):
            yield number, f"#{directive[1]}: lines keep their own names"
        if directive[1] == "pragma" and re.match(
            r"(comment|redefine_extname|weak|init|fini|GCC\s+(system_header|pch_preprocess|dependency))",
            directive[2],
        ):
            yield (
                number,
                f"#pragma {directive[2].split()[0]}: the linker and the preprocessor are left alone",
            )


def _include(kind: str, name: str) -> Iterator[str]:
    own = re.fullmatch(r'"\w+\.(?:h|cuh)"', name)
    system = re.fullmatch(r"<([\w./+-]+)>", name) or re.fullmatch(
        r'"((?:torch|ATen|c10|cuda)[\w./+-]*)"', name
    )
    if kind in ("include", "include_next") and own:
        return
    if kind != "include" or system is None or ".." in name:
        yield f'#{kind} {name}: include a header of csrc/ as "name.h", or a system header by its name'
    elif _REACHING.search(system[1]) or (
        system[1] not in _STANDARD and not system[1].startswith(_FAMILIES)
    ):
        hint = _HINTS.get(
            system[1], "; a kernel needs arithmetic, torch's headers and the C++ containers"
        )
        yield f"#include <{system[1]}>: not among the headers that a kernel has business with{hint}"


def _words(path: str, code: str) -> Iterator[str]:
    """What is wrong with a piece of code without comments and strings, wherever it stands."""
    for match in _WORDS.finditer(code):
        yield f"`{match[1]}`: a kernel has no business with processes, files, libraries or the environment"
    for match in _CALLS.finditer(code):
        yield f"call of `{match[1]}`: a kernel has no business with processes, files or the network"
    for match in _THREADS.finditer(code):
        yield f"`{match[1]}`: use torch::stable::parallel_for, the pool that the trial counts on"
    for match in _ATTRIBUTES.finditer(code):
        yield f"attribute `{match[1]}`: code that runs at load time or replaces another symbol"


def _code(path: str, code: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_statements(code), 1):
        yield from ((number, text) for text in _words(path, line))
    for match in _TORCH_OWN.finditer(code):
        yield (
            _line(code, match),
            f"registers into `{match[1]}`: torch's own operators stay as they are",
        )
    for match in _LASTING.finditer(code):
        yield (
            _line(code, match),
            "a clock that is kept from call to call; time within one call alone",
        )
    for match in re.finditer(r"\\[uU][0-9a-fA-F]{4}", code):
        yield _line(code, match), "a universal character name in code; write the letter"


def _statements(code: str) -> list[str]:
    """Lines; a call whose parenthesis follows on the next line is joined with it."""
    return re.sub(
        r"(\w|::)([ \t]*)\n(\s*)(?=\(|::)", lambda m: m[1] + " " + m[3], code
    ).splitlines()


def _strings(path: str, code: str) -> Iterator[tuple[int, str]]:
    """What strings decide: assembly, and operators that are called by name."""
    if not path.endswith(".cu"):  # PTX is how a CUDA kernel reaches mma and cp.async
        for match in _ASM.finditer(code):
            if problem := _assembly(match[1]):
                yield _line(code, match), f"inline assembly {problem}; use intrinsics (immintrin.h)"
    yield from (
        (n, text) for n, line in enumerate(code.splitlines(), 1) for text in _whole_ops(line)
    )
    for match in _DISPATCH.finditer(code):
        if not match[2].strip().startswith('"'):
            yield (
                _line(code, match),
                f"`{match[1]}` of a name that is not written out; write it out",
            )


def _whole_ops(line: str) -> Iterator[str]:
    for match in _TORCH_OWN_STRING.finditer(line):
        yield f"registers into `{match[1]}`: torch's own operators stay as they are"
    for match in _WHOLE_OPS.finditer(line):
        yield f"`{match[1]}` of torch: a library's whole op is an implementation of its own; name it in IMPLEMENTATIONS"


def _assembly(text: str) -> str:
    """What is wrong with a template of inline assembly, "" if nothing is."""
    if not text.strip():
        return "that cannot be read"
    template = "".join(
        str(ast.literal_eval(part)) for part in re.findall(r'"(?:\\.|[^"\\])*"', text)
    )
    for instruction in re.split(r"[\n;]", template):
        words = instruction.split()
        if words and not _INSTRUCTION.fullmatch(words[0]):
            return f"`{words[0]}`"
    return ""
