"""Proposes a recorded night again, without a model: for tests and demonstrations, and to put old ideas before a judge that has changed.

A recording is JSON lines, one proposal a line, in the order in which they come:

    {"hypothesis": "four rows", "files": {"csrc/scale.cpp": "the whole text", "csrc/old.cpp": null}, "proposer": "anthropic", "model": "..."}
    {"hypothesis": "four rows", "edits": [{"path": "csrc/scale.cpp", "old": "kRows = 1", "new": "kRows = 4"}],
     "repairs": [{"edits": [...]}]}
    {"hypothesis": "no idea", "gave_up": "the model declined"}

The `old` of an edit occurs exactly once in the incumbent's file, that of a repair in the proposal's. `python -m agent export --recording`
writes a run in this form. The ledger shows which lines were proposed, so that a resumed run goes on after them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.lab import Unusable
from agent.proposers import Context, NoProposal, Workshop
from agent.records import LOST, GateResult, Past, Proposal

NAME = "replay"
_KEYS = frozenset(
    {"hypothesis", "expected", "files", "edits", "proposer", "model", "gave_up", "repairs"}
)
_REPAIR = frozenset({"hypothesis", "files", "edits"})


class RecordingError(ValueError):
    """The file is no recording; the message names the line and what was expected there."""


@dataclass(frozen=True)
class Edit:
    path: str
    old: str
    new: str


@dataclass(frozen=True)
class Line:
    """One recorded proposal, or the repair of one. `gave_up`: why nothing came of it; empty if something did."""

    number: int  # from 1
    hypothesis: str
    files: Mapping[str, str | None]
    edits: tuple[Edit, ...]
    expected: str = ""
    source: str = ""  # who proposed it when it was recorded
    model: str = ""
    gave_up: str = ""
    repairs: tuple[Line, ...] = ()


def read(file: Path) -> tuple[Line, ...]:
    """The lines of a recording. Raises RecordingError, and OSError if there is no such file."""
    rows = [row for row in enumerate(file.read_text().splitlines(), 1) if row[1].strip()]
    if not rows:
        raise RecordingError(f"{file}: empty; expected one JSON object a line")
    lines = []
    for number, text in rows:
        try:
            lines.append(_line(number, json.loads(text), _KEYS, f"line {number}"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            said = f"{type(error).__name__}: {error}"
            raise RecordingError(f"{file}, line {number}: no proposal ({said})") from None
    return tuple(lines)


def _line(number: int, row: Mapping[str, Any], known: frozenset[str], name: str) -> Line:
    """One line. `name` is the hypothesis of a row that has none."""
    if unknown := sorted(set(row) - known):
        raise ValueError(f"unknown {', '.join(unknown)}; expected {', '.join(sorted(known))}")
    files, gave_up = row.get("files", {}), row.get("gave_up", "")
    if any(not isinstance(text, str | None) for text in files.values()):
        raise ValueError("files: expected the whole text of each, or null")
    edits = tuple(Edit(**edit) for edit in row.get("edits", ()))
    if not (files or edits or gave_up):
        raise ValueError("expected files, edits or gave_up")
    return Line(
        number=number, hypothesis=row.get("hypothesis", "") or name, files=files, edits=edits, expected=row.get("expected", ""),
        source=row.get("proposer", ""), model=row.get("model", ""), gave_up=gave_up,
        repairs=tuple(_line(number, repair, _REPAIR, "") for repair in row.get("repairs", ())),
    )  # fmt: skip


class Replay:
    """Proposes the lines of a recording, at no cost."""

    name = NAME
    ahead = False  # so that every edit is made on the incumbent that it was recorded on

    def __init__(self, lines: Sequence[Line], recording: str) -> None:
        """`recording`: a name for these very lines, by which they are known again in the ledger."""
        self._lines, self._recording = tuple(lines), recording
        self._given: set[int] = set()
        self._incumbent = Path()

    def propose(self, context: Context) -> Proposal | None:
        self._incumbent = context.incumbent
        held = self._given | self._held(context)
        line = next((line for line in self._lines if line.number not in held), None)
        if line is None:
            return None
        self._given.add(line.number)
        # The model is only a note: a replay says nothing about what it would propose, or cost, tonight.
        recorded = {"proposer": line.source, "model": line.model}
        notes = {"recording": self._recording, "line": line.number, "recorded": recorded}
        if line.gave_up:
            raise NoProposal(line.gave_up, hypothesis=line.hypothesis, notes=notes)
        try:
            files = self._files(line, {})
        except ValueError as error:
            raise NoProposal(str(error), hypothesis=line.hypothesis, notes=notes) from None
        return Proposal(
            line.hypothesis, files, NAME, notes=notes | {"repairs": 0}, expected=line.expected
        )  # fmt: skip

    def repair(self, proposal: Proposal, refusal: GateResult) -> Proposal | None:
        (line,) = (line for line in self._lines if line.number == proposal.notes["line"])
        done = proposal.notes["repairs"]
        if done == len(line.repairs):
            return None
        repair = line.repairs[done]
        try:
            files = {**proposal.files, **self._files(repair, proposal.files)}
        except ValueError:
            return None
        return replace(
            proposal,
            hypothesis=repair.hypothesis or proposal.hypothesis,
            files=files,
            notes={**proposal.notes, "repairs": done + 1},
        )

    def _held(self, context: Context) -> set[int]:
        """Numbers of the lines that the ledger holds."""
        mine = (past for past in context.history if self._is_mine(past, context.run))
        return {int(past.notes["line"]) for past in mine}

    def _is_mine(self, past: Past, run: str) -> bool:
        """A row of this run and of this recording; one that was lost in flight is proposed again."""
        same = past.notes.get("recording") == self._recording
        return past.run == run and past.proposer == NAME and same and past.outcome.status != LOST

    def _files(self, line: Line, drafted: Mapping[str, str | None]) -> dict[str, str | None]:
        """The files of a line: its whole texts, and its edits, applied to what was drafted or else to the incumbent's files.

        Raises ValueError for an edit that does not apply.
        """
        files = dict(line.files)
        for edit in line.edits:
            text = files.get(edit.path, drafted.get(edit.path))
            if text is None:
                text = self._text(edit.path)
            if (places := text.count(edit.old)) != 1:
                raise ValueError(
                    f"line {line.number} of the recording: {edit.old!r} stands in {places} places of {edit.path}, expected one"
                )
            files[edit.path] = text.replace(edit.old, edit.new)
        return files

    def _text(self, path: str) -> str:
        file = self._incumbent / path
        return file.read_text() if file.is_file() else ""


def create(workshop: Workshop) -> Replay:
    """Raises Unusable if --recording is missing or names no recording."""
    if workshop.settings.recording is None:
        raise Unusable(
            "--proposer replay: expected --recording FILE (python -m agent export --recording writes one)"
        )
    file = Path(workshop.settings.recording)
    try:
        lines = read(file)
    except (OSError, UnicodeDecodeError, RecordingError) as error:
        raise Unusable(f"--recording {file}: {error}") from None
    return Replay(lines, hashlib.sha256(file.read_bytes()).hexdigest()[:16])
