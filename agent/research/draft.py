"""The files that a researcher edits: an overlay on the incumbent's tree, written to disk when a gate, a compiler or a profiler needs it.

Only plain files of the editable folders exist here, by paths of two parts, so that no path leads anywhere else. What cannot be done raises
Mistake, with a message for the model that asked for it.
"""

from __future__ import annotations

import difflib
import heapq
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent import surface
from agent.records import ABSENT, PLAIN, Candidate, Change
from agent.static.literals import MAX_FILE
from agent.workspace import DRAFT, make_way

NEAREST_LINES = 12  # of the file, shown in an error about a text that is not in it
# A text of more lines is first compared by the lines that it shares with each place; then so many places are compared closely.
FEW_LINES = 8
FEW_CHARACTERS = 1_000  # of a text that is compared character by character; a longer one is compared line by line
_PATH = re.compile(r"(kernels|csrc|model)/[A-Za-z0-9_]{1,100}\.(py|cpp|cu|h)")


class Mistake(Exception):
    """What the model asked for cannot be done; the message says what was expected, what came, and what to do."""


class Draft:
    """The incumbent's files, and over them `files`: whole texts by path, None for a deleted one."""

    def __init__(
        self,
        incumbent: Path,
        folder: Path,
        target: str,
        op: str | None,
        files: Mapping[str, str | None] | None = None,
    ) -> None:
        self.incumbent, self.target, self.op = incumbent.resolve(), target, op
        self._folder = folder / DRAFT
        self._overlay: dict[str, str | None] = dict(files or {})

    def paths(self) -> list[str]:
        """The files of the draft, edited or not."""
        there = {*surface.files(self.incumbent), *self._overlay}
        return sorted(path for path in there if self._text(path) is not None)

    def read(self, path: str) -> str:
        text = self._text(path)
        if text is None:
            raise Mistake(f"{path!r}: no such file; there are {', '.join(self.paths())}")
        return text

    def write(self, path: str, text: str | None) -> None:
        """Replace a whole file, make a new one, or delete one (None)."""
        self._require_editable(path)
        if text is None:
            self.read(path)
        elif len(text) > MAX_FILE:
            raise Mistake(f"{path}: {len(text):,} characters; a file has at most {MAX_FILE:,}")
        self._overlay[path] = text

    def replace(self, path: str, old: str, new: str) -> int:
        """Put `new` in the one place where `old` occurs; the line at which it begins."""
        self._require_editable(path)
        text = self.read(path)
        if not old or old == new:
            why = "is empty" if not old else "and the new text are the same"
            raise Mistake(f"{path}: the old text {why}; give the exact text that is to be replaced")
        places = [m.start() for m in re.finditer(re.escape(old), text)]
        if len(places) != 1:
            raise Mistake(
                f"{path}: {_absent(text, old) if not places else _repeated(text, places)}"
            )
        self.write(path, text.replace(old, new))
        return _line_of(text, places[0])

    def files(self) -> dict[str, str | None]:
        """Whole texts of the files that differ from the incumbent's; None: deleted."""
        return {
            path: text
            for path, text in sorted(self._overlay.items())
            if text != self._incumbents(path)
        }

    def diff(self) -> str:
        """A unified diff from the incumbent; empty if nothing differs."""
        parts = []
        for path, text in self.files().items():
            before = self._incumbents(path)
            names = (
                "/dev/null" if before is None else f"a/{path}",
                "/dev/null" if text is None else f"b/{path}",
            )
            for line in difflib.unified_diff(_lines(before), _lines(text), *names):
                parts.append(
                    line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
                )
        return "".join(parts)

    def tree(self) -> Path:
        """A folder with the draft as files, written anew: what ran on it before may have changed it."""
        make_way(self._folder)
        for folder in surface.FOLDERS:
            (self._folder / folder).mkdir(parents=True)
        for path in self.paths():
            if path in self._overlay:
                (self._folder / path).write_bytes(self.read(path).encode())
            else:
                shutil.copyfile(self.incumbent / path, self._folder / path)
        return self._folder

    def candidate(self) -> Candidate:
        """The draft as the gates judge it; its tree is written."""
        changes = tuple(
            Change(path, _mode(before), _mode(text), _bytes(before), _bytes(text))
            for path, text in self.files().items()
            for before in (self._incumbents(path),)
        )
        return Candidate(self.target, self.incumbent, self.tree(), changes, self.diff())

    def _require_editable(self, path: str) -> None:
        if not surface.editable(path, self.target, self.op):
            allowed = surface.describe(self.target, self.op)
            raise Mistake(f"{path!r} cannot be changed; expected one of {allowed}")

    def _text(self, path: str) -> str | None:
        return self._overlay[path] if path in self._overlay else self._incumbents(path)

    def _incumbents(self, path: str) -> str | None:
        file = self.incumbent / path
        if not _PATH.fullmatch(path) or not file.is_file() or file.resolve() != file:
            return None
        return file.read_bytes().decode(errors="replace")


def lines_of(text: str) -> list[str]:
    """The lines of a text as compilers and editors count them, without line ends."""
    return text.removesuffix("\n").split("\n")


def _absent(text: str, old: str) -> str:
    """What to say of a text that is not there: the nearest one that is, with line numbers."""
    wanted = lines_of(old)
    start, share = _nearest(lines_of(text), wanted)
    lines = lines_of(text)[start : start + min(NEAREST_LINES, len(wanted))]
    shown = "\n".join(f"{start + 1 + i:5}\t{line}" for i, line in enumerate(lines))
    differs = "only in white space" if share == 1 else "in its words"
    return f"the old text is not there. The nearest, which differs {differs}, is\n{shown}\nCopy the text exactly, without line numbers."


def _nearest(lines: list[str], wanted: list[str]) -> tuple[int, float]:
    """Where the window of `lines` begins that is most like `wanted`, and how alike they are, 0 to 1, white space apart."""
    stripped = ["".join(line.split()) for line in lines]
    target = ["".join(line.split()) for line in wanted]
    # Comparing the characters of 1,500 lines took more than two minutes of a core, beside a timed trial.
    short = sum(map(len, target)) <= FEW_CHARACTERS

    def compared(these: list[str]) -> Sequence[str]:
        return "\n".join(these) if short else these

    matcher: difflib.SequenceMatcher[str] = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(compared(target))
    best = (0.0, 0)
    starts: Sequence[int] = range(max(1, len(lines) - len(target) + 1))
    if len(target) > FEW_LINES:
        known = Counter(target)

        def shared(start: int) -> int:
            return (Counter(stripped[start : start + len(target)]) & known).total()

        starts = heapq.nlargest(FEW_LINES, starts, key=shared)
    for start in starts:
        matcher.set_seq1(compared(stripped[start : start + len(target)]))
        if matcher.real_quick_ratio() > best[0] and matcher.quick_ratio() > best[0]:
            best = max(best, (matcher.ratio(), start))
    return best[1], best[0]


def _repeated(text: str, places: list[int]) -> str:
    lines = ", ".join(str(_line_of(text, place)) for place in places[:8])
    return f"the old text is there {len(places)} times (lines {lines}); give more of the text around the one place"


def _line_of(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _lines(text: str | None) -> list[str]:
    return (text or "").splitlines(keepends=True)


def _mode(text: str | None) -> str:
    return ABSENT if text is None else PLAIN


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()
