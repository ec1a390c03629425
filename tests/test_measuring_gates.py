"""Build, microbench and parity on the real kernels: what they report, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from warm import Timers

from agent.lab import Lab
from bench import parity, timing
from bench.builds import build
from bench.data import prepare
from bench.judge import Refused
from bench.timing import compare

ROOT = Path(__file__).resolve().parent.parent
# It casts once: from two casts autograd would add two gradients that are rounded each, and where they nearly cancel (rows of one float16
# element) little is left of dx; 95 of 40,000 drawn cases refused that, none this.
NORM = '''"""RMSNorm that makes `repeats` passes; from call `honest_calls` on it returns its input."""
import torch

CALLS = 0


def rms_norm(x, weight=None, eps=1e-6):
    global CALLS
    CALLS += 1
    if CALLS > {honest_calls}:
        return x * 1.0
    for _ in range({repeats}):
        xf = x.float()
        y = (xf * torch.rsqrt(xf.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    return y if weight is None else y * weight
'''


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    """Copies of the project's editable folders, with files replaced."""

    def make(name: str, **files: str) -> Path:
        Lab().copy_tree(tmp_path / name)
        for path, text in files.items():
            (tmp_path / name / path.replace("__", "/")).with_suffix(".py").write_text(text)
        return tmp_path / name

    return make


@pytest.fixture(autouse=True)
def waiting(timers: Timers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons take runners that have started already; tests/test_lab.py starts its own."""
    monkeypatch.setattr(timing, "Judge", timers.judge)


@pytest.mark.alone
def test_eight_times_the_work_is_judged_slower(tree: Callable[..., Path]) -> None:
    once = tree("once", kernels__rms_norm=NORM.format(repeats=1, honest_calls=10**9))
    eight = tree("eight", kernels__rms_norm=NORM.format(repeats=8, honest_calls=10**9))
    found = compare("rms_norm", once, eight, limit_s=4.0)
    assert found.slower, found
    assert 1.1 < found.ratio < 9


@pytest.mark.alone
def test_the_interval_of_equal_files_holds_one(tree: Callable[..., Path]) -> None:
    a = tree("a", kernels__rms_norm=NORM.format(repeats=1, honest_calls=10**9))
    b = tree("b", kernels__rms_norm=NORM.format(repeats=1, honest_calls=10**9))
    # One or two comparisons of equal kernels in three hundred say otherwise (results/timer.md): hardly two in a row, and the same way.
    found = [compare("rms_norm", a, b, limit_s=4.0)]
    if found[0].faster or found[0].slower:
        found.append(compare("rms_norm", a, b, limit_s=4.0))
    assert not all(each.faster for each in found), found
    assert not all(each.slower for each in found), found


def test_a_kernel_that_is_right_only_while_it_is_checked_is_refused(
    tree: Callable[..., Path],
) -> None:
    honest = tree("honest", kernels__rms_norm=NORM.format(repeats=1, honest_calls=10**9))
    sly = tree("sly", kernels__rms_norm=NORM.format(repeats=1, honest_calls=20))
    with pytest.raises(Refused, match="timed call"):
        compare("rms_norm", honest, sly, limit_s=1.0)


def test_triton_kernels_are_compiled_ahead_of_time_and_their_cost_reported(
    tree: Callable[..., Path],
) -> None:
    found = build(tree("as-it-is"), ["kernels/nesterov.py"])
    assert found.passed, found.reason
    rows = found.evidence["triton"]["nesterov"]
    assert {row["arch"] for row in rows} == {80, 90, 100}
    assert all(
        row["registers"] > 0 and row["stack_bytes"] == 0 and row["shared_bytes"] >= 0
        for row in rows
    )


def test_a_triton_kernel_that_does_not_compile_is_refused(tree: Callable[..., Path]) -> None:
    source = (ROOT / "kernels" / "rms_norm.py").read_text()
    broken = source.replace("tl.sum(", "tl.no_such_function(", 1)
    assert broken != source
    found = build(tree("broken", kernels__rms_norm=broken), ["kernels/rms_norm.py"])
    assert not found.passed
    assert "no_such_function" in found.reason


@pytest.mark.usefixtures("built")
def test_parity_refuses_a_kernel_that_trains_differently(
    tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The plain norm is slower, and other tests run beside it; what the probe makes of times is in test_parity.py.
    monkeypatch.setattr(parity, "SLOWER", 100.0)
    monkeypatch.setattr(parity, "STEPS", 5)
    text = "\n\n".join(
        f"Sentence {i} of a small corpus, number {i * i}, and so on." * 12 for i in range(900)
    )
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "corpus.txt").write_text(text)
    dataset = prepare(str(tmp_path / "text"), vocab_size=300, root=tmp_path / "data")
    incumbent = tree("incumbent")
    plain = NORM.format(repeats=1, honest_calls=10**9).replace(
        "eps=1e-6)", "eps=1e-6, *, impl=None)"
    )
    plain += '\n\nIMPLEMENTATIONS = {"torch": rms_norm}\n'
    wrong = plain.replace("return y if", "y = y * 1.5\n    return y if")
    refused = parity.probe(incumbent, tree("other", kernels__rms_norm=wrong), dataset, device="cpu")
    assert not refused.passed
    assert "does not compute the same thing" in refused.reason
