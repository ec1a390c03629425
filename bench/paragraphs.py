"""Reports in Markdown, from their headings, paragraphs, items and rows of tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def spaced(parts: Iterable[str]) -> Iterator[str]:
    """The parts with an empty line between any two, but not between rows of a table or items of a list."""
    before = ""
    for part in parts:
        if before and not before[0] == part[0] in "|-":
            yield ""
        yield part
        before = part
