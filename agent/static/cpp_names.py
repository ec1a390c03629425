"""What a C++ or CUDA file of the surface may not name, and which headers it may include: data for agent/static/cpp.py."""

from __future__ import annotations

import re

STANDARD = frozenset(
    "algorithm any array atomic bit bitset cassert cctype cerrno cfloat charconv chrono cinttypes climits cmath compare complex concepts "
    "cstddef cstdint cstdio cstdlib cstring ctime deque exception format functional initializer_list iomanip iostream iterator limits "
    "list map memory memory_resource mutex new numbers numeric optional ostream queue random ranges ratio set shared_mutex "
    "source_location span sstream stack stdexcept string string_view tuple type_traits typeindex typeinfo unordered_map "
    "unordered_set utility valarray variant vector version "
    "math.h stdint.h stddef.h stdbool.h string.h stdlib.h stdio.h float.h assert.h limits.h inttypes.h errno.h time.h "
    "experimental/simd sched.h malloc.h sys/mman.h unistd.h "  # for madvise and sysconf; what else they declare is refused by name
    "immintrin.h x86intrin.h emmintrin.h xmmintrin.h pmmintrin.h tmmintrin.h smmintrin.h nmmintrin.h arm_neon.h arm_sve.h omp.h "
    "mma.h cooperative_groups.h".split()
)
FAMILIES = (
    "torch/",
    "ATen/",
    "c10/",
    "cuda",
    "cublas",
    "cub/",
    "cute/",
    "cutlass/",
    "cooperative_groups/",
    "vector_",
)
# Parts of these families that reach the interpreter, other libraries, files, the environment or threads of their own.
REACHING = re.compile(
    r"python|pybind|/py|env\.h|DynamicLibrary|/jit/|/distributed/|/profiler/|/dynamo/|/serialize|tempfile|thread_pool|FileSystem"
)
HINTS = {
    "thread": "; torch::stable::parallel_for is the pool to use",
    "future": "; torch::stable::parallel_for is the pool to use",
    "fstream": "; a kernel neither reads nor writes files",
}
# Refused in any use: calling, aliasing or declaring them.
WORDS = re.compile(
    r"\b(system|popen|v?fork|exec(?:l|le|lp|v|ve|vp|vpe)|posix_spawnp?|dlopen|dlm?open|dlsym|dlvsym|dladdr|dlinfo|getenv|secure_getenv|"
    r"setenv|putenv|environ|syscall|ptrace|process_vm_(?:read|write)v|mprotect|mremap|memfd_create|shm_open|fopen|freopen|fdopen|fmemopen|"
    r"openat|opendir|ifstream|ofstream|basic_[io]?fstream|filebuf|pthread_create|pthread_kill|jthread|thrd_create|quick_exit|_exit|_Exit|"
    r"at_quick_exit|atexit|dup[23]|setsid|pwrite|pread|unlink|readlink|sigaction|sigprocmask|setjmp|longjmp|setitimer|"
    r"Py(?:Run|Eval|Object|Frame|Import|Err|Dict|Module|Thread|Sys|GIL|Code|Interp|List|Tuple|Call|Function|Gen|Type)\w*_\w+|pybind11|DynamicLibrary|tmpfile|tmpnam|mkstemp|intraop_launch|"
    r"_fileno|_IO_\w+|timer_create|sched_setaffinity|pthread_setaffinity_np|setrlimit|prctl|random_device|sleep_for|sleep_until|LD_PRELOAD|"
    r"from_file|(?:Refcounted)?MapAllocator|aoti_torch_save_tensor_handle|pickle_(?:save|load)|(?:aoti_)?torch_library_\w+)\b"
)
# Common enough as names of a kernel's own: refused only as a plain call.
CALLS = re.compile(
    r"(?<![\w.>:])(?:::|std\s*::\s*)?(open|dup|socket|connect|kill|exit|mmap|async|u?sleep|nanosleep)\s*\("
)
THREADS = re.compile(
    r"\b(at\s*::\s*(?:launch|parallel_for|parallel_reduce)|std\s*::\s*(?:thread|async|packaged_task|this_thread))\b"
)
OMP = re.compile(r"omp\s+(?:parallel|for|sections|task|teams|target)\b")
CLOCKS = re.compile(
    r"\b(steady_clock|high_resolution_clock|system_clock|clock_gettime|gettimeofday|__rdtscp?|_rdtsc|clock64|globaltimer)\b"
)
# A reading that outlives its call could tell the first minutes of a process, when it is judged, from the rest.
# Its first half ends where a value begins: `static double time(F&& f)` is a function of one's own.
LASTING = re.compile(
    r"\b(?:static|thread_local|inline)\b(?:[^;{}]{0,200}[=(,]|[^;{}()=]{0,200}=?\s*\{|[^;{}]{0,200}\]\s*(?:\(\s*\)\s*)?\{\s*return\b)[^;{}]{0,200}(?:\bnow|\btime|\bclock|__rdtscp?|_rdtsc)\s*\("
)
# One end of a duration, the declaration of a name for one, and what else tells the time.
NOW = r"(?:::\s*)?(?:\w+\s*::\s*)+now\s*\(\s*\)"
_POINT = r"std::chrono::(?:(?:steady|system|high_resolution)_clock::time_point|time_point\s*<\s*std::chrono::\w+_clock\s*>)"
STAMP = re.compile(rf"\b(?:auto|{_POINT})\s+(?:const\s+)?(\w+)\s*=\s*({NOW})\s*;")
OTHER_CLOCKS = re.compile(
    r"\b(?:clock_gettime|gettimeofday|timespec_get|__rdtscp?|_rdtsc|__builtin_ia32_rdtscp?|omp_get_wtime|__TIME__|__DATE__|__TIMESTAMP__)\b|"
    r"(?<![\w.>])(?:::\s*|std\s*::\s*)?\b(?:time|clock)\s*\(\s*(?:0|NULL|nullptr|&\s*\w+)?\s*\)"
)
ASM = re.compile(
    r"\b(?:asm|__asm__|__asm)\b(?:\s*(?:__)?(?:volatile|inline|goto)(?:__)?)*\s*\(\s*((?:\"(?:\\.|[^\"\\])*\"\s*)*)"
)
# The same in code whose strings are emptied, where anything but a template that is written out follows.
ASM_UNREAD = re.compile(
    r"\b(?:asm|__asm__|__asm)\b(?!(?:\s*(?:__)?(?:volatile|inline|goto)(?:__)?)*\s*\(\s*(?:\"\"\s*)+[:)])"
)
# In a CUDA file, whose PTX is how a kernel reaches mma and cp.async, what is no PTX.
HOST_ASM = re.compile(
    r"(?:[\";:{}]|\\[nt])\s*"
    r"(syscall|sysenter|int\s|call\w*|jmp\w*|\.(?:byte|word|short|int|long|quad|octa|ascii|string|section|pushsection|incbin|include|text|globl|macro|fill)\b)",
    re.I,
)
# Arithmetic on vector registers, fences and hints; the rest can call anything.
INSTRUCTION = re.compile(
    r"v[a-z0-9]+|k(?:mov|x?n?or|and)\w*|movnt\w+|cldemote|clwb|clflushopt|prefetch\w+|[a-z0-9]+[ps][sd]|nop|pause|[lsm]fence|tdp\w+|tile\w+|(?:ld|st)tilecfg"
)
ATTRIBUTES = re.compile(
    r"(?:\b__attribute(?:__)?\b|\bgnu(?:__)?\s*::?)[^;{]{0,1000}?\b(?:__)?(constructor|destructor|section|alias|ifunc|weak|weakref|init_priority)(?:__)?\b"
)
# The same however an attribute is broken over lines, in code whose strings are emptied.
PLACED = re.compile(r"\b(?:__)?(section|alias|ifunc|weakref|symver)(?:__)?\s*\(\s*[(\"]")
# Registering into a namespace of torch's own, written out, or as LAB_KERNELS and the like leave the preprocessor.
TORCH_OWN = re.compile(r"\b\w*TORCH_LIBRARY\w*\s*\(\s*(aten|prims?|_)\s*,")
TORCH_OWN_STRING = re.compile(r"\"(aten|prims?)\"|Library[^;]{0,400}?\"(_)\"")
# What LAB_SCHEMAS and LAB_KERNELS are made of: used by name, it registers into any namespace.
REGISTERS = re.compile(
    r"\b(StableLibrary|StableTorchLibraryInit|aoti_torch_library_\w+|torch_library_\w+|RegisterOperators|Kind\s*::\s*(?:DEF|IMPL|FRAGMENT)|Dispatcher\s*::\s*\w*[sS]ingleton)\b"
)
WHOLE_OPS = re.compile(
    r"\b(?:aten::|aoti_torch_|at::(?:native::)?)(\w*(?:scaled_dot_product|flash_attention|efficient_attention|"
    r"rms_norm|layer_norm|linalg_svd|linalg_qr|linalg_eigh|linalg_polar|flex_attention|linear_cross_entropy|from_file)\w*)"
)
DISPATCH = re.compile(
    r"\b(torch_call_dispatcher|aoti_torch_call_dispatcher|findSchemaOrThrow|findOp)\b(?!\s*\(\s*\\?\"[\w:.]*\\?\"\s*,)"
)
PASTE = re.compile(r"##|%:%:")
