"""Names that a Python file of the surface may not use, and why: data for agent/static/python.py.

A name is judged by its origin: `import torch as t; t.os` and `from torch import os` are both `torch.os`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import types
from pathlib import Path

_STDLIB = frozenset(
    "__future__ abc array bisect cmath collections contextlib copy dataclasses enum fractions functools heapq itertools math numbers "
    "operator random re statistics string struct textwrap time types typing typing_extensions warnings weakref".split()
)
KERNEL_MODULES = _STDLIB | {"torch", "triton", "numpy", "einops", "kernels"}
MODEL_MODULES = KERNEL_MODULES | set(
    "concurrent threading queue json resource importlib gc model".split()
)
# Packages that do a whole op, each with the only file that may import it. An implementation that calls one has to say so by its name:
# the contract has these names, and the correctness gate checks that no other implementation calls it.
LIBRARIES = {"flash_attn": "kernels/attention.py"}
_INSTEAD = {
    "os": "; for the number of threads ask torch.get_num_threads(), a setting is a constant of the file",
    "sys": "; torch.finfo and math have the limits of numbers",
    "threading": "; parallel work belongs in the kernel: torch::stable::parallel_for",
    "concurrent": "; parallel work belongs in the kernel: torch::stable::parallel_for",
    "multiprocessing": "; parallel work belongs in the kernel: torch::stable::parallel_for",
    "logging": "; use warnings.warn",
}
BUILTINS = frozenset(
    "exec eval compile __import__ open breakpoint globals locals vars setattr delattr exit quit help license "
    "credits copyright SystemExit __annotations__ __builtins__ __loader__ "
    "__spec__ __doc__ __build_class__".split()
)
# Allowed in a call with a name that is written out.
LOOKUPS = frozenset({"getattr", "hasattr"})
FILTERS = frozenset({"warnings.filterwarnings", "warnings.simplefilter"})
# Judged by the arguments of a call, so that they may not be handed on.
CALLED = FILTERS | frozenset(
    "importlib.import_module functools.wraps dataclasses.field torch.compile torch._dynamo.config.patch torch._inductor.config.patch "
    "kernels.jit.load triton.language.inline_asm_elementwise torch.library.Library torch.library.impl torch.library.define".split()
)

# The dunder attributes that a kernel has a use for; all others lead into frames, classes and namespaces.
DUNDERS = frozenset(
    "__init__ __post_init__ __name__ __qualname__ __version__ __len__ __getitem__ __setitem__ __contains__ __iter__ __next__ __call__ "
    "__enter__ __exit__ __hash__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __missing__ __wrapped__ "
    "__add__ __radd__ __iadd__ __sub__ __rsub__ __mul__ __rmul__ __imul__ __truediv__ __rtruediv__ __floordiv__ __mod__ __pow__ __matmul__ "
    "__rmatmul__ __neg__ __abs__ __and__ __or__ __xor__ __invert__ __lshift__ __rshift__ __float__ __int__ __bool__ __index__".split()
)
# Those that may be assigned, on a function of one's own.
LABELS = frozenset({"__name__", "__qualname__"})
# Those that a class or a module may say of itself; by `__module__ = "torch"` enum.global_enum would write into torch.
OWN = frozenset("__all__ __slots__ __match_args__ __constants__ __author__ __license__ __str__ __repr__".split())  # fmt: skip
# Methods that a class in a kernel may not define: they catch torch's functions, or run without being called.
HOOKS = frozenset(
    "__torch_function__ __torch_dispatch__ __array_function__ __array_ufunc__ __getattribute__ __del__ __init_subclass__ __set_name__ "
    "__prepare__ __instancecheck__ __subclasscheck__ __subclasshook__ __mro_entries__ __class_getitem__ __reduce__ __reduce_ex__ "
    "__setstate__ __getstate__ __array__ __array_interface__ __array_struct__ __cuda_array_interface__ __dlpack__ __dlpack_device__ __buffer__".split()
)
# Attributes that are refused whatever they hang on. `format` is one: "{0.__traceback__.tb_frame}".format(error) looks at a frame, and no reading
# of the tree shows it. An f-string is read as the code that it is.
ATTRIBUTES = frozenset(
    "exec gi_code cr_code ag_code CodeType FunctionType LambdaType ModuleType format format_map f_back f_globals f_locals f_builtins tb_frame tb_next gi_frame cr_frame ag_frame co_code co_consts func_globals "
    "attrgetter methodcaller system popen Popen check_output environ getenv putenv execv execve execvp _exit _getframe "
    "settrace setprofile addaudithook import_module load_module exec_module CDLL PyDLL dump dlopen LoadLibrary get_objects get_referrers "
    "get_referents os sys subprocess ctypes builtins importlib inspect gc socket shutil pathlib pickle tempfile atexit _os _sys _C "
    "hub cpp_extension GetAttrKey fork forkpty kill killpg memmap tofile fromfile from_file load_library _write_file fromhex share_memory_ "
    "_share_filename_cpu_ _share_fd_cpu_ _new_shared_filename_cpu _new_shared_fd_cpu _convert_ global_enum load_config _import_dotted_name "
    "get_type_hints Path open read_bytes write_bytes read_text write_text mkdir touch iterdir rglob symlink_to save get_cache_manager "
    "put_group globaltimer smid torch test tests xeon _unsafe_update_src _set_from_file _new_with_file load_binary set_active _set_cdata _new_with_weak_ptr".split()
)
# What a tensor is, who made it and what is done when its gradient comes: a kernel computes the same for all.
FORMS = frozenset(
    "register_hook register_post_accumulate_grad_hook _backward_hooks _post_accumulate_grad_hooks _grad_fn grad_fn _base _version is_leaf retains_grad output_nr _is_view".split()
)
# Modules that can be reached through the allowed ones, as in torch.os, collections._sys.
PASSENGERS = frozenset(
    "os sys subprocess ctypes builtins importlib inspect gc socket shutil pathlib io pickle tempfile platform atexit "
    "threading multiprocessing posix mmap linecache runpy codecs marshal zlib base64 traceback "
    "logging gzip bz2 lzma fcntl resource tokenize ast dis zipfile tarfile glob fnmatch sysconfig site uuid hashlib test tests conftest xeon".split()
)
# Parts of the allowed packages that reach files, processes, the network, code from text, other threads, or torch's internals.
_PARTS = {
    "torch": "_C ao quantization numa monitor contrib hub package multiprocessing distributed load save from_file classes serialization futures export onnx fx overrides "
    "_export _utils_internal _appdirs _classes _lowrank _deploy _weights_only_unpickler _register_device_module "
    "get_device_module",
    "torch.jit": "script script_if_tracing script_method trace trace_module load save CompilationUnit fork wait _fork _wait annotations frontend mobile ScriptModule",
    "torch.ops": "load_library",
    "torch._dynamo.config": "load_config save_config",
    "torch._inductor.config": "load_config save_config cpp cuda rocm",
    "torch.testing": "_internal",
    "torch.cuda": "_compile_kernel jiterator change_current_allocator CUDAPluggableAllocator caching_allocator_alloc "
    "caching_allocator_delete cudart _sleep gds tunable",
    "torch.cuda.memory": "change_current_allocator CUDAPluggableAllocator _record_memory_history _dump_snapshot",
    "torch.storage": "_load_from_bytes",
    "torch.compiler": "load_cache_artifacts save_cache_artifacts load_compiled_function substitute_in_graph",
    "torch.nn.modules.module": "register_module_forward_hook register_module_forward_pre_hook register_module_backward_hook "
    "register_module_full_backward_hook register_module_full_backward_pre_hook register_module_parameter_registration_hook",
    "torch.autograd": "profiler_util _profiler_enabled _profiler_type",
    "torch.autograd.graph": "get_gradient_edge register_multi_grad_hook",
    "numpy": "load save savez savez_compressed loadtxt savetxt genfromtxt fromfile memmap ctypeslib f2py distutils DataSource fromregex "
    "testing core _core",
    "numpy.ma": "mrecords testutils",
    "contextlib": "chdir redirect_stdout redirect_stderr",
    "torch.nn": "parallel",
    "torch.optim.optimizer": "register_optimizer_step_pre_hook register_optimizer_step_post_hook",
    "numpy.lib": "format npyio _npyio_impl DataSource _datasource",
    "types": "CodeType FunctionType LambdaType MethodType ModuleType new_class prepare_class resolve_bases",
    "typing": "get_type_hints ForwardRef evaluate_forward_ref",
    "typing_extensions": "get_annotations get_type_hints ForwardRef evaluate_forward_ref",
    "dataclasses": "make_dataclass fields Field",
    "functools": "update_wrapper WRAPPER_ASSIGNMENTS WRAPPER_UPDATES singledispatch singledispatchmethod",
    "enum": "global_enum EnumType EnumMeta",
    "operator": "attrgetter methodcaller",
    "string": "Formatter",
    "weakref": "finalize",
    "time": "sleep localtime gmtime strftime ctime asctime mktime",
    "warnings": "filters warn_explicit showwarning formatwarning",
    "random": "seed setstate SystemRandom",
    "resource": "setrlimit prlimit",
    "concurrent.futures": "ProcessPoolExecutor process",
    "triton": "profiler compile backends knobs compiler",
    "triton.runtime": "build cache interpreter",
}
PARTS = {f"{package}.{part}" for package, parts in _PARTS.items() for part in parts.split()}
# Of these packages a kernel file may use the named parts alone; the rest reaches too far, or is the frame that kernels run in.
_OF = {
    "torch.utils": frozenset("checkpoint _pytree dlpack hooks weak _foreach_utils".split()),
    "torch.utils._pytree": frozenset("tree_map tree_flatten tree_unflatten tree_leaves".split()),
    "torch._dynamo": frozenset(
        "config disable allow_in_graph mark_dynamic mark_static graph_break".split()
    ),
    "torch._inductor": frozenset({"config"}),
    "gc": frozenset({"collect", "disable", "enable", "freeze", "unfreeze"}),
    "importlib": frozenset({"import_module"}),
    "json": frozenset({"loads", "dumps", "JSONDecodeError"}),
    "torch.profiler": frozenset({"record_function"}),
    "torch.autograd.profiler": frozenset({"record_function"}),
    "triton.testing": frozenset("do_bench do_bench_cudagraph assert_close".split()),
    "triton.tools": frozenset({"tensor_descriptor"}),
    "triton.tools.tensor_descriptor": frozenset({"TensorDescriptor"}),
    "triton.runtime.jit": frozenset({"JITFunction", "KernelInterface"}),
    "triton.runtime.autotuner": frozenset({"Autotuner", "Heuristics", "Config", "OutOfResources"}),
    "kernels": frozenset(
        "jit choose custom_op rows_of dense overwrite product_dtype INTERPRETED UNCACHED AVX512_BF16 AMX CPU_MULTIPLIES_BF16 MKL_KNOWS_CPU".split()
    ),
    "kernels.jit": frozenset("load isa targets BuildError".split()),
    "flash_attn": frozenset({"cute"}),
    "flash_attn.cute": frozenset({"interface"}),
    "flash_attn.cute.interface": frozenset({"_flash_attn_fwd", "_flash_attn_bwd"}),
}
# Packages in which an attribute named as a module of the standard library is taken for that module, but for _NAMESAKES.
_THIRD_PARTY = frozenset({"torch", "triton", "numpy"})
# Packages whose private names are refused, but for _PRIVATE.
_NOT_OURS = (KERNEL_MODULES | MODEL_MODULES) - {"kernels", "model"}
# Packages that can also be reached as attributes of others, and modules of others that only share the name of one of the standard library.
_ROOTS = frozenset({"torch", "numpy", "np", "triton", "tl"})
_NAMESAKES = frozenset({"random", "types", "typing", "math", "copy", "array"})
_SETTINGS = "torch._inductor.config.triton"  # a class of settings, not the package
# Private names that a kernel may use: functions of tensors, and what _OF restricts. The others are modules in which anything can be reached,
# such as a function that imports by text, or make code of text, as dataclasses._create_fn does.
_PRIVATE = re.compile(
    r"_(?:addmm|foreach|fused|scaled|grouped|int|weight|convert_weight|is|assert|check|experimental)(?:_\w+)?|_(?:log_)?softmax|"
    r"_dynamo|_inductor|_pytree|_foreach_utils|_LRScheduler"
)
# Settings of torch._inductor and torch._dynamo that hold functions, which are given graphs of torch.fx, or places of files.
TAKES_CODE = re.compile(
    r"(?<!b2b_gemm)(?<!use_pre_grad)(?<!use_joint_graph)(?<!use_post_grad)_pass(?:es)?$|_fn$|_class$|_determinator$|custom|external_matmul|upload_tar|_dir$|_path$|_root$|worker_start_method"
)
# Switches of the whole process: a kernel that sets one changes what it is compared with.
_STATE = frozenset(
    "set_default_dtype set_default_device set_default_tensor_type set_num_threads set_num_interop_threads manual_seed manual_seed_all seed "
    "seed_all set_rng_state set_rng_state_all set_deterministic_debug_mode use_deterministic_algorithms set_float32_matmul_precision "
    "set_flush_denormal set_warn_always set_anomaly_enabled set_printoptions enable_flash_sdp enable_math_sdp enable_mem_efficient_sdp "
    "enable_cudnn_sdp allow_bf16_reduction_math_sdp set_flags set_per_process_memory_fraction set_device set_stream _set_backend "
    "preferred_linalg_library preferred_blas_library preferred_rocm_fa_library set_autocast_enabled set_autocast_dtype "
    "set_autocast_cache_enabled set_autocast_cpu_enabled set_autocast_cpu_dtype set_autocast_gpu_dtype "
    "set_multithreading_enabled init_num_threads set_grad_enabled set_detect_anomaly reset".split()
)
# Those that put back what they set, where `with` holds them.
CONTEXTS = frozenset({"set_grad_enabled", "set_detect_anomaly"})
# What reads a clock, or works beside the current stream: right in an autotuner; the judge keeps its own time.
_CLOCKS = (
    "time.", "torch.cuda.Event", "torch.cuda.Stream", "torch.cuda.stream", "torch.profiler", "torch.autograd.profiler", "torch.cuda.nvtx",
    "triton.testing",
)  # fmt: skip
_GRAPHS = ("torch.cuda.CUDAGraph", "torch.cuda.graph", "torch.cuda.make_graphed_callables")
# Modules beside those that `is_module` finds: they may be used by their attributes, and not handed around.
MODULES = frozenset(_PARTS) | frozenset(_OF) | {_SETTINGS}
OWN_OPERATORS = ("aten", "prim", "prims", "_", "c10d", "quantized", "inductor")


def import_error(name: str, path: str) -> str:
    """Why `import name` is refused in a file, or ""."""
    model = path.startswith("model/")
    allowed = MODEL_MODULES if model else KERNEL_MODULES
    package = name.split(".")[0]
    if package in allowed or LIBRARIES.get(package) == path:
        return path_error(name, model)
    heavy = ", ".join(sorted(allowed - _STDLIB))
    return (
        f"imports `{package}`: only {heavy} and plain arithmetic modules may be imported"
        + _INSTEAD.get(package, "")
    )


def path_error(name: str, model: bool) -> str:
    """Why the dotted origin `name` may not be used, or ""; it names the shortest prefix that is refused."""
    parts = name.split(".")
    for n in range(2, len(parts) + 1):
        prefix, part = ".".join(parts[:n]), parts[n - 1]
        named = part in _ROOTS and prefix != _SETTINGS
        if named or (parts[0] in _THIRD_PARTY and part in _STDLIB - _NAMESAKES):
            return f"`{prefix}`: a package by way of another; import it by its own name"
        rest = ".".join(parts[n - 1 :])
        if part in _NAMESAKES and rest != part and (error := path_error(rest, model)):
            return error
        if _hands_on(parts[n - 2], part):
            return f"`{prefix}`{_instead(prefix)}"
        if (
            prefix in PARTS and not (model and prefix.startswith(("time.", "random.")))
        ) or part.strip("_") in PASSENGERS:
            return f"`{prefix}`{_instead(prefix)}"
        if model and parts[0] == "kernels" and part in ("jit", "Path"):
            return f"`{prefix}`: a model calls ops, and asks which there are{_instead(prefix)}"
        package = parts[0] if n == 2 else ".".join(parts[: n - 1])
        if package in _OF and part not in _OF[package] and not (model and parts[0] == "kernels"):
            return f"`{prefix}`: of {package} a kernel uses {', '.join(sorted(_OF[package]))}{_instead(prefix)}"
        private = part.startswith("_") and not (part in DUNDERS or _PRIVATE.fullmatch(part))
        if private and parts[0] in _NOT_OURS and not prefix.startswith("torch.ops."):
            return f"`{prefix}`, a private name of {parts[0]}{_instead(prefix)}"
        if not model and parts[0] == "torch" and part in _STATE:
            return f"`{prefix}` sets state of the whole process; a kernel leaves it as it is"
    return ""


@functools.cache
def _hands_on(module: str, part: str) -> bool:
    """Whether a module of the standard library has another module by this name: enum.bltns is builtins."""
    if module not in _STDLIB:
        return False
    found = getattr(importlib.import_module(module), part, None)
    return isinstance(found, types.ModuleType) and not found.__name__.startswith(f"{module}.")


def _instead(name: str) -> str:
    if name in ("torch.utils.cpp_extension", "torch.ops.load_library"):
        return "; build C++ with kernels.jit: `jit.load(op)`"
    if name in ("torch.cuda._compile_kernel", "torch.cuda.jiterator"):
        return "; CUDA is built from csrc/<op>.cu, with kernels.jit"
    if name.startswith("functools.singledispatch"):
        return "; it turns annotations into code: use isinstance or a dict"
    if name == "torch.get_device_module":
        return "; use torch.cuda or torch.accelerator"
    return (
        ": it reaches files, processes, threads, the network, code from text or torch's internals"
    )


@functools.cache
def is_module(name: str) -> bool:
    """Whether a dotted name is a module of torch, triton or numpy, by its file: no list has them all."""
    package, *parts = name.split(".")
    spec = importlib.util.find_spec(package) if package in _THIRD_PARTY else None
    folders = (spec and spec.submodule_search_locations) or []
    return bool(parts) and any(
        Path(folder, *parts).is_dir() or Path(folder, *parts[:-1], f"{parts[-1]}.py").is_file()
        for folder in folders
    )


def is_clock(name: str) -> bool:
    return name.startswith(_CLOCKS)


def is_graph(name: str) -> bool:
    return name.startswith(_GRAPHS)
