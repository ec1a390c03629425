"""The lab as a person runs it, on the real judge: what `make lab` types, with shorter trials; the gate on right and wrong files; the benchmark."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*words: str, cwd: Path = ROOT, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the working tree's files, so that a run cannot touch this one."""
    clone = tmp_path_factory.mktemp("lab") / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    for folder in ("kernels", "csrc", "model", "bench", "agent", "examples"):
        shutil.copytree(
            ROOT / folder,
            clone / folder,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("build", "__pycache__"),
        )
    who = ("-c", "user.name=a person", "-c", "user.email=person@example.org")
    subprocess.run(
        ["git", *who, "commit", "-qam", "as it is", "--allow-empty"], cwd=clone, check=True
    )
    return clone


@pytest.mark.slow
def test_the_loop_runs_from_a_plain_kernel_to_a_summary(checkout: Path) -> None:
    before = subprocess.run(
        ["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout
    words = "-m agent --target kernels --op linear_cross_entropy --start examples --experiments 1 --seconds 5 --device cpu"
    done = run(*words.split(), cwd=checkout)
    assert done.returncode == 0, done.stderr[-3000:]
    for said in ("run", "kept", "tokens/s", "ledger", "experiment"):
        assert said in done.stdout + done.stderr
    after = subprocess.run(
        ["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout
    assert after == before, "the loop touched the working tree"
    status = run("-m", "agent", "status", cwd=checkout)
    assert status.returncode == 0
    exported = json.loads(run("-m", "agent", "export", "--json", cwd=checkout).stdout)
    assert exported
    tsv = run("-m", "agent", "export", "--tsv", cwd=checkout).stdout
    assert tsv.splitlines()[0].split("\t")[:5] == [
        "commit",
        "val_bpb",
        "memory_gb",
        "status",
        "description",
    ]


@pytest.mark.slow
def test_a_trial_ends_with_its_figures(checkout: Path) -> None:
    done = run("-m", "agent", "trial", "--seconds", "5", "--device", "cpu", cwd=checkout)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    names = (
        "val_bpb training_seconds total_seconds peak_memory_mb mfu_percent total_tokens_M "
        "num_steps num_params_M depth tokens_per_second"
    )
    assert set(names.split()) <= set(figures)
    assert 1.5 < float(figures["val_bpb"]) < 4
    assert float(figures["training_seconds"]) <= 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "file", "gate"),
    [
        ("rms_norm", "rms_norm_trusts_unit_data.py", "correctness"),
        ("attention", "attention_tile_causal.py", "correctness"),
        ("newton_schulz", "newton_schulz_skips_a_step.py", "correctness"),
    ],
)
def test_gate_refuses_a_wrong_kernel_with_the_reason(
    op: str, file: str, gate: str, checkout: Path
) -> None:
    done = run(
        "-m",
        "agent",
        "gate",
        "--op",
        op,
        "--candidate",
        str(ROOT / "tests" / "cheats" / file),
        "--no-speed",
        "--json",
        cwd=checkout,
    )
    assert done.returncode == 1, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["passed"] is False
    assert set(result["gates"][0]) == {"name", "passed", "reason", "evidence", "seconds"}
    assert result["gates"][-1]["name"] == gate
    assert result["gates"][-1]["reason"]


@pytest.mark.slow
def test_gate_passes_a_right_kernel(checkout: Path) -> None:
    done = run(
        "-m",
        "agent",
        "gate",
        "--op",
        "rms_norm",
        "--candidate",
        str(ROOT / "csrc" / "rms_norm.cpp"),
        "--no-speed",
        "--json",
        cwd=checkout,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert json.loads(done.stdout)["passed"] is True


@pytest.mark.slow
def test_gate_refuses_a_working_tree_that_touches_the_judge(checkout: Path) -> None:
    file = checkout / "bench" / "comparison.py"
    text = file.read_text()
    try:
        file.write_text(text.replace("FACTOR = 8.0", "FACTOR = 1e9"))
        done = run("-m", "agent", "gate", "--json", cwd=checkout)
    finally:
        file.write_text(text)
    assert done.returncode == 1
    assert json.loads(done.stdout)["gates"][-1]["name"] == "scope"


@pytest.mark.slow
def test_the_benchmark_shows_every_implementation_with_its_share_of_the_limit() -> None:
    done = run("-m", "pytest", "bench", "--benchmark", "-q", "-k", "add_rms_norm-0")
    assert done.returncode == 0, done.stdout[-3000:]
    for said in ("torch eager", "torch.compile", "cpp", "GB/s", "GFLOP/s", "% limit"):
        assert said in done.stdout
