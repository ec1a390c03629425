"""Cases whose contents were recorded in a training run (bench/capture.py)."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.contracts.contract import Case, Input

FILE = Path(__file__).parent / "captured.npz"


@functools.cache
def _arrays() -> dict[str, Any]:
    with np.load(FILE) as stored:
        return dict(stored)


def cases(op: str) -> list[tuple[Case, dict[str, Tensor]]]:
    """The recorded calls of an op, with the values of their inputs."""
    rows = json.loads(_arrays()["cases"].tobytes())
    return [_case(row) for row in rows if row["op"] == op]


def _case(row: dict[str, Any]) -> tuple[Case, dict[str, Tensor]]:
    inputs = {
        name: Input(tuple(each["shape"]), each["dtype"], family="captured")
        for name, each in row["inputs"].items()
    }
    values = {
        name: _values(_arrays()[each["key"]], each["dtype"]) for name, each in row["inputs"].items()
    }
    return Case(inputs, row["scalars"]), values


def _values(stored: np.ndarray[Any, Any], dtype: str) -> Tensor:
    found = torch.from_numpy(stored.copy())
    return found.view(torch.bfloat16) if dtype == "bfloat16" else found
