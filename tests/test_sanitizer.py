"""What compute-sanitizer says, read: its reports in the forms of its manual; and the whole way round by a stand-in for the program."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import sanitizer
from bench.contracts import contract
from bench.sandbox import isolation
from bench.sanitizer import Report, Run

ROOT = Path(__file__).resolve().parent.parent
CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
NO_RACE = "========= COMPUTE-SANITIZER\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"

OUT_OF_BOUNDS = """\
========= COMPUTE-SANITIZER
building ...
========= Invalid __global__ write of size 4 bytes
=========     at _rms_norm_fwd+0x9d0 in rms_norm.py:57
=========     by thread (31,0,0) in block (6,0,0)
=========     Access to 0x7f241b0001e0 is out of bounds
=========     and is 33 bytes after the nearest allocation at 0x7f241b000000 of size 448 bytes
=========
========= Invalid __global__ write of size 4 bytes
=========     at _rms_norm_fwd+0x9d0 in rms_norm.py:57
=========     by thread (30,0,0) in block (6,0,0)
=========     Access to 0x7f241b0001dc is out of bounds
=========
========= Invalid __global__ read of size 2 bytes
=========     at row(const float *, int)+0xb0 in norm.cu:39
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x87654321 is misaligned
=========         Device Frame: norm_kernel(const float *)+0x30 in norm.cu:44
=========
Traceback (most recent call last):
RuntimeError: CUDA error: unspecified launch failure
========= Target application returned an error
========= ERROR SUMMARY: 3 errors
"""
RACE = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at sum_kernel(int *, int *)+0x90 in sum.cu:41
=========     and Read access at sum_kernel(int *, int *)+0x100 in sum.cu:51 [508 hazards]
=========     and Write access at sum_kernel(int *, int *)+0x90 in sum.cu:41 [4 hazards]
=========
========= Warning: Race reported between Write access at _softmax+0xf0 in attention.py:40
=========     and Read access at _softmax+0x280 in attention.py:46 [4 hazards]
=========
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""
HAZARD = """\
========= ERROR: Potential WAW hazard detected at __shared__ 0x0 in block (0,0,0) :
=========     Write Thread (0,0,0) at scan()+0x2f0 in scan.cu:20
=========     Write Thread (1,0,0) at scan()+0x2f0 in scan.cu:21
=========     Current Value : 1, Incoming Value : 2
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
OLD_RACE = """\
========= ERROR: Race reported between Read access at 0x6360 in /home/me/conv.cu:123:conv(pixel const*, int, float const*)
=========     and Write access at 0x1fe0 in /home/me/conv.cu:63:conv(pixel const*, int, float const*) [1088 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
UNINITIALIZED = """\
========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at add_kernel(int *)+0x70 in add.cu:41
=========     by thread (31,0,0) in block (1,0,0)
=========     Address 0x7f3c7ec000fc
=========
========= Uninitialized __global__ memory read of size 1 bytes
=========     at 0x150 in void lib::_GLOBAL__N__56_::count_kernel<int=256>(unsigned int const *,int)
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x7fc406200400
=========
========= ERROR SUMMARY: 2 errors
"""
LIBRARY = """\
========= Uninitialized __global__ memory read of size 8 bytes
=========     at void at::native::vectorized_elementwise_kernel<(int)4, at::native::AddFunctor>(int, T2)+0x70
=========     by thread (31,0,0) in block (1,0,0)
=========     Address 0x7f3c7ec000fc
=========
========= ERROR SUMMARY: 1 error
"""
UNABLE = "========= COMPUTE-SANITIZER\n========= Error: Target application terminated before first instrumented API call\n"


def reports(text: str) -> list[Report]:
    return list(sanitizer.parse(text))


def test_an_access_out_of_bounds_is_told_with_kernel_and_line() -> None:
    first, second, third = reports(OUT_OF_BOUNDS)
    assert first == second
    assert (first.kernel, first.line) == ("_rms_norm_fwd", "rms_norm.py:57")
    assert str(first) == (
        "Invalid __global__ write of size 4 bytes (is out of bounds) in _rms_norm_fwd at rms_norm.py:57"
    )
    assert third.kernel == "norm_kernel(const float *)", "the kernel, not the function it calls"
    assert third.line == "norm.cu:39"
    assert "misaligned" in third.what


def test_a_race_is_told_with_both_lines_and_a_warning_is_none() -> None:
    error, warning = reports(RACE)
    assert error.error
    assert (error.kernel, error.line) == ("sum_kernel(int *, int *)", "sum.cu:41")
    assert "sum.cu:51" in error.what
    assert not warning.error
    assert (warning.kernel, warning.line) == ("_softmax", "attention.py:40")


def test_a_single_hazard_is_told_with_both_lines() -> None:
    (report,) = reports(HAZARD)
    assert report.error
    assert (report.kernel, report.line) == ("scan()", "scan.cu:20")
    assert "scan.cu:21" in report.what


def test_reports_of_earlier_releases_are_read() -> None:
    (race,) = reports(OLD_RACE)
    assert race.kernel == "conv(pixel const*, int, float const*)"
    assert race.line == "/home/me/conv.cu:123"
    assert "/home/me/conv.cu:63" in race.what
    late = reports(UNINITIALIZED)[1]
    assert late.kernel == "void lib::_GLOBAL__N__56_::count_kernel<int=256>(unsigned int const *,int)"  # fmt: skip
    assert late.line == ""


def test_memory_read_before_it_was_written_is_told() -> None:
    report = reports(UNINITIALIZED)[0]
    assert report.what.startswith("Uninitialized __global__ memory read of size 4 bytes")
    assert (report.kernel, report.line) == ("add_kernel(int *)", "add.cu:41")


def verdict(**texts: str) -> sanitizer.Finding:
    clean = {"memcheck": CLEAN, "racecheck": NO_RACE, "initcheck": CLEAN}
    return sanitizer.judged([Run(n, t, True) for n, t in {**clean, **texts}.items()], 4)


def test_a_clean_run_passes_and_says_how_much_was_looked_at() -> None:
    finding = verdict()
    assert finding.passed
    assert finding.evidence["compute_sanitizer"]["racecheck"] == "nothing found in 4 calls"


@pytest.mark.parametrize(
    ("tool", "text", "told"),
    [
        ("memcheck", OUT_OF_BOUNDS, "rms_norm.py:57"),
        ("racecheck", RACE, "sum.cu:41"),
        ("initcheck", UNINITIALIZED, "add.cu:41"),
        ("memcheck", LIBRARY, "at::native"),
        ("memcheck", CLEAN.replace("0 errors", "3 errors"), "3 errors of a kind"),
    ],
)
def test_an_error_refuses_and_names_its_place(tool: str, text: str, told: str) -> None:
    finding = verdict(**{tool: text})
    assert not finding.passed
    assert told in finding.reason
    assert tool in finding.reason
    assert finding.evidence["kind"] == "sanitizer"


def test_a_warning_alone_refuses_nobody_and_is_told() -> None:
    finding = verdict(racecheck=RACE.replace("Error:", "Warning:"))
    assert finding.passed
    assert any("attention.py:40" in said for said in finding.evidence["compute_sanitizer"]["racecheck"])  # fmt: skip


def test_what_a_library_reads_early_refuses_nobody_and_is_told() -> None:
    finding = verdict(initcheck=LIBRARY)
    assert finding.passed
    assert "at::native" in finding.evidence["compute_sanitizer"]["initcheck"][0]


@pytest.mark.parametrize("text", [UNABLE, "", "no end within 180 s"])
def test_a_tool_without_a_verdict_is_told_as_that(text: str) -> None:
    finding = verdict(memcheck=text)
    assert finding.passed
    assert finding.evidence["compute_sanitizer"]["memcheck"].startswith("no verdict")


def test_calls_that_were_not_all_made_are_no_verdict() -> None:
    finding = sanitizer.judged([Run("memcheck", CLEAN, False)], 4)
    assert "no verdict" in finding.evidence["compute_sanitizer"]["memcheck"]


def test_a_report_that_the_candidate_prints_between_hides_none() -> None:
    lines = OUT_OF_BOUNDS.splitlines()
    lines[3:3] = ["hello", "========= ERROR SUMMARY: 0 errors"]
    assert not verdict(memcheck="\n".join(lines)).passed


def test_on_a_cpu_it_is_not_run_and_says_so() -> None:
    finding = sanitizer.findings("rms_norm", ROOT, "cpu")
    assert finding.passed
    assert "a GPU" in finding.evidence["compute_sanitizer"]


# --- the way round ---------------------------------------------------------------------------------------------------

STAND_IN = """#!/bin/sh
echo "========= COMPUTE-SANITIZER"
while [ "${1#*python}" = "$1" ]; do tool="$tool $1"; shift; done
"$@" || echo "========= Target application returned an error"
case "$tool" in
  *racecheck*) echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)";;
  *) echo "========= ERROR SUMMARY: 0 errors";;
esac
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "toolkit" / "bin" / "compute-sanitizer"
    file.parent.mkdir(parents=True)
    file.write_text(STAND_IN)
    file.chmod(0o755)
    return file


def needs_namespaces() -> None:
    if not {"bubblewrap", "namespaces"} & isolation.held():
        pytest.skip("no namespaces on this machine")


@pytest.mark.usefixtures("built")
def test_an_op_is_rehearsed_under_every_tool_in_the_sandbox(program: Path) -> None:
    needs_namespaces()
    op = "linear_cross_entropy"
    calls = sanitizer.plan(contract(op), random.Random(5))
    finding = sanitizer.judged(sanitizer.run(program, op, ROOT, calls, "cpu"), len(calls))
    assert finding.evidence["compute_sanitizer"] == {
        tool: f"nothing found in {len(calls)} calls" for tool in sanitizer.TOOLS
    }


def test_a_candidate_that_falls_over_is_no_verdict(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_namespaces()
    monkeypatch.setattr(sanitizer, "TOOLS", ("memcheck",))
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    text = '"""A candidate."""\n\n\ndef rms_norm(x, weight=None, eps=1e-6):\n    raise ValueError("no such luck")\n'
    (tmp_path / "kernels" / "rms_norm.py").write_text(text)
    calls = sanitizer.plan(contract("rms_norm"), random.Random(5))
    finding = sanitizer.judged(sanitizer.run(program, "rms_norm", tmp_path, calls, "cpu"), 4)
    assert "no such luck" in finding.evidence["compute_sanitizer"]["memcheck"]


# --- on a GPU --------------------------------------------------------------------------------------------------------

KERNEL = '''"""A candidate."""

import torch
import triton
import triton.language as tl


@triton.jit
def _scaled(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n)
    tl.store(y_ptr + offs, x, mask=offs < {bound})


def rms_norm(x, weight=None, eps=1e-6):
    flat = x.detach().float().contiguous().flatten()
    y = torch.empty_like(flat)
    _scaled[(triton.cdiv(flat.numel(), 1024),)](flat, y, flat.numel(), BLOCK=1024)
    xf = x.float()
    return (xf * torch.rsqrt(xf.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
'''


def candidate(folder: Path, bound: str) -> Path:
    (folder / "kernels").mkdir()
    (folder / "kernels" / "__init__.py").touch()
    (folder / "kernels" / "rms_norm.py").write_text(KERNEL.format(bound=bound))
    return folder


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_triton_kernel_that_writes_past_the_end_is_refused(tmp_path: Path) -> None:
    if missing := sanitizer.why_not("cuda"):
        pytest.skip(missing)
    honest, faulty = tmp_path / "honest", tmp_path / "faulty"
    honest.mkdir()
    faulty.mkdir()
    passed = sanitizer.findings("rms_norm", candidate(honest, "n"), "cuda")
    assert passed.passed, passed.reason
    assert "nothing found" in str(passed.evidence["compute_sanitizer"]["memcheck"]), passed.evidence
    refused = sanitizer.findings("rms_norm", candidate(faulty, "n + 3"), "cuda")
    assert not refused.passed
    assert "_scaled" in refused.reason
    assert "rms_norm.py:" in refused.reason


def test_a_report_behind_megabytes_that_the_candidate_prints_refuses_all_the_same(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    log.write_text("word\n" + 100 * ("x" * 99_999 + "\n") + OUT_OF_BOUNDS)
    running = SimpleNamespace(
        process=SimpleNamespace(wait=lambda _: None), log=log, excess=lambda: ""
    )
    found = sanitizer.judged([sanitizer._ended("memcheck", running, "word", 0.0)], 4)
    assert "rms_norm.py:57" in found.reason


def test_a_summary_that_the_candidate_prints_hides_no_error() -> None:
    forged = "========= ERROR SUMMARY: 0 errors\n" + CLEAN.replace("0 errors", "3 errors")
    assert "3 errors of a kind" in verdict(memcheck=forged).reason


@pytest.mark.parametrize(("ends", "said"), [(False, "no end within"), (True, "more memory than")])
def test_why_a_tool_has_no_verdict_is_told_however_much_it_printed(
    ends: bool, said: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.write_text("loading ...\n" * 100)

    def wait(seconds: float) -> None:
        if not ends:
            raise subprocess.TimeoutExpired("tool", seconds)

    running = SimpleNamespace(
        process=SimpleNamespace(wait=wait), log=log, tail=log.read_text,
        excess=lambda: "it used more memory than its cgroup allows",
    )  # fmt: skip
    found = sanitizer.judged([sanitizer._ended("memcheck", running, "word", 0.0)], 4)
    assert said in found.evidence["compute_sanitizer"]["memcheck"]
