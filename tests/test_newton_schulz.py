"""newton_schulz: singular vectors kept and singular values brought near one, for every shape, spectrum, dtype and number of steps."""

from __future__ import annotations

import re

import pytest
import torch
from interpreter import interpret
from torch import Tensor

import kernels
from bench import aot
from bench.aot import compile_all
from kernels import jit
from kernels import newton_schulz as module
from kernels.newton_schulz import coefficients, newton_schulz

SHAPES = [(48, 48), (130, 130), (64, 256), (256, 64), (3, 70, 100), (2, 200, 90), (2, 2, 17, 31)]
# More columns and more terms than csrc/product.h packs at a time.
SHAPES += [(300, 700), (700, 300)]
# of the float64 iteration, relative to the norm
CLOSE = {
    torch.float32: 2e-4,
    torch.bfloat16: 8e-2,
}


def matrix(shape: tuple[int, ...], spectrum: Tensor | None = None) -> Tensor:
    """A float64 matrix of random singular vectors and the given singular values (None: those of normal entries)."""
    generator = torch.Generator().manual_seed(sum(shape))
    G = torch.randn(shape, generator=generator, dtype=torch.float64)
    if spectrum is None:
        return G
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    return U @ (spectrum.double()[..., None] * Vh)


def truth(G: Tensor, steps: int) -> Tensor:
    """The polynomials applied to the singular values themselves, in float64."""
    U, S, Vh = torch.linalg.svd(G.double(), full_matrices=False)
    S = S / (S.square().sum(-1, keepdim=True).sqrt() * 1.02)
    for a, b, c in coefficients(steps):
        S = a * S + b * S**3 + c * S**5
    return U @ (S[..., None] * Vh)


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_it_applies_the_polynomials_to_the_singular_values(impl, shape, dtype):
    G = matrix(shape).to(dtype)
    O = newton_schulz(G, impl=impl)  # noqa: E741
    assert (O.shape, O.dtype, O.is_contiguous()) == (G.shape, dtype, True)
    assert relative(O, truth(G, 5)) < CLOSE[dtype]


@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_autocast_leaves_float32_in_float32(impl):
    G = matrix((96, 96)).float()
    with torch.autocast("cpu", torch.bfloat16):
        under = newton_schulz(G, impl=impl)
    assert torch.equal(under, newton_schulz(G, impl=impl))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 7, 9])
@pytest.mark.parametrize("shape", [(64, 64), (40, 160), (160, 40)])
def test_every_step_is_taken(shape, steps):
    G = matrix(shape, torch.logspace(0, -2, min(shape))).float()
    for impl in ("torch", "cpp"):
        assert relative(newton_schulz(G, steps, impl=impl), truth(G, steps)) < 1e-3
    if steps > 1:
        assert relative(newton_schulz(G, steps - 1, impl="cpp"), truth(G, steps)) > 1e-2


@pytest.mark.parametrize("impl", ["torch", "cpp"])
@pytest.mark.parametrize("shape", [(64, 64), (60, 240), (240, 60)])
@pytest.mark.parametrize("steps", [5, 6, 7])
def test_a_spectrum_over_three_decades_comes_near_one_and_keeps_its_vectors(impl, shape, steps):
    n = min(shape)
    G = matrix(shape, torch.logspace(0, -3, n)).float()
    U, S, Vh = torch.linalg.svd(G.double(), full_matrices=False)
    core = U.mT @ newton_schulz(G, steps, impl=impl).double() @ Vh.mT
    values = core.diagonal()
    reached = S / S.norm() > {5: 7.6e-4, 6: 1.9e-4, 7: 4.8e-5}[steps]
    assert bool(((values[reached] - 1).abs() < 0.34).all())
    assert relative(core, torch.diag(values)) < 1e-3


@pytest.mark.parametrize("steps", [4, 5, 6, 7, 8, 10, 12])
def test_the_composition_is_nowhere_further_from_one_than_the_quintic(steps):
    x = torch.logspace(-6, 0, 20001, dtype=torch.float64)
    ours, classic = x / module.SAFETY, x
    for a, b, c in coefficients(steps):
        ours = a * ours + b * ours**3 + c * ours**5
    for _ in range(steps):
        a, b, c = module.QUINTIC
        classic = a * classic + b * classic**3 + c * classic**5
    assert bool(((ours - 1).abs() <= (classic - 1).abs().clamp_min(0.33) + 1e-9).all())


@pytest.mark.parametrize("impl", ["torch", "cpp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_stay_zeros_beside_other_matrices(impl, dtype):
    G = matrix((3, 20, 50)).to(dtype)
    alone = newton_schulz(G[1:2].clone(), impl=impl)
    G[0], G[2] = 0, 0
    O = newton_schulz(G, impl=impl)  # noqa: E741
    assert not O[0].any()
    assert not O[2].any()
    assert torch.equal(O[1:2], alone)


@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_degenerate_matrices(impl):
    one = torch.tensor([1.0])
    for shape in ((1, 30), (30, 1), (1, 1), (40, 160), (160, 40), (50, 50)):
        S = torch.cat([one, torch.zeros(min(shape) - 1)])
        G = matrix(shape, S).float()
        U, _, Vh = torch.linalg.svd(G.double(), full_matrices=False)
        for steps in (5, 7):
            O = newton_schulz(G, steps, impl=impl).double()  # noqa: E741
            assert abs(float(U[:, 0] @ O @ Vh[0]) - 1) < 0.33
            # what float32 leaves in the other directions
            assert relative(O, U[:, :1] @ (U[:, :1].mT @ O)) < 2e-2
    assert newton_schulz(torch.empty(0, 4, 6), impl=impl).shape == (0, 4, 6)
    half = matrix((30, 120), torch.cat([torch.ones(15), torch.zeros(15)])).float()
    assert relative(newton_schulz(half, 7, impl=impl), truth(half, 7)) < 2e-3


@pytest.mark.parametrize("impl", ["torch", "cpp"])
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e12])
def test_the_scale_of_the_gradient_does_not_matter(impl, scale):
    G = matrix((40, 90)).float()
    assert (
        relative(newton_schulz(G * scale, impl=impl), newton_schulz(G, impl=impl).double()) < 1e-4
    )


@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_any_strides(impl):
    G = torch.empty(2, 100, 33).copy_(matrix((2, 100, 33)))
    want = newton_schulz(G, impl=impl).double()
    padded = torch.zeros(2, 103, 40)[:, 2:102, 5:38].copy_(G)
    assert relative(newton_schulz(padded, impl=impl), want) < 1e-5
    assert relative(newton_schulz(G.mT, impl=impl).mT, want) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("M", "N", "K"),
    [(1, 1, 1), (12, 32, 64), (13, 33, 35), (24, 70, 600), (40, 40, 1101), (7, 9, 0)],
)
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True)])
def test_own_products_of_any_shape_and_layout(
    dtype: torch.dtype, M: int, N: int, K: int, transposed: tuple[bool, bool]
) -> None:
    if dtype == torch.bfloat16 and not module._own(dtype, 1):
        pytest.skip("this processor has no AVX512-BF16")
    generator = torch.Generator().manual_seed(M + N + K)

    def drawn(rows: int, columns: int, turned: bool = False) -> Tensor:
        shape = (3, columns, rows) if turned else (3, rows, columns)
        t = torch.randn(shape, generator=generator).to(dtype)
        return t.mT if turned else t

    left, right, add = drawn(M, K, transposed[0]), drawn(K, N, transposed[1]), drawn(M, N)
    exact = 0.5 * add.double() - 2 * (left.double() @ right.double())
    out = torch.full_like(add, torch.nan)
    lower = M == N
    jit.load("newton_schulz").product(left, right, add, 0.5, -2.0, lower, out)
    error = (out.double() - exact).abs()
    error = error.tril() if lower else error
    roundings = 1 if dtype == torch.bfloat16 else 16  # of float32 the sum is rounded, too
    assert error.max() <= roundings * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [1, 31, 32, 100, 192])
def test_a_lower_triangle_is_mirrored(dtype: torch.dtype, n: int) -> None:
    lower = torch.randn(2, n, n, generator=torch.Generator().manual_seed(n)).to(dtype)
    mirrored = lower.clone()
    jit.load("newton_schulz").mirror(mirrored, 0.0)
    assert torch.equal(mirrored, lower.tril() + lower.tril(-1).mT)


def test_segments_on_the_gram_matrix_agree_with_plain_steps(monkeypatch):
    G = matrix((2, 150, 450), torch.logspace(0, -3, 150)).float()
    assert module._segments(5, 150, 450, torch.float32) == [2, 3]
    assert module._segments(5, 150, 450, torch.float16) == [2, 3]
    assert module._segments(6, 150, 450, torch.float16) == [1, 2, 3]
    assert module._segments(7, 150, 450, torch.float32) == [1, 3, 3]
    assert module._segments(5, 150, 450, torch.bfloat16) == [1] * 5
    segments = newton_schulz(G, impl="cpp")
    monkeypatch.setattr(module, "GRAM_ASPECT", 100.0)
    plain = newton_schulz(G, impl="cpp")
    assert not torch.equal(segments, plain)
    assert relative(segments, plain.double()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(12, 30), (2, 70, 90), (70, 300), (150, 40)])
def test_products_that_are_left_to_torch_go_by_panels_of_rows(monkeypatch, shape, dtype):
    for name in ("OWN_PRODUCTS", "OWN_PRODUCTS_BF16"):
        monkeypatch.setattr(module, name, 0)
    for name in ("PANEL", "PANEL_BF16"):
        monkeypatch.setattr(module, name, 16)
    G = matrix(shape).to(dtype)
    assert relative(newton_schulz(G, impl="cpp"), truth(G, 5)) < CLOSE[dtype]


def test_slow_dtypes_are_computed_in_float32(monkeypatch):
    G = matrix((20, 60))
    assert newton_schulz(G.half(), impl="cpp").dtype == torch.float16
    assert relative(newton_schulz(G.half(), impl="cpp"), truth(G.half(), 5)) < 2e-3
    monkeypatch.setattr(kernels, "CPU_MULTIPLIES_BF16", False)
    assert relative(newton_schulz(G.bfloat16(), impl="cpp"), truth(G.bfloat16(), 5)) < 5e-3


def test_a_gradient_and_wrong_arguments_are_refused():
    G = torch.randn(4, 6, requires_grad=True)
    with pytest.raises(RuntimeError, match="no_grad"):
        newton_schulz(G)
    with torch.no_grad():
        newton_schulz(G)
    with pytest.raises(ValueError, match="steps >= 1"):
        newton_schulz(torch.randn(4, 6), 0)
    with pytest.raises(ValueError, match="matrices"):
        newton_schulz(torch.randn(4))


def test_it_compiles_whole_and_is_well_formed():
    G = matrix((2, 40, 24)).float()
    compiled = torch.compile(lambda G: newton_schulz(G) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(G), newton_schulz(G) * 2)
    torch.library.opcheck(torch.ops.kernels.newton_schulz.default, (G, 5, "cpp"))


def test_triton_kernels_compile_for_every_gpu():
    # All for an H100; for the others one of each kernel and dtype, that with the most terms.
    most = [*module.AOT[:2], module.AOT[4], module.AOT[6], *module.AOT[10:]]
    rows = compile_all(module.AOT, (90,)) + compile_all(most, (80, 100))
    assert len(rows) == len(module.AOT) + 2 * len(most)
    assert all(row["stack_bytes"] == 0 for row in rows), rows


def test_every_tile_is_stored_sixteen_bytes_at_a_time():
    """A mask that differs from element to element would make it two: twice the time of a symmetric product, reckoned."""
    for entry in module.AOT[2:]:
        stores = re.findall(r"st\.global\S*", aot._compile(entry, 90).asm["ptx"])
        assert set(stores) == {"st.global.v4.b32"}, entry[0].fn.__name__


INTERPRETED = """
import torch
from tests.test_newton_schulz import matrix, relative, truth
from kernels import newton_schulz as module
module.BLOCK, module.BLOCK_K = 16, 16
module.PARTS, module.NORM_BLOCK = 4, 512  # so that a program adds up several blocks
for dtype, close in ((torch.float32, 2e-4), (torch.bfloat16, 1.5e-2)):
    for shape in ((2, 20, 50), (50, 20), (40, 40), (1, 9), (2, 0, 5)):
        G = matrix(shape).to(dtype)
        O = module.newton_schulz(G, impl="triton")
        assert (O.shape, O.dtype, O.is_contiguous()) == (G.shape, dtype, True)
        # one row has one singular value, near 1, where the first polynomial is steepest
        allowed = 5e-2 if shape == (1, 9) and dtype.itemsize == 2 else close
        assert not G.numel() or relative(O, truth(G, 5)) < allowed, (shape, dtype)
assert not module.newton_schulz(torch.zeros(3, 17, 5), impl="triton").any()

module.BLOCK, module.BLOCK_K = 32, 32
for shape in ((48, 48), (48, 96)):  # tall ones: above
    n = min(shape)
    for spectrum in (torch.logspace(0, -3, n), torch.cat([torch.ones(1), torch.full((n - 1,), 1e-2)])):
        for steps in (3, 5, 6, 7) if shape == (48, 96) and spectrum[1] > 0.1 else (5,):
            G = matrix(shape, spectrum).to(torch.bfloat16)
            error = relative(module.newton_schulz(G, steps, impl="triton"), truth(G, steps))
            assert error < 8e-2, (shape, spectrum, steps, error)
"""


# A graph as CUDA records it: launches that are kept with their tensors, not run, and run again as they were at each replay.
REPLAYED = """
import contextlib
import functools
import torch
from tests.test_newton_schulz import matrix
from kernels import newton_schulz as module

class Graph:
    def replay(self):
        for launch in self.launches:
            launch()

@contextlib.contextmanager
def recorded(graph, **_):
    kernels = (module._symmetric_kernel, module._apply_kernel)
    runs, graph.launches = [kernel.run for kernel in kernels], []
    for kernel, run in zip(kernels, runs):
        kernel.run = lambda *args, run=run, **kwargs: graph.launches.append(functools.partial(run, *args, **kwargs))
    yield
    for kernel, run in zip(kernels, runs):
        kernel.run = run

torch.cuda.CUDAGraph, torch.cuda.graph, torch.cuda.Stream = Graph, recorded, lambda device: None
module.BLOCK, module.BLOCK_K, module.PARTS, module.NORM_BLOCK = 32, 32, 4, 512  # few programs: tiles are another test's
for shape, launches in (((2, 20, 20), 14), ((50, 20), 17)):
    G = matrix(shape).bfloat16()
    stack = G.reshape(-1, *shape[-2:])
    graph = module._Graph(stack, torch.float16, 5)
    assert len(graph._graph.launches) == launches, (shape, len(graph._graph.launches))
    for scale in (1, -3):
        want = module.newton_schulz(scale * G, impl="triton")
        assert torch.equal(module._last(graph.factors(scale * stack), G), want), (shape, scale)
        assert scale == 1 or not torch.equal(want, before)
        before = want
"""


@pytest.mark.slow
def test_triton_agrees_with_float64_and_a_recorded_graph_replays_every_product_but_the_last():
    interpret("-c", INTERPRETED + REPLAYED)  # to start a process takes 3 s


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_calls_that_replay_a_graph_give_what_plain_launches_give(dtype: torch.dtype) -> None:
    def plain(G: Tensor) -> Tensor:
        stack = G.reshape(-1, *G.shape[-2:])
        X = torch.empty_like(stack, dtype=dtype if dtype == torch.float32 else torch.float16)
        module._normalise_into(X, stack)
        return module._last(module._factors(module._upright(X), 5), G)

    # more shapes than graphs are kept, and then all of them again
    shapes = [(2, 128 + n, 512) for n in range(module.GRAPHS + 1)] + [(256, 256), (512, 128)]
    for shape in 2 * shapes:
        drawn = [torch.randn(shape, device="cuda", dtype=dtype) for _ in range(3)]
        results = [newton_schulz(G, impl="triton") for G in drawn]
        for G, result in zip(drawn, results, strict=True):
            assert torch.equal(result, plain(G)), "overwritten by the next call, or wrong"
    assert len(module._graphs) == module.GRAPHS

    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        other = newton_schulz(drawn[1], impl="triton")
    whole, static = torch.cuda.CUDAGraph(), drawn[0].clone()
    with torch.cuda.graph(whole):
        captured = newton_schulz(static, impl="triton")
    static.copy_(drawn[2])
    whole.replay()
    torch.cuda.synchronize()
    assert torch.equal(other, results[1])
    assert torch.equal(captured, results[2])


@pytest.mark.parametrize(
    ("M", "K", "N"), [(12, 256, 32), (13, 257, 33), (25, 5, 70), (1, 1, 1), (40, 0, 40)]
)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_of_any_size_and_strides_is_that_of_float64(
    M: int, K: int, N: int, transposed: bool
) -> None:
    generator = torch.Generator().manual_seed(M)
    left, right, add = (torch.randn(2, *s, generator=generator) for s in ((M, K), (K, N), (M, N)))
    if transposed:
        left, right = left.mT.contiguous().mT, right.mT.contiguous().mT
    out = torch.full_like(add, float("nan"))
    jit.load("newton_schulz").product(left, right, add, 0.5, -2.0, False, out)
    expected = 0.5 * add.double() - 2.0 * left.double() @ right.double()
    assert (out - expected).abs().max() < 1e-5 * max(1, K) ** 0.5 * 4


@pytest.mark.parametrize("n", [1, 12, 31, 32, 45, 100])
def test_a_mirrored_product_is_whole_and_symmetric_to_the_bit(n: int) -> None:
    X = matrix((2, n, 70)).float()
    out = torch.full((2, n, n), float("nan"))
    ops = jit.load("newton_schulz")
    ops.product(X, X.mT, None, 0.0, 1.0, True, out)
    ops.mirror(out, 3.0)
    expected = X.double() @ X.double().mT + 3 * torch.eye(n, dtype=torch.float64)
    assert (out - expected).abs().max() < 1e-4
    assert torch.equal(out, out.mT)


def test_factors_that_do_not_fit_are_refused() -> None:
    X = torch.randn(2, 4, 5)
    with pytest.raises(RuntimeError, match="do not fit together"):
        jit.load("newton_schulz").product(X, X, None, 0.0, 1.0, False, torch.empty(2, 4, 5))


@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_float64_is_refused_by_name(impl):
    with pytest.raises(ValueError, match="float32, bfloat16 or float16, got torch.float64"):
        newton_schulz(torch.randn(4, 6).double(), impl=impl)


def test_triton_refuses_a_matrix_that_it_cannot_count():
    with pytest.raises(ValueError, match="32 bits"):
        module._triton(torch.empty(1, 46341, 46341, dtype=torch.bfloat16, device="meta"), 5)
