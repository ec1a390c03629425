"""`python -m bench.capture`: real arguments of every op, from a short training run of this checkout's model, for the correctness gate.

Random inputs have no outliers in fixed channels, no correlated heads and no peaked scores. Pieces of what the ops are really called with lie in
bench/contracts/captured.npz, small enough to ship; run this again when the model changes its shapes.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import ROOT, contracts, shard
from bench.contracts.captured import FILE
from bench.data import Dataset, prepare
from bench.judge import Judge
from bench.trial import specification

# The loss falls from 9.0 to 6.1 nats: activations have a shape of their own by then.
STEPS = 60
# The length of the training that the model is told; the run ends after STEPS.
SECONDS = 60.0
# Kept of each op, the last ones.
CALLS = 2
# How much of each dimension is kept, so that the file stays below 750 kB.
PIECES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "adamw": dict.fromkeys(("param", "grad", "exp_avg", "exp_avg_sq"), (32, 96)),
    "nesterov": dict.fromkeys(("momentum", "grad"), (1, 32, 64)),
    "muon_update": dict.fromkeys(("weight", "update", "size"), (1, 32, 32)),
    "rms_norm": {"x": (1, 48, 192)},
    "add_rms_norm": {"x": (1, 48, 192), "residual": (1, 48, 192)},
    "attention": {"q": (1, 2, 100, 64), "k": (1, 2, 100, 64), "v": (1, 2, 100, 64)},
    "newton_schulz": {"G": (1, 64, 192)},
    "qk_norm_rope": {"q": (1, 16, 3, 64), "k": (1, 16, 3, 64), "cos": (16, 32), "sin": (16, 32)},
    "relu2_mlp": {"x": (1, 24, 48), "w_up": (64, 48), "w_down": (48, 64)},
    "linear_cross_entropy": {"h": (1, 64, 192), "W": (256, 192), "targets": (1, 64)},
}


def main() -> None:
    about = (__doc__ or "").split("\n\n", 1)[0]
    # no options: it writes a file that is committed
    argparse.ArgumentParser("python -m bench.capture", description=about).parse_args()
    dataset = prepare(None, root=ROOT / ".lab" / "data")
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    cases: list[dict[str, Any]] = []
    with Judge(ROOT) as judge:
        recorded = _record(judge, dataset)
        for op in contracts.ops():
            if recorded[op] and op not in PIECES:
                raise SystemExit(
                    f"{op}: the model calls it; say in PIECES how much of each argument is kept"
                )
            for number in range(len(recorded[op]))[-CALLS:]:
                cases.append(_keep(judge, op, number, recorded[op][number], arrays))
    arrays["cases"] = np.frombuffer(json.dumps(cases).encode(), np.uint8)
    np.savez_compressed(FILE, allow_pickle=False, **arrays)
    print(f"{FILE.name}: {len(cases)} cases, {FILE.stat().st_size / 1024:.0f} kB")


def _record(judge: Judge, dataset: Dataset) -> dict[str, list[dict[str, Any]]]:
    judge.ask("load", tree=str(judge.tree))
    tokens = dataset.tokens("train")
    fd = shard.sealed(tokens, np.arange(dataset.vocab_size))
    try:
        answer = judge.ask(
            "record",
            timeout=300.0,
            fd=fd,
            spec=specification(dataset.vocab_size, dataset.bos, "cpu", SECONDS),
            ops={op: contracts.contract(op).updates for op in contracts.ops()},
            seed=0,
            steps=STEPS,
            dtype=str(tokens.dtype),
        )
    finally:
        os.close(fd)
    found: dict[str, list[dict[str, Any]]] = answer["calls"]
    return found


def _keep(
    judge: Judge, op: str, number: int, call: Mapping[str, Any], arrays: dict[str, Any]
) -> dict[str, Any]:
    """Take one call's tensors, cut to size, into `arrays`; returns the case."""
    case: dict[str, Any] = {"op": op, "inputs": {}, "scalars": call["scalars"]}
    for name, (dtype, shape) in call["tensors"].items():
        if " " in name:
            continue
        judge.arena.reset()
        out = judge.arena.place(dtype, tuple(shape))
        judge.ask("recorded", op=op, call=number, out={name: out})
        piece = _cut(judge.arena.view(out), PIECES[op][name]).contiguous()
        if dtype == "int64":
            # targets beyond the cut of W become other classes, which exist
            piece = piece % PIECES[op]["W"][0]
        key = f"{op}/{number}/{name}"
        raw = piece.view(torch.int16) if dtype == "bfloat16" else piece
        arrays[key] = raw.numpy().copy()
        case["inputs"][name] = {"dtype": dtype, "shape": list(piece.shape), "key": key}
    return case


def _cut(t: Tensor, sizes: tuple[int, ...]) -> Tensor:
    for dim in range(1, min(t.ndim, len(sizes)) + 1):
        t = t.narrow(-dim, 0, min(sizes[-dim], t.shape[-dim]))
    return t


if __name__ == "__main__":
    main()
