"""What tests of tests/ and bench/ share: the C++ kernels of this tree, built once."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from bench.judge import CACHE
from bench.sandbox import cgroup
from kernels import jit

ROOT = Path(__file__).resolve().parent
# What a worker and its runners take at most, all but always less.
WORKER_BYTES = 2 << 30
MOST_WORKERS = 16
# Kernels that a test calls in its own process lie in the cache of the runners, so that neither builds what the other has.
os.environ["TORCH_EXTENSIONS_DIR"] = str(CACHE)
# With a key in the environment `auto` would ask a model, for money; ninja would look for the job server of a `make --jobs`; and no proxy
# stands before the loopback.
for _name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "FORCE_COLOR", "PYTHONWARNINGS", "MAKEFLAGS"):
    os.environ.pop(_name, None)
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"
# Else each client of a loopback's server reads all certificates, which takes 50 ms.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(ROOT)
os.environ["LC_ALL"] = "C.UTF-8"  # compilers speak English
os.environ.setdefault("TRITON_CACHE_DIR", str(CACHE.with_name("triton")))  # HOME may be read-only


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One a core, of those that a container may use and that memory serves."""
    cores, memory = cgroup.allowance()
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    served = min(memory, physical) / WORKER_BYTES
    return max(1, int(min(len(os.sched_getaffinity(0)), cores, served, MOST_WORKERS)))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Of bench/conftest.py, which `pytest .` reads too late for options."""
    parser.addoption(
        "--benchmark",
        action="store_true",
        help="measure every implementation of every op and its peers",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Five blocks of an implementation show that it runs, and not how fast: nothing is printed of them.
    if not config.getoption("--benchmark"):
        config.option.benchmark_disable = True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: begun last, one of a minute would leave every worker but its own idle."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def built() -> None:
    """Every C++ kernel is in the cache. A runner can only read it: what it misses there it compiles for itself alone, 3 s a source."""
    sources = sorted((ROOT / "csrc").glob("*.cpp"))
    for source in random.sample(sources, len(sources)):  # another worker builds others meanwhile
        jit.build(source)
