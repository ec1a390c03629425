"""The folder in which a coding agent works: plain copies of what it may change and of what it should read, and what it made of them.

    PROMPT.md  program.md  HYPOTHESIS.md (the agent writes it)
    kernels/ csrc/ model/     the incumbent's files
    bench/contracts/          what each op has to compute, for reading

It is a git repository of its own, so that an agent which commits does so here and not in the lab's checkout around it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent import surface
from agent.git import Repository
from agent.workspace import make_way

PROMPT, HYPOTHESIS, PROGRAM = "PROMPT.md", "HYPOTHESIS.md", "program.md"
MAX_BYTES = 1 << 20  # of a file; no source comes near it
MAX_FILES = 5_000  # that are looked at, at most
_PASSING = frozenset({"__pycache__", "node_modules", "build", "dist"})  # what tools leave behind


@dataclass(frozen=True)
class Taken:
    """What an agent left: the files of the surface that differ from the incumbent's, and what else it changed, which is not taken."""

    files: Mapping[str, str | None]
    outside: tuple[str, ...]


class Desk:
    """The folder `folder`, made anew from the incumbent's tree with `overlay` laid over it."""

    def __init__(
        self,
        folder: Path,
        *,
        incumbent: Path,
        overlay: Mapping[str, str | None],
        documents: Mapping[str, str],
        target: str,
        op: str | None,
    ) -> None:
        """`documents`: further files by path, for reading."""
        self.folder, self._target, self._op = folder, target, op
        self._incumbent = {f"{d}/{p}": t for d in surface.FOLDERS for p, t in _texts(incumbent / d)}
        placed: dict[str, str | None] = {**documents, **self._incumbent, **overlay}
        self._start = {path: text for path, text in placed.items() if text is not None}
        make_way(folder)
        for path, text in self._start.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(text.encode())
        repository = Repository(folder)
        repository.text("init", "-q", "--template=", "-b", "desk")
        repository.text("add", "-A")
        repository.text("commit", "-q", "-m", "as the incumbent has it")

    @property
    def prompt(self) -> Path:
        return self.folder / PROMPT

    def ask(self, prompt: str) -> None:
        """Put the prompt in its place, whatever the agent has put there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prompt.unlink(missing_ok=True)
        self.prompt.write_bytes(prompt.encode())

    def taken(self) -> Taken:
        """What differs now. Links, files that are no UTF-8 text or larger than MAX_BYTES, and files outside the surface are not taken."""
        found, odd = self._look()
        known = self._start.keys() | self._incumbent.keys()
        unseen = (path for path in known if path not in found and path not in odd)
        # Behind the first MAX_FILES a file is not looked at, and is not gone for that.
        found |= dict.fromkeys(path for path in unseen if not (self.folder / path).is_file())
        files, outside = {}, set(odd)
        for path, text in found.items():
            if surface.editable(path, self._target, self._op):
                if text != self._incumbent.get(path):
                    files[path] = text
            elif text != self._start.get(path) and path not in (PROMPT, HYPOTHESIS):
                outside.add(path)
        return Taken(files, tuple(sorted(outside)))

    def hypothesis(self) -> str:
        """The text of HYPOTHESIS.md; empty if the agent wrote none."""
        file = self.folder / HYPOTHESIS
        if file.is_symlink() or not file.is_file():
            return ""
        try:
            with file.open("rb") as content:
                return content.read(MAX_BYTES).decode(errors="replace").strip()
        except OSError:  # root's, from a container
            return ""

    def _look(self) -> tuple[dict[str, str | None], set[str]]:
        """The texts in the folder, and the paths of what is no plain text of a sane size."""
        texts: dict[str, str | None] = {}
        odd = set()
        for count, file in enumerate(_files(self.folder)):
            path = str(file.relative_to(self.folder))
            text = None if count >= MAX_FILES else _text(file)
            if text is None:
                odd.add(path)
            else:
                texts[path] = text
            if count >= MAX_FILES:
                break
        return texts, odd


def _files(folder: Path) -> Iterator[Path]:
    """Files and links in a folder and below, without hidden ones and what tools leave behind.

    Sorted, but the folders of the surface come first: they are what has to be looked at.
    """
    for top, folders, names in os.walk(folder):
        links = [name for name in folders if Path(top, name).is_symlink()]
        kept = set(folders) - set(links) - _PASSING
        folders[:] = sorted(kept, key=lambda name: (name not in surface.FOLDERS, name))
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(top, name) for name in sorted([*names, *links]) if name[0] != ".")


def _text(file: Path) -> str | None:
    try:
        if file.is_symlink() or not file.is_file() or file.stat().st_size > MAX_BYTES:
            return None
        return file.read_bytes().decode()  # its line ends stay
    except (OSError, UnicodeDecodeError):  # OSError: root's, from a container; or gone meanwhile
        return None


def _texts(folder: Path) -> Iterator[tuple[str, str]]:
    for file in _files(folder):
        text = _text(file)
        if text is not None:
            yield str(file.relative_to(folder)), text
