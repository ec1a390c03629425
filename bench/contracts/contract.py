"""The form of a contract, and how its random inputs are drawn.

A contract is data: a plain reference, which inputs to draw, what may be differentiated, the least bytes and flops. The reference is
plain PyTorch that computes in the dtype of its inputs: in float64 it is the truth, in the case's own dtype it is the "plain
implementation" whose error sets the tolerance (a small multiple of it; see bench/comparison.py).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bench.protocol import span

FLOATS = ("float32", "bfloat16", "float16")
# What `draw_float` draws from; "edges", "decades", "graded", "weak" and "words" are for a contract to ask for.
VARIED = ("normal", "offset", "heavy_tail", "spike", "rank_one")
FAMILIES = (*VARIED, "constant", "zero")
# Layouts in which every element has memory of its own, so that an op may write to it.
OWN_MEMORY = ("contiguous", "contiguous", "transposed", "padded", "offset")
LAYOUTS = (*OWN_MEMORY, "expanded")
# Elements from which values are drawn in float32, four times as fast: those of a GPU's shapes.
LARGE = 1 << 24


@dataclass(frozen=True)
class Input:
    """One tensor argument: its shape, how it lies in memory, and from which family its values come.

    layout      contiguous; transposed: the two dimensions before the last are swapped in memory, of a matrix the last two; padded: rows lie
                further apart than they are long; sliced: cut out of rows that are one longer; offset: storage begins at an odd element;
                expanded: stride 0 along the first dimension, so that all its slices are one
    family      normal; offset: normal around 3; heavy_tail: normal times a log-normal size; spike: one element of 10 among elements of
                0.01; rank_one: each matrix an outer product; edges: normal, the first and the last slice four times as large; constant:
                0.7; zero; decades: matrices whose singular values fall evenly over three decades; graded: normal, rows of falling size;
                weak: matrices with one singular value of a hundredth beside equal ones; words: normal, every other slice zero, as of words that
                did not occur
    scale       what these values are multiplied by
    positive    their magnitudes, as of a running mean of squares
    apart       matrices (the last two dimensions) begin this many times their own length apart: 3 where q, k and v are parts of one projection

    int64 values are drawn evenly from 0 to `below` - 1; in the family heavy_tail a tenth of them is -100, which means ignored.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    family: str = "normal"
    scale: float = 1.0
    layout: str = "contiguous"
    below: int = 0
    positive: bool = False
    apart: int = 1

    def strides(self) -> tuple[int, ...]:
        order = list(range(len(self.shape)))
        if self.layout == "transposed" and len(order) >= 2:
            a, b = (-3, -2) if len(order) >= 3 else (-2, -1)
            order[a], order[b] = order[b], order[a]
        strides = [0] * len(order)
        step = 1
        for position, dim in enumerate(reversed(order)):
            strides[dim] = step
            step *= max(self.shape[dim], 1)
            if position == 0:
                step += {"padded": 3, "sliced": 1}.get(self.layout, 0)
            if position == 1:
                step *= self.apart
        if self.layout == "expanded":
            strides[0] = 0
        return tuple(strides)

    def span(self) -> int:
        """Elements from the first to the last of the storage that this input occupies."""
        return span(self.shape, self.strides())

    def values(self, generator: torch.Generator) -> Tensor:
        """Fresh float64 (or int64) values of this family, contiguous."""
        if self.dtype == "int64":
            drawn = torch.randint(0, self.below, self.shape, generator=generator)
            if self.family == "heavy_tail":
                drawn[torch.rand(self.shape, generator=generator) < 0.1] = -100
            return drawn
        if self.layout == "expanded":
            one = replace(self, shape=(1, *self.shape[1:]), layout="contiguous")
            return one.values(generator).expand(self.shape)
        dtype = torch.float64 if math.prod(self.shape) < LARGE else torch.float32
        x = torch.randn(self.shape, generator=generator, dtype=dtype).double()
        if self.family == "offset":
            x += 3.0
        elif self.family == "heavy_tail":
            x = x * torch.exp(1.5 * torch.randn(self.shape, generator=generator, dtype=dtype))
        elif self.family == "spike" and x.numel():
            x *= 1e-2
            x.view(-1)[int(torch.randint(x.numel(), (1,), generator=generator))] = 10.0
        elif self.family == "rank_one":
            x = x[..., :1] * x[..., :1, :] if x.ndim > 1 else x
        elif self.family == "edges" and x.numel():
            x[0] *= 4
            x[-1] *= 4
        elif self.family == "constant":
            x = torch.full(self.shape, 0.7, dtype=torch.float64)
        elif self.family == "zero":
            x.zero_()
        elif self.family == "words":
            x[::2] = 0
        elif self.family == "decades":
            U, _, Vh = torch.linalg.svd(x, full_matrices=False)
            x = (U * torch.logspace(0, -3, U.shape[-1], dtype=torch.float64)) @ Vh
        elif self.family == "graded":
            rows = torch.logspace(0, -2, x.shape[-2], dtype=torch.float64)
            x = x * rows[torch.randperm(len(rows), generator=generator), None]
        elif self.family == "weak":
            U, S, Vh = torch.linalg.svd(x, full_matrices=False)
            S[..., -1] = 1e-2 * S[..., 0]
            x = (U * S.unsqueeze(-2)) @ Vh
        return (x.abs() if self.positive else x) * self.scale


@dataclass(frozen=True)
class Case:
    """Arguments of one call: tensors to be drawn, and plain values."""

    inputs: Mapping[str, Input]
    scalars: Mapping[str, Any] = field(default_factory=dict)
    # Set where the exact gradient is zero by cancellation, so that any float gradient is noise.
    forward_only: bool = False
    # How often a step of the trial's model makes this call, in whatever dtype it trains in: its weight in the mix.
    calls: int = 1

    def label(self) -> str:
        tensors = " ".join(
            f"{name}{list(i.shape)}"
            + (f" {i.dtype}" if i.dtype != "int64" else "")
            + (f" {i.family}*{i.scale:g}" if i.family != "normal" or i.scale != 1 else "")
            + (f" {i.layout}" if i.layout != "contiguous" else "")
            for name, i in self.inputs.items()
        )
        scalars = {
            k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in self.scalars.items()
        }
        return tensors + "".join(f" {k}={v}" for k, v in scalars.items())


@dataclass(frozen=True)
class Contract:
    """An op: its meaning, and everything that the gates and the benchmark need to know of it."""

    name: str
    reference: Callable[..., Any]  # Tensor or tuple of Tensors, in the dtype of the inputs
    # By the name of each result: the input whose shape and dtype it has, or a function that gives them for a case.
    results: Mapping[str, str | Callable[[Case], Input]]
    # inputs through which gradients flow; empty: the op is not trained through
    differentiable: tuple[str, ...]
    draw: Callable[[random.Random], Case]
    # A case in which every argument matters, and other values of its scalars, of which each alone moves the result far beyond rounding.
    telling: Callable[[random.Random], tuple[Case, Mapping[str, Any]]]
    # A case for several threads, tiles and chunks, none of which it fills, with every optional argument.
    large: Callable[[random.Random], Case]
    # Cases that are asked every time: what overflows, what is empty.
    corners: Callable[[random.Random], Sequence[Case]]
    # The shapes of the trial, by device. On a GPU they have as many rows as public figures have; the model itself takes as many at
    # once as the memory holds, 128 sequences of 2,048 tokens in 80 GB.
    trial: Mapping[str, tuple[Case, ...]]
    least_bytes: Callable[[Case], int]  # forward, every tensor touched once
    flops: Callable[[Case], int]  # forward; backward is counted as twice this
    # The op overwrites arguments, as an optimizer does: its results are the arguments of the same names as the call leaves them, and it
    # returns None. The reference overwrites nothing, and returns them.
    in_place: bool = False
    # For a causal op: tensor name -> its dimension of time.
    time_axis: Mapping[str, int] = field(default_factory=dict)
    # Library functions that are this op as a whole, by the beginning of their dispatcher name, or packages that launch kernels past
    # the dispatcher. A kernel file may call one only in an implementation that has one of `library_names`.
    library: tuple[str, ...] = ()
    library_names: tuple[str, ...] = ()
    # Where a result or a gradient is a difference of terms that can be far larger than itself: (inputs, upstream, scalars) -> the norms of
    # these terms, by the name of the result or gradient.
    terms: (
        Callable[[Mapping[str, Tensor], Sequence[Tensor], Mapping[str, Any]], Mapping[str, float]]
        | None
    ) = None
    # Inputs in which an infinity has only one honest outcome; a NaN has only one in every input.
    infinite: tuple[str, ...] = ()
    # Replaces the comparison of values where a property is asked for and not a value: (case, inputs, plain result) -> a function that says
    # what is wrong with a result, "" if nothing.
    criterion: Callable[[Case, Mapping[str, Tensor], Tensor], Callable[[Tensor], str]] | None = None

    # Inputs that are weights of the model, which passes them as Parameters.
    weights: tuple[str, ...] = ()
    # The form in which the model makes a call of the trial, where that is not the one that is timed.
    called: Callable[[Case, random.Random], Case] | None = None

    def as_called(self, case: Case, rng: random.Random) -> Case:
        """A case of the trial as the model calls the op."""
        return case if self.called is None else self.called(case, rng)

    def timed(self, device: str, dtype: str, rng: random.Random) -> list[Case]:
        """The calls of a step as a model that trains in `dtype` makes them: in its form, and in that dtype what any call of the trial has in bfloat16."""
        cases = self.trial[device]
        half = {n for case in cases for n, i in case.inputs.items() if i.dtype == "bfloat16"}

        def trained(case: Case) -> Case:
            inputs = {
                n: replace(i, dtype=dtype) if n in half else i for n, i in case.inputs.items()
            }
            return self.as_called(replace(case, inputs=inputs), rng)

        return [trained(case) for case in cases if case.calls]

    def least_work(self, case: Case) -> tuple[float, float]:
        """Least bytes and flops of a call and, where gradients flow, of its backward: twice the arithmetic and, at least, twice the traffic."""
        passes = 3 if self.differentiable and not case.forward_only else 1
        return passes * self.least_bytes(case), passes * self.flops(case)

    def described(self, case: Case) -> dict[str, Any]:
        """A call as plain JSON, for a process that draws its tensors itself (bench/runner/events.py and rehearsal.py)."""
        inputs = {
            name: {
                "dtype": wanted.dtype,
                "shape": list(wanted.shape),
                "strides": list(wanted.strides()),
                "skew": int(wanted.layout == "offset"),
                "below": wanted.below,
            }
            for name, wanted in case.inputs.items()
        }
        return {"inputs": inputs, "scalars": dict(case.scalars), "wrt": list(self.wrt(case))}

    def wrt(self, case: Case) -> tuple[str, ...]:
        """The inputs of a case that gradients flow back to; none where it is forward only."""
        names = () if case.forward_only else self.differentiable
        return tuple(name for name in names if name in case.inputs)

    def shapes(self, case: Case) -> dict[str, Input]:
        """Shapes and dtypes of the results of a case."""

        def of(said: str | Callable[[Case], Input]) -> Input:
            if not isinstance(said, str):
                return said(case)
            return Input(case.inputs[said].shape, case.inputs[said].dtype)

        return {name: of(said) for name, said in self.results.items()}

    @property
    def updates(self) -> tuple[str, ...]:
        """The arguments that a call overwrites."""
        return tuple(self.results) if self.in_place else ()


def draw_size(rng: random.Random, largest: int) -> int:
    """A dimension: 1, a prime, a tile and its neighbours, or anything, up to `largest`."""
    kind = rng.choice(("one", "prime", "tile", "any"))
    if kind == "one":
        return 1
    if kind == "prime":
        return rng.choice([p for p in (2, 3, 7, 17, 31, 61, 127, 251, 509) if p <= largest])
    if kind == "tile":
        tile = rng.choice([t for t in (16, 32, 64, 128, 256) if t < largest] or [1])
        return max(1, min(largest, tile + rng.choice((-1, 0, 1))))
    return rng.randint(1, largest)


def draw_float(rng: random.Random, shape: tuple[int, ...], dtype: str, **fixed: Any) -> Input:
    """A floating input of random family, scale and layout; `fixed` overrides."""
    chosen: dict[str, Any] = {
        "family": rng.choice(VARIED if rng.random() < 0.85 else FAMILIES),
        # 1e-3 .. 1e3, but within what float16 can square
        "scale": 10 ** rng.uniform(-3, 3) if dtype != "float16" else 10 ** rng.uniform(-1, 0.5),
        "layout": rng.choice(LAYOUTS),
    }
    return Input(shape, dtype, **{**chosen, **fixed})


def in_rows(case: Case, *names: str) -> Case:
    """With these inputs, (N, ...) of tokens, as a model has them: (B, T, ...)."""

    def split(i: Input) -> Input:
        T = min(2048, i.shape[0] // 4)
        return replace(i, shape=(i.shape[0] // T, T, *i.shape[1:]))

    return replace(case, inputs={n: split(i) if n in names else i for n, i in case.inputs.items()})


def nbytes(*inputs: Input) -> int:
    """Bytes of the values (not of the padding)."""
    return sum(math.prod(i.shape) * getattr(torch, i.dtype).itemsize for i in inputs)
