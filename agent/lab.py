"""The checkout as a laboratory: where its data and ledger lie, and what a command needs before it can start."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from agent import surface
from agent.git import GitError, Repository
from agent.ledger import Ledger
from agent.screen import Screen

if TYPE_CHECKING:
    from bench.data import Dataset

ROOT = Path(__file__).resolve().parent.parent


class Unusable(RuntimeError):
    """The command cannot do its work as asked; the message says what would help."""


class Lab:
    """The checkout at `root`; what the lab writes lies under `.lab/`, which git ignores."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.folder = root / ".lab"
        self.data = self.folder / "data"

    def ledger(self) -> Ledger:
        return Ledger(self.folder / "ledger.sqlite")

    def repository(self) -> Repository:
        repository = Repository(self.root)
        try:
            top = Path(repository.text("rev-parse", "--show-toplevel"))
            if top != self.root.resolve():
                raise Unusable(
                    f"{self.root} lies inside another repository, {top}; clone the lab on its own"
                )
            repository.resolve("HEAD")
        except GitError as error:
            raise Unusable(
                f"{self.root} has no commit to start from ({error}): make one with git init, git add and git commit"
            ) from None
        return repository

    def agenda(self) -> str:
        file = self.root / "program.md"
        try:
            return file.read_text("utf-8") if file.is_file() else ""
        except UnicodeDecodeError as error:
            raise Unusable(f"{file} is no UTF-8 text ({error}): save it as UTF-8") from None

    def prepare(self, source: str | None, vocab_size: int, screen: Screen) -> Dataset:
        """Prepare the data from a source, or verify it, and remember it as the default."""
        from bench import data

        screen.stage(f"preparing {source or 'the embedded corpus'}")

        def tell(label: str, fraction: float) -> None:
            screen.progress({"phase": label, "fraction": fraction})

        dataset = data.prepare(source, vocab_size=vocab_size, root=self.data, progress=tell)
        (self.data / "default").write_text(dataset.directory.name)
        return dataset

    def dataset(self, source: str | None, screen: Screen) -> Dataset:
        """The data of a folder that `prepare` made, or prepared now from a source of text; without a source, what was prepared last."""
        from bench import data

        remembered = self.data / "default"
        if source is None and remembered.is_file():
            screen.stage("verifying the data")
            return data.open_dataset(self.data / remembered.read_text().strip())
        if source is not None:
            folder = Path(source).resolve()  # a run may go on from another folder
            # What is gone from ours is no text to prepare: it is missed, with what brings it back.
            if (folder / "manifest.json").is_file() or folder.parent == self.data.resolve():
                return data.open_dataset(folder)
        return self.prepare(source, 8192, screen)

    def copy_tree(self, into: Path) -> Path:
        """Copy the sources in the editable folders of the working tree, as they are."""
        for path in surface.files(self.root):
            if Path(path).suffix in surface.PLACES:
                (into / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.root / path, into / path)
        return into


def device(asked: str) -> str:
    """`cpu` or `cuda`; `auto` is cuda where there is a GPU. Raises Unusable for cuda without one."""
    if asked == "cpu":
        return "cpu"
    import torch

    present = torch.cuda.is_available()
    if asked == "cuda" and not present:
        raise Unusable(
            "--device cuda: torch sees no GPU here; use --device cpu (a run keeps its device: begin a new one), or install a CUDA build of torch"
        )
    return "cuda" if present else "cpu"


def overlay(folder: Path) -> dict[str, str | None]:
    """The texts of a folder's files, by the path that they get in the tree: .py in kernels/, .cpp, .cu and .h in csrc/."""
    if not folder.is_dir():
        raise Unusable(
            f"--start {folder}: {'expected a folder, got a file' if folder.exists() else 'no such folder'}"
        )
    files: dict[str, str | None] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix in surface.PLACES and file.is_file():
            try:
                files[f"{surface.PLACES[file.suffix]}/{file.name}"] = file.read_text("utf-8")
            except UnicodeDecodeError as error:
                raise Unusable(
                    f"--start {folder}: {file.name} is no UTF-8 text ({error})"
                ) from None
    if frozen := sorted(set(files) & set(surface.FROZEN)):
        raise Unusable(
            f"--start {folder}: {', '.join(frozen)} may not be replaced: leave the file out"
        )
    if not files:
        raise Unusable(f"--start {folder}: no .py, .cpp, .cu or .h file there")
    return files
