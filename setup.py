"""Install the checkout, or compile its C++ ahead of time.

pip install -e .                  puts kernels, model, bench and agent on the path of any directory; compiles nothing, needs no torch
python setup.py build_ext         builds every csrc/*.cpp for every instruction set into csrc/build, where kernels/jit.py finds it
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Command, setup

ROOT = Path(__file__).resolve().parent


class BuildKernels(Command):
    """`build_ext`: the objects that kernels/jit.py would build on first use, of this machine's torch and compiler."""

    description = "build csrc/*.cpp ahead of time, for every instruction set of this architecture"
    user_options: list[tuple[str, str | None, str]] = []

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        sys.path.insert(0, str(ROOT))
        from kernels import jit

        for source in sorted((ROOT / "csrc").glob("*.cpp")):
            for target in jit.targets():
                built = jit.build(source, target, into=jit.AHEAD_OF_TIME)
                print(f"{source.name} {target}: {built.relative_to(ROOT)}")


setup(
    packages=[
        "kernels",
        "model",
        "bench",
        "bench.contracts",
        "bench.runner",
        "bench.sandbox",
        "agent",
        "agent.coder",
        "agent.dry_run",
        "agent.proposers",
        "agent.research",
        "agent.static",
    ],
    package_data={"agent": ["prices.toml"]},
    cmdclass={"build_ext": BuildKernels},
)
