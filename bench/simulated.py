"""A simulation as a command: its report part by part as it comes, and then as a file of results/."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path

from bench.paragraphs import spaced


def command(name: str, about: str | None, report: Iterable[str], to: Path) -> None:
    """Run `python -m NAME`, which takes no options; `about` is the module's docstring. The file is written when all is done."""
    what = (about or "").split("\n\n", 1)[0]
    argparse.ArgumentParser(f"python -m {name}", description=what).parse_args()
    started = time.monotonic()
    lines = []
    for line in spaced(report):
        print(line, flush=True)
        lines.append(line)
    to.write_text("\n".join(lines) + "\n")
    print(f"\n{to.relative_to(to.parent.parent)} written in {time.monotonic() - started:.0f} s")
