"""Reports in Markdown, from their headings, paragraphs, items and rows of tables."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from pathlib import Path


def spaced(parts: Iterable[str]) -> Iterator[str]:
    """The parts with an empty line between any two, but not between rows of a table or items of a list."""
    before = ""
    for part in parts:
        if before and not before[0] == part[0] in "|-":
            yield ""
        yield part
        before = part


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
