"""What a built object asks of the system and gives to it: its imported symbols, its libraries, and what runs when it is loaded.

A source can be written so that no reading shows what it calls; the object's table of symbols cannot. Each imported symbol has to belong
to a family that a kernel has a use for: arithmetic, memory, text, C++'s own runtime, torch and CUDA. The object is read as bytes and
never loaded.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LIBRARIES = re.compile(
    r"lib(torch\w*|c10\w*|stdc\+\+|c\+\+|c\+\+abi|gcc_s|m|mvec|c|pthread|gomp|omp|iomp5|cudart|cuda|cublas\w*|nvrtc\w*)\.so[.\d]*|"
    r"ld-linux[-\w]*\.so[.\d]*"
)
_MATHS = (
    "sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh exp exp2 exp10 expm1 log log2 log10 log1p logb ilogb pow sqrt cbrt "
    "hypot erf erfc tgamma lgamma fmod remainder remquo fma fmax fmin fdim ceil floor trunc round lround llround rint lrint llrint "
    "nearbyint roundeven ldexp frexp modf scalbn scalbln nextafter nexttoward copysign fabs nan sincos significand abs labs llabs div ldiv "
    "isnan isinf finite signbit cabs carg cexp clog cpow csqrt csin ccos ctan csinh ccosh ctanh"
)
_C = (
    "malloc calloc realloc reallocarray free posix_memalign aligned_alloc memalign malloc_usable_size madvise sysconf getpagesize munmap "
    "memcpy memmove memset memcmp bcmp memchr memrchr mempcpy memmem strlen strnlen strcmp strncmp strcasecmp strcpy stpcpy strncpy strcat strncat "
    "strchr strrchr strstr strdup strtol strtoul strtoll strtoull strtod strtof strerror "
    "printf fprintf vprintf vfprintf snprintf sprintf vsnprintf puts putchar putc fputs fputc fwrite fflush stdout stderr "
    "qsort bsearch rand srand rand_r abort isalpha isdigit isspace tolower toupper errno "
    "time clock clock_gettime gettimeofday localtime localtime_r gmtime strftime difftime "
    "pthread_mutex_lock pthread_mutex_trylock pthread_mutex_unlock pthread_mutex_init pthread_mutex_destroy pthread_once pthread_self "
    "pthread_rwlock_rdlock pthread_rwlock_wrlock pthread_rwlock_unlock pthread_key_create pthread_getspecific pthread_setspecific "
    "pthread_key_delete sched_yield sched_getcpu omp_get_thread_num omp_get_num_threads omp_get_max_threads "
    "omp_in_parallel omp_get_wtime"
)
_FAMILIES = re.compile(
    r"aoti_torch_\w+|torch_\w+|"  # torch's stable ABI
    r"cuda[A-Z_]\w+|__cuda\w+|cu[A-Z]\w+|cublas\w+|"
    r"_ZGV[a-eN]\w+|"  # libmvec: maths on vectors
    r"__once_proxy|__pthread_key_create|__cxa_\w+|__gxx_personality_v0|_Unwind_\w+|__gmon_start__|_ITM_\w+|__cxx_global\w*|__dso_handle|_GLOBAL_OFFSET_TABLE_|"
    r"__(stack_chk_\w+|tls_get_addr|errno_location|assert_fail|libc_single_threaded|memcpy_chk|memset_chk|memmove_chk|mem\w+_chk|"
    r"str\w+_chk|\w*printf_chk|ctype_\w+|cpu_\w+|dynamic_cast|isnanf?|isinff?|finitef?|signbit\w*|isoc\d+_\w+|dev_\w+)|"
    r"__\w*(?:sf|df|tf|hf|xf|bf|di|ti|si|[sdxth]c)[2-4]?|__pow[a-z]+2|"  # the compiler's own arithmetic
    r"_Z[NTKRVLGl]?\w*"  # C++ of std, c10, at and torch: see _FOREIGN
)
# C++ that has nothing to do with arithmetic: threads, files, Python, other processes, torch's switches.
_FOREIGN = re.compile(
    r"_ZN?K?St6thread|_ZNSt\d*6thread|_ZNSt11this_thread|_ZNSt18condition_variable|_ZNSt13__future_base|_ZNSt10filesystem|"
    r"_ZNKSt10filesystem|_ZNS?t?\d*random_device|_ZNSt13random_device|_Z\w*basic_[iof]?filebuf|_Z\w*basic_[io]?fstream|_Z\w*8pybind11|"
    r"_ZN4c10d|_ZN5torch3jit|_ZN5torch4load|_ZN5torch4save|_ZN6caffe29serialize|_ZN2at1[45]set_num_(?:interop_)?threads|"
    r"_ZN2at6launch|_ZN2at4impl|_ZN3c104impl|_ZN3c1015SetCPUAllocator|_ZN3c1012SetAllocator|_ZN3c1014TaskThreadPool|_ZN3c1010ThreadPool|"
    r"_ZN5torch7Library|_ZN5torch17CapturedTraceback|_ZN2at7Context\d+set|_ZN2at11manual_seed|_ZN3c1013set_default|_ZN2at14DynamicLibrary|_ZN3c106thread|"
    r"_ZN2at6native\d+[^E]+E$|"  # its variables: tables of kernels
    r"_ZN2at\d+(?:add|clear|remove|disable|reenable)\w*Callback|_ZN3c1010Dispatcher|_ZN3c1017RegisterOperators|"
    r"_ZN2at16init_num_threads|_ZN3c1013get_backtrace|cu(?:da)?(?:Module|Library|Link|Coredump)[A-Z]|cu(?:da)?GraphDebugDotPrint|"
    r"_ZN3c105utils|_ZNK?St12__basic_file|_ZN5torch9serialize|_ZN5torch8inductor|_ZN2at23set_num_interop|"
    r"_ZT[IV]N3c10\d+(?:TensorImpl|StorageImpl)E"  # a result that computes when it is looked at
)
# Names of the system that an object may not define: whatever is loaded after it would get them.
_SYSTEM = frozenset((_C + " " + _MATHS).split()) | set(
    "open close read write mmap ioctl getenv dlopen dlsym system exit".split()
)
_MATHS_FAMILY = re.compile(
    rf"(?:__)?(?:{'|'.join(_MATHS.split())})[fl]?(?:_finite|f?\d+x?)?|j[01n]f?|y[01n]f?"
)
_C_NAMES = frozenset(_C.split())
# What g++ and clang++ themselves put into the list of functions that run at load time.
_STARTERS = re.compile(
    r"frame_dummy|_GLOBAL__(?:sub_)?I_.*|__cxx_global_\w+|__cudaRegister\w*|_ZL24__sti____cudaRegisterAllv|register_tm_clones|__do_init|"
    r"__cpu_indicator_init"  # of __builtin_cpu_supports
)


@dataclass(frozen=True)
class Object:
    """What an ELF shared object says of itself."""

    imports: tuple[str, ...]
    exports: tuple[str, ...]
    libraries: tuple[str, ...]
    starters: tuple[str, ...]  # functions that run at load time; "?" for one without a name


def problems(path: Path) -> list[str]:
    """What is wrong with a built object, one sentence each; for a file that is no ELF object, just that."""
    try:
        found = read(path.read_bytes())
    except (ValueError, IndexError, struct.error) as error:
        return [f"{path.name} is not an object that can be read ({error}): build it from source"]
    return [*_imports(found), *_others(found)]


def _imports(found: Object) -> Iterator[str]:
    for name in found.imports:
        if not _is_known(name):
            yield f"calls `{name}`: a kernel has no business with processes, files, the network, threads of its own or the machine"


def _others(found: Object) -> Iterator[str]:
    for name in found.exports:
        if name in _SYSTEM or name.startswith(("aoti_torch_", "_Znw", "_Zna", "_Zdl", "_Zda")):
            yield f"defines `{name}`, which is the system's: give it another name, or make it static"
    for name in found.libraries:
        if not _LIBRARIES.fullmatch(name):
            yield f"needs the library {name}: a kernel is linked with torch and the C++ runtime alone"
    for name in found.starters:
        if not _STARTERS.fullmatch(name):
            yield f"`{name}` runs when the object is loaded; only initialisers of variables may"


def _is_known(name: str) -> bool:
    if _FOREIGN.match(name):
        return False
    return name in _C_NAMES or bool(_MATHS_FAMILY.fullmatch(name) or _FAMILIES.fullmatch(name))


# ---- ELF (System V ABI, 64 bit, little endian: x86-64 and arm64) ----

_DYNSYM, _SYMTAB, _DYNAMIC, _RELA, _INIT_ARRAY = 11, 2, 6, 4, 14
_NEEDED, _FUNCTION = 1, 2


def read(data: bytes) -> Object:
    """Read an object. Raises ValueError if it is none."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no 64-bit ELF file")
    sections = list(_sections(data))
    if not any(kind == _DYNSYM for kind, *_ in sections):
        raise ValueError("no table of symbols")
    imports: list[str] = []
    exports: list[str] = []
    libraries: list[str] = []
    functions: dict[int, str] = {}
    for kind, _, offset, size, link in sections:
        if kind in (_DYNSYM, _SYMTAB):
            for name, is_function, section, value in _symbols(
                data, offset, size, sections[link][2]
            ):
                if is_function and section:
                    functions.setdefault(value, name)
                if kind == _DYNSYM and name:
                    (exports if section else imports).append(name)
        elif kind == _DYNAMIC:
            for tag, value in struct.iter_unpack("<QQ", data[offset : offset + size]):
                if tag == _NEEDED:
                    libraries.append(_text(data, sections[link][2] + value))
    starters = [functions.get(address, "?") for address in _starters(data, sections)]
    return Object(*(tuple(sorted(part)) for part in (imports, exports, libraries, starters)))


_Section = tuple[int, int, int, int, int]


def _sections(data: bytes) -> Iterator[_Section]:
    """(type, address, offset, size, link) of each section."""
    (start,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    for n in range(count):
        kind, _, address, offset, length, link = struct.unpack_from(
            "<IQQQQI", data, start + n * size + 4
        )
        yield kind, address, offset, length, link


def _symbols(
    data: bytes, offset: int, size: int, names: int
) -> Iterator[tuple[str, bool, int, int]]:
    """(name without version, whether it is a function, section or 0, value) of each symbol."""
    entries = struct.iter_unpack("<IBBHQQ", data[offset : offset + size])
    for name, info, _, section, value, _ in entries:
        yield _text(data, names + name).split("@")[0], info & 0xF == _FUNCTION, section, value


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode(errors="replace")


def _starters(data: bytes, sections: list[_Section]) -> Iterator[int]:
    """The addresses in .init_array: those stored there, or those that a relocation will store."""
    relocated: dict[int, int] = {}
    for kind, _, offset, size, link in sections:
        if kind == _RELA:
            for where, info, addend in struct.iter_unpack("<QQq", data[offset : offset + size]):
                # A local function is given by the addend alone, an exported one by the value of its symbol.
                symbol = sections[link][2] + 24 * (info >> 32)
                value = struct.unpack_from("<Q", data, symbol + 8)[0] if info >> 32 else 0
                relocated[where] = value + addend
    for kind, address, offset, size, _ in sections:
        if kind == _INIT_ARRAY:
            for n in range(0, size, 8):
                yield relocated.get(address + n) or struct.unpack_from("<Q", data, offset + n)[0]
