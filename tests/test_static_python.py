"""The static gate on Python: refuses what a kernel has no business with, by line, and nothing that an honest file holds."""

from __future__ import annotations

import pytest
from lab_tree import PY
from static_gate import judged


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
        "import time\ntime.sleep(1)",
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
        # code from a text, by what an allowed module holds
        "import dataclasses\ndataclasses._create_fn('f', [], ['pass'])",
        "import typing\ntyping._eval_type(1, {}, {})",
        "import torch\ntorch._dynamo.config.load_config(b'')",
        "import torch\ntorch._inductor.config.patch({'cpp.cxx': (None, 'x')})",
        "import torch\ntorch._inductor.config.patch(**{'x': 1})",
        "import torch\ntorch._inductor.config.cpp.cxx",
        "import weakref\nweakref.proxy(scale, print)",
        "class A:\n    __module__ = 'torch'",
        "import enum\nenum.global_enum",
        "import enum\nclass A(enum.Enum): ...\nA._convert_('x', 'torch', bool)",
        "import functools\nfunctools.singledispatch(scale)",
        "TEXT = 'int'\ndef f(x: TEXT): ...",
        "class A: c = 'int'\nX = A.c\ndef f(x: X): ...",
        "import enum\nclass E(str, enum.Enum): a = 'int'\ndef f(x: E['a']): ...",
        "def NewType(x): return x\nX = NewType('int')\ndef f(x: X): ...",
        "match 'int':\n    case X: pass\ndef f(x: X): ...",
        "from typing import Literal\ndef f(x: Literal['open(0)']): ...",
        "class P: args = 'int'\ndef f(*args: P.args): ...",
        "import torch\ntorch.compile(scale, options={'cpp.cxx': (None, 'x')})",
        "from triton.language import inline_asm_elementwise as a\na('mov.u64 $0, %clock64;', '=l', [], 1, True, 1)",
        "class C:\n    def __post_init__(self): object.__setattr__(self, '__class__', int)",
        "def f(x: f'{1}'): ...",
        "def f(TEXT):\n    def g(x: TEXT): ...",
        "import torch.nn.functional as F\nF.torch.load('x')",
        "import torch\ntorch.utils.checkpoint.warnings",
        "import torch\nf = torch.get_device_module('cpu')",
        "import triton\ntriton.runtime.autotuner.get_cache_manager('x')",
        "from kernels import jit\nget = jit.load\nget('scale')",
        "import triton.language as tl\ntl.inline_asm_elementwise('mov.u64 $0, %globaltimer;', '=l', [], tl.int64, True, 1)",
        "import triton.language as tl\nT = 1\ntl.inline_asm_elementwise(T, '=l', [], tl.int64, True, 1)",
        "from operator import attrgetter",
        "from types import CodeType",
        "from torch import compile\ncompile(scale)",
        "def g(compile): return type(g)(compile('1', 'x', 'eval'), {})",
        "import abc\nclass F(abc.ABC): __match_args__ = ('__globals__',)\nmatch scale:\n    case F(g): pass",
        "import functools\n@functools.wraps(scale, assigned=(), updated=('__globals__',))\ndef f(): ...",
        "import warnings\nwarnings.filterwarnings('error', module='bench')",
        "import contextlib\ncontextlib.redirect_stdout(None)",
        "import torch\ntorch.compile(scale, backend=print)",
        "import dataclasses\nclass A: x = 1\ndataclasses.fields(A)",
        "type(license)",
        "import functools\n@functools.wraps\ndef g(): ...",
        "K = '''\n  def evil(x): ...\n'''",
        "import torch\ndef f(m): return m\nf(torch.optim)",
        "def f(m): return m.optimizer.torch._inductor",
        "class A:\n    @property\n    def __array_interface__(self): return {}",
        "import numpy\nnumpy.test(tests=['kernels.scale'])",
        "import torch.backends.xeon.run_cpu as r",
        "def f(kernel): kernel._unsafe_update_src('x')",
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
        "import warnings\nwarnings.filterwarnings('ignore')",
        "def f(compile):\n    if compile and scale: pass",
        "import torch\n@torch.compile\ndef g(x): return x",
        "import torch\nwith torch._inductor.config.patch(b2b_gemm_pass=True): pass",
        "import torch\nwith torch.no_grad(), torch.autocast('cpu'): pass",
        "from torch import Tensor\nPair = tuple[Tensor, Tensor]\ndef f(x: Pair) -> Pair: return x",
        "class A:\n    __slots__ = ('n',)",
        "import triton.language as tl\ntl.inline_asm_elementwise(asm='// fast\\nex2.approx.f32 $0, $1;', constraints='=f,f', args=[1], dtype=tl.float32, is_pure=True, pack=1)",
        "import torch\nwith torch._inductor.config.patch({'triton.cudagraphs': True}): pass",
        "from typing import Literal\nimport torch\nMode = Literal['torch', 'cpp']\ndef f(x: torch.Tensor, m: Mode, way: Literal['eval', 'torch', 'tf32-x3'] = 'eval'): return x",
        "from typing import TypeAlias\nShape: TypeAlias = tuple[int, ...]\ndef f(s: Shape) -> Shape: return s",
        "try:\n    import triton\n    import triton.language as tl\nexcept ImportError:\n    triton = tl = None\ndef k(x, B: tl.constexpr): ...",
        "import functools\nfrom typing import Callable, ParamSpec, TypeVar\nP = ParamSpec('P')\nR = TypeVar('R')\ndef d(f: Callable[P, R]) -> Callable[P, R]:\n    @functools.wraps(f)\n    def g(*args: P.args, **kwargs: P.kwargs) -> R: return f(*args, **kwargs)\n    return g",
        "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass C:\n    n: int\n    m: int = 0\n    def __post_init__(self): object.__setattr__(self, 'm', 2 * self.n)",
        "class A:\n    def __repr__(self): return f'{self.__class__.__name__}()'",
        "__author__ = 'me'\nclass A:\n    __constants__ = ['n']\n    def __repr__(self): return 'A'\n    __str__ = __repr__",
        "from triton.runtime.jit import JITFunction\nfrom triton.runtime.autotuner import Autotuner",
        "try:\n    import triton\nexcept ImportError:\n    triton = None\nHAS = triton is not None",
        "import torch\nif torch._inductor.config.max_autotune: pass\nwith torch._inductor.config.patch(max_autotune=True): pass",
        "import numpy\nnumpy.random.default_rng(0).random()\nimport triton.language as tl\ntl.math.exp",
        "import triton.language as tl\ntl.inline_asm_elementwise('ex2.approx.f32 $0, $1;', '=f,f', [1], tl.float32, True, 1)",
        "def load(x): return x.load",
        "stream = 1; system = 2",
    ],
)
def test_python_that_only_looks_odd_passes(line: str) -> None:
    found = judged("kernels/scale.py", f"{PY}\n{line}\n")
    assert found.passed, found.reason


@pytest.mark.parametrize(
    "line",
    [
        # another name for what is refused
        "g = getattr",
        "a, b = getattr, 1",
        "(g := setattr)",
        "import torch\ng = torch.os",
        "import torch\ng = torch.jit\ng.load('x')",
        "import torch\n(g := torch.utils)\ng.cpp_extension.load_inline",
        "import torch\ng, h = torch.jit, 1\ng.load('x')",
        "import torch\nfor g in (torch.jit,): g.load('x')",
        "import torch\ndef f(g=torch.jit): return g.load('x')",
        "import torch\ng = torch if torch else 0\ng.hub",
        "import torch\ndef f():\n    import math as torch\ntorch.hub.load('a', 'b')",
        "import math\ng = math.pi\nimport torch\ng = torch.jit\ng.load('x')",
        "import torch\n[torch.jit][0].load('x')",
        "import torch\nd = {'a': torch}\nd['a'].hub",
        "import torch\ndef f(m): m.allclose = 1\nf(torch)",
        "import torch\nlist(map(getattr, [torch], ['o' + 's']))",
        "import functools\nfunctools.reduce(getattr, ['o', 's'], scale)",
        "from torch import *",
        "from torch import compile as exec\nexec('1', 'a', 'exec')",
        # names put together, and what turns text or bytes into something else
        "import operator\noperator.attrgetter('a.b')",
        "from operator import methodcaller as m",
        "vars(scale)",
        "scale.__dict__",
        "scale.__getattribute__('__globals__')",
        "print.__self__",
        "import codecs",
        "import base64, zlib",
        "import marshal",
        "bytes.fromhex('00')",
        "def f(x: 'open(0)'): ...",
        "import typing\ntyping.get_type_hints(scale)",
        "import torch\ntorch.utils.benchmark.Timer('1')",
        "match scale:\n    case object(__globals__=g): pass",
        "type('X', (), {})",
        "import types\ntypes.new_class('X')",
        "import dataclasses\ndataclasses.make_dataclass('X', [])",
        # what is imported is changed
        "import torch\nT = torch.Tensor\nT.add = None",
        "import torch\nfor T in (torch.Tensor,): T.add = None",
        "import torch\nT, x = torch.Tensor, 1\nT.add = None",
        "import torch\ndel torch.Tensor.add",
        "import torch\ntype(torch.ones(1)).add = None",
        "import torch\ntorch.Tensor.add: object = None",
        "import torch\n[0 for torch.allclose in [1]]",
        "import torch\nwith open_it() as torch.allclose: pass",
        "import torch\nimport functools\nfunctools.update_wrapper(torch.add, scale)",
        "import torch\nimport functools\nfunctools.wraps(scale)(torch.add)",
        "import torch\nobject.__setattr__(torch, 'add', None)",
        "import torch\ntorch = scale",
        "import torch\ndef f(m): m.__mul__ = scale\nf(torch.Tensor)",
        "import string\nstring.Formatter().get_field('0.os', (scale,), {})",
        "import torch\ntorch.utils.benchmark",
        "import torch\ntorch.storage._load_from_bytes(b'')",
        "from kernels import jit\njit.calls['scale'] += 1",
        "from kernels import jit\njit.calls.update(scale=9)",
        "import kernels\nkernels.PREFERENCE['cpu'] = ('torch',)",
        "from kernels import PREFERENCE",
        "from kernels import jit\nname = 'sca' + 'le'\njit.load(name)",
        "import torch\nfrom torch.overrides import TorchFunctionMode",
        "import torch\nfrom torch.utils._python_dispatch import TorchDispatchMode",
        "import torch\nclass L(torch.Tensor):\n    @classmethod\n    def __torch_function__(cls, *a): ...",
        "import torch\nclass L(torch.Tensor):\n    __torch_dispatch__ = None",
        "class M(type): ...\nclass A(metaclass=M): ...",
        "class A:\n    def __del__(self): scale(1)",
        "class A:\n    def __init_subclass__(cls): ...",
        "def __getattr__(name): return scale",
        "import torch\ntorch.library.register_fake(torch.ops.aten.mm.default)",
        "import torch\nname = 'at' + 'en'\ntorch.library.Library(name, 'IMPL')",
        "import triton\ntriton.knobs.runtime.launch_enter_hook = None",
        # texts that are code to somebody else
        "def f(e): return '{0.__traceback__.tb_frame.f_back.f_locals[keep]}'.format(e)",
        "import torch\ntorch._utils._import_dotted_name('builtins.exec')('1')",
        "import torch\ntorch._dynamo.trace_rules.load_object('builtins.exec')",
        "from torch.utils._pytree import GetAttrKey",
        "import torch\ntorch.utils._pytree.GetAttrKey('__globals__').get(scale)",
        "import torch\ntorch.library.impl('at' + 'en::clone', 'CPU', scale)",
        "import torch\nname = 'at' + 'en::clone'\ntorch.library.impl(name, 'CPU', scale)",
        "import torch\nname = torch.library.Library('mine', 'DEF')\nname = 'at' + 'en::clone'\ntorch.library.impl(name, 'CPU', scale)",
        # what is judged where it is called
        "import torch\ntorch.library.Library(ns='at' + 'en', kind='IMPL')",
        "import torch\nnext(map(torch.library.Library, ['at' + 'en'], ['IMPL']))",
        "import functools, torch\nw = functools.wraps(scale, assigned=('layout',))\nw(torch.Tensor)",
        # modules that modules of the standard library hold, and hooks as texts
        "import enum\nenum.bltns.exec('1')",
        "import typing\ntyping.types.CodeType",
        "import dataclasses\ndataclasses._thread.start_new_thread(scale, ())",
        "import dataclasses\ndataclasses.FunctionType((x for x in ()).gi_code, {})",
        "import torch\ntorch.nn.functional.dataclasses._thread",
        "import torch\ntorch.autograd.graph.logging.FileHandler('x')",
        "type(type(1))('X', (), {'__del__': scale})",
        # the process
        "import contextlib, torch\nwith contextlib.nullcontext(torch.set_grad_enabled) as f: f(False)",
        "import torch\ntry:\n    with torch.cuda.set_stream(scale): pass\nexcept TypeError: pass",
        "import torch\ntorch._C._set_grad_enabled(False)",
        "import torch\ntorch.set_grad_enabled(False)",
        "from torch import set_default_dtype",
        "import torch\ntorch.backends.mkldnn.set_flags(True)",
        "import torch\ntorch.backends.cuda.matmul.allow_tf32 = True",
        "import torch\ntorch.jit.fork(scale)",
        "import torch\ndef f(x):\n    # type: (box[f.__globals__]) -> Tensor\n    return x\ntorch.jit.script(f)",
        "def f(w): w.register_post_accumulate_grad_hook(print)",
        "import torch\ndef f(h): return torch.autograd.graph.get_gradient_edge(h).node.name()",
        "import weakref\nweakref.finalize(scale, print)",
        "import weakref\nweakref.ref(scale, print)",
        "import random\nrandom.seed(0)",
        "import collections\ncollections._sys.modules",
        "import contextlib\ncontextlib.os.environ",
        "import warnings\nwarnings.sys._getframe()",
        "def f(m): return m.os.system('ls')",
        "raise SystemExit(0)",
        "exit()",
        "__builtins__",
        "import numpy.lib.npyio",
    ],
)
def test_python_that_hides_or_changes_its_surroundings_is_refused(line: str) -> None:
    found = judged("kernels/scale.py", f"{PY}\n{line}\n")
    assert not found.passed, line
    assert "kernels/scale.py:" in found.reason


@pytest.mark.parametrize(
    "line",
    [
        "import functools\n@functools.lru_cache(maxsize=8)\ndef table(n): return [n]\ntable.__wrapped__",
        "import functools\ndef d(f):\n    @functools.wraps(f)\n    def g(*a): return f(*a)\n    return g\n@d\ndef h(): ...",
        "cache = {}\ndef f(x):\n    key = (x.shape, x.dtype)\n    if key not in cache:\n        cache[key] = x\n    return cache[key]",
        "import torch\ncache = {}\ndef f(n):\n    try:\n        return cache[n]\n    except KeyError:\n        return cache.setdefault(n, torch.ones(n))",
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Config:\n    rows: int = 4",
        "import torch\nclass F(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        ctx.n = 1\n        return x",
        "import torch\nclass M(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.x = 1",
        "import torch\nlib = torch.library.Library('mine', 'DEF')\nlib.define('f(Tensor x) -> Tensor')",
        "import torch\n@torch.library.custom_op('mine::f', mutates_args=())\ndef f(x: torch.Tensor) -> torch.Tensor: ...\n"
        "@f.register_fake\ndef _(x): return x",
        "import torch\nlib = torch.library.Library('mine', 'DEF')\ntorch.library.impl(lib, 'f', 'CPU', scale)",
        "import torch\n@torch.library.triton_op('mine::f', mutates_args=())\ndef f(x: torch.Tensor) -> torch.Tensor: ...\n"
        "torch.library.register_fake(f)\ntorch.library.wrap_triton(scale)",
        "from triton.tools.tensor_descriptor import TensorDescriptor",
        "import torch, triton\nassert torch.__version__ and triton.__version__",
        "import torch\nif torch.cpu._is_avx512_bf16_supported(): torch.ops.mkldnn._linear_pointwise",
        "import torch\nrows = {'AVX2': 4}\ntry: n = rows[torch.backends.cpu.get_cpu_capability()]\nexcept KeyError: n = torch.ones(1)",
        "import torch\nF = torch.nn.functional\nF.silu\nmm = torch.mm\nops = torch.ops.mine",
        "import torch\ndef f(x, dtype=torch.float32): return x.to(dtype)\nfor d in (torch.float32, torch.float16): f(1, d)",
        "import torch\nhasattr(torch, 'float8_e4m3fn') and getattr(torch, 'float8_e4m3fn', None)",
        "import triton\nimport triton.language as tl\n@triton.autotune([triton.Config({'B': 1})], key=['n'])\n@triton.jit\n"
        "def k(x, n, B: tl.constexpr): tl.store(x, n)",
        "import torch, time\ndef f(x):\n    start = time.perf_counter()\n    scale(x)\n    return time.perf_counter() - start",
        "import torch\ntorch.cuda.Event(enable_timing=True)",
        "import torch\nwith torch.set_grad_enabled(False): pass\nwith torch.enable_grad(): pass",
        "import weakref\nheld = weakref.WeakKeyDictionary()\nr = weakref.ref(scale)",
        "import random\norder = random.sample(range(4), 4)",
        "import contextlib\nwith contextlib.suppress(KeyError): {}[1]\n@contextlib.contextmanager\ndef c(): yield",
        "import torch, math\ndef best(x):\n    try:\n        return scale(x)\n    except RuntimeError:\n        return math.inf",
        "def f(x):\n    try:\n        return scale(x)\n    except RuntimeError as error:\n        raise ValueError(f'rows: {error}') from error",
        "import torch\ndef f(x, compile=False): return scale(x) if compile else x",
        "class Cache(dict):\n    def __missing__(self, key): return key\n    def __getattr__(self, name): return 1",
        "def f(x: 'batch time', y: 'Tensor | None') -> 'Tensor': return x",
        "import torch\ndef f(x):\n    out = x.new_empty(2)\n    out[0] = 1\n    out.requires_grad = True\n    shapes = [torch.float32]\n    shapes[0] = 1",
        "import torch\ntorch._addmm_activation(1, 2, 3)",
        "import torch\nx = torch._scaled_mm\ntorch._foreach_mul_\ntorch._dynamo.mark_dynamic",
        "import torch\nif torch._inductor.config.max_autotune: pass",
        "import triton\ntriton.runtime.driver.active.utils",
        "from kernels import choose, jit\njit.load('scale').forward",
        "import numpy as np\nisinstance(scale, np.ndarray)",
        "try:\n    import triton\n    import triton.language as tl\nexcept ImportError:\n    triton = tl = None",
        "try:\n    from triton.language.extra import libdevice\nexcept ImportError:\n    from triton.language.extra.cuda import libdevice",
        "import torch\nfrom torch.utils import _pytree\nfrom torch.utils.checkpoint import checkpoint\ntorch.ones(1).__matmul__",
        "import torch\nassert isinstance(scale, torch.Tensor), type(scale).__name__",
    ],
)
def test_honest_python_passes(line: str) -> None:
    found = judged("kernels/scale.py", f"{PY}\n{line}\n")
    assert found.passed, found.reason


FALLBACKS = [
    "    try:\n        return jit.load('scale').f(x)\n    except Exception:\n        return torch.mul(x, 2)",
    "    try:\n        y = jit.load('scale').f(x)\n    except RuntimeError:\n        y = x @ x",
    "    try:\n        y = jit.load('scale').f(x)\n    except (RuntimeError, KeyError):\n        y = plain(x)\n    return y",
    "    try:\n        y = jit.load('scale').f(x)\n    except:\n        return plain(x)",
    "    try:\n        f = jit.load('scale').f\n    except OSError:\n        f = torch.neg\n    return f(x)",
    "    try:\n        f = jit.load('scale').f\n    except OSError:\n        f = lambda x: x * 2\n    return f(x)",
    "    try:\n        f = jit.load('scale').f\n    except OSError:\n        f = plain\n    return f(x)",
    "    try:\n        y = plain(x)\n    except KeyError:\n        y = torch.mul(x, 2)",
    "    with contextlib.suppress(Exception):\n        return jit.load('scale').f(x)\n    return torch.mul(x, 2)",
    "    try:\n        f = jit.load('scale').f\n    except OSError:\n        from torch.nn.functional import rms_norm as f\n    return f(x)",
    "    try:\n        return jit.load('scale').f(x)\n    except AttributeError:\n        return self.slow(x)",
]


@pytest.mark.parametrize("body", FALLBACKS)
def test_a_silent_fallback_is_refused(body: str) -> None:
    text = f"{PY}\nimport contextlib\nimport torch\ndef plain(x): return torch.mul(x, 2)\ndef f(self, x):\n{body}\n"
    assert "silent fallback" in judged("kernels/scale.py", text).reason


@pytest.mark.parametrize(
    "more",
    [
        "def other(x): return torch.mul(x, 2)\nclass A:\n    def other(self): return 1",
        "other = lambda x: torch.mul(x, 2)",
        "import math\nother = math.sqrt\nother = torch.mul",
    ],
    ids=["a-method-of-that-name", "a-lambda", "two-origins"],
)
def test_a_fallback_is_seen_whatever_else_has_its_name(more: str) -> None:
    body = "    try:\n        y = jit.load('scale').f(x)\n    except RuntimeError:\n        y = other(x)\n    return y"
    text = f"{PY}\nimport torch\n{more}\ndef f(x):\n{body}\n"
    assert "silent fallback" in judged("kernels/scale.py", text).reason


@pytest.mark.parametrize(
    "line",
    [
        "begun = time.monotonic()",
        "class A:\n    begun = time.time()",
        "state = {}\ndef f(x):\n    state['t'] = time.time()",
        "state = {}\ndef f(x):\n    now = time.time()\n    state['t'] = now",
        "def f(x):\n    global begun\n    begun = time.perf_counter()",
        "begun = 0\ndef f(x):\n    return x if time.perf_counter() - begun > 9 else 0",
        "def f(x): return x if time.time() > 1e9 else 0",
        "def now(): return time.time()",
        "def now():\n    t = time.time()\n    return t",
        "def f(x, stamps=[]): stamps.append(time.time())",
        "clock = time.time\nbegun = clock()",
        "time.localtime()",
        "begun = {}\ndef f(x):\n    now = time.monotonic()\n    return now - begun.setdefault('at', now) > 120",
        "state = {}\ndef f(x):\n    now = time.time()\n    state['t'] = now + 0.0",
        "state = {}\ndef f(x):\n    zero = 0\n    state['t'] = time.time() - zero",
        "def f(x):\n    start = time.time()\n    while True:\n        yield time.time() - start",
        "def f(x):\n    start = time.time()\n    return lambda: time.time() - start",
        "def f(x): scale(now := time.time())",
        "import warnings\nwith warnings.catch_warnings(record=True) as w: pass",
        # no duration
        "def f(x):\n    start = time.time()\n    start -= time.time()\n    return time.time() - start > 1e9",
        "def f(x): return time.process_time() - time.thread_time() > 120",
        "def f(x):\n    a = time.clock_gettime(2)\n    return time.clock_gettime(3) - a > 120",
        "def f(x):\n    start = time.monotonic()\n    def g():\n        nonlocal start\n        start = 0.0\n    g()\n    return time.monotonic() - start > 1e5",
        "def f(x):\n    start = time.monotonic()\n    match 0.0:\n        case start: pass\n    return time.monotonic() - start > 1e5",
        "def f(x):\n    start = time.monotonic()\n    from math import pi as start\n    return time.monotonic() - start > 1e5",
        "begun = 0\ndef f(x):\n    global begun\n    start = begun = time.time()",
        # read where no reading shows it
        "import math\nclock = math.sqrt\nclock = time.time\nstate = {}\ndef f(x): state['t'] = clock()",
        "clocks = [time.time]\ndef f(x): return clocks[0]()",
        "class A: now = time.time\ndef f(x): return A.now()",
        "def f(x): return (lambda c: c())(time.time)",
        "def f(x): return (c := time.time)()",
        "def f(x): return getattr(time, 'time')()",
    ],
)
def test_what_time_it_is_and_who_calls_decide_nothing(line: str) -> None:
    assert not judged("kernels/scale.py", f"{PY}\nimport time\n{line}\n").passed


@pytest.mark.parametrize(
    "line",
    [
        "def f(x):\n    start = time.perf_counter()\n    scale(x)\n    return time.perf_counter() - start",
        "def f(x):\n    t0 = time.time()\n    scale(x)\n    t1 = time.time()\n    return t1 - t0",
        "best = {}\ndef f(x):\n    times = []\n    for k in (1, 2):\n        start = time.perf_counter_ns()\n        scale(x, k)\n"
        "        times.append((time.perf_counter_ns() - start, k))\n    best[x.shape] = min(times)[1]",
        "import warnings\nwith warnings.catch_warnings():\n    warnings.simplefilter('ignore')",
        "clock = time.perf_counter\ndef f(x):\n    start = clock()\n    scale(x)\n    return clock() - start",
        "def f(x, clock=time.perf_counter):\n    start = clock()\n    return clock() - start",
    ],
)
def test_an_autotuner_may_time_its_settings(line: str) -> None:
    found = judged("kernels/scale.py", f"{PY}\nimport time\n{line}\n")
    assert found.passed, found.reason


def test_clocks_and_subclasses_are_advice_with_their_line() -> None:
    text = f"{PY}\nimport time\nimport torch\nt = time.perf_counter\nclass L(torch.Tensor): ...\n"
    advice = judged("kernels/scale.py", text).evidence["advice"]
    assert [line.split(":")[1] for line in advice] == ["13", "14"]


@pytest.mark.parametrize("line", ["# -*- coding: utf-7 -*-", "\n# vim: set fileencoding=unicode_escape :", "\r#coding=utf_8"])  # fmt: skip
def test_a_file_in_another_coding_than_it_is_read_in_is_refused(line: str) -> None:
    found = judged("kernels/scale.py", f"{line}\n{PY}\n# rows \\u000aimport os\n")
    assert "a coding other than UTF-8" in found.reason
    assert judged("kernels/scale.py", f"# -*- coding: utf-8 -*-\n{PY}\n").passed


def test_a_signature_too_deep_to_be_read_is_refused_and_no_fault_of_the_judge() -> None:
    deep = "+".join(["1"] * 600)
    for tile in (f"tile={deep}", f"tile: (lambda: {deep})"):
        found = judged("kernels/scale.py", PY.replace("impl=None", f"impl=None, {tile}", 1))
        assert "kernels/scale.py: an expression of some hundred terms" in found.reason


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


def test_the_model_may_keep_time_and_find_its_kernels_and_no_more() -> None:
    honest = "import gc, importlib, queue, resource, threading, time\nimport torch\ngc.freeze()\n"
    honest += "torch.backends.cuda.matmul.allow_tf32 = True\ntorch.manual_seed(1)\n"
    honest += 'op = "rms_norm"\nimportlib.import_module(f"kernels.{op}")\n'
    assert judged("model/optim.py", honest).passed
    for line in (
        'importlib.import_module("os")',
        "importlib.reload(torch)",
        "resource.setrlimit(1, 2)",
        "gc.get_objects()",
        "torch.mm = None",
    ):
        assert not judged("model/optim.py", honest + line).passed, line
