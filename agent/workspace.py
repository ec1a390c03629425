"""Where candidates live: plain files under .lab/runs/<run>/trees/<commit>-<n>/ and a branch lab/<run>; the user's own tree is never touched.

A tree is written from a commit's own bytes and git knows nothing of it, so that no attribute, filter or hook comes between what is
read and what runs. The branch is moved by plumbing, only forwards, and not at all if a person has it checked out or has committed to it.
Several threads may read a tree, so none is rewritten: one that something has changed is left alone, and the commit is written anew
beside it. The ledger says what is kept: `advance` can be repeated, and `clear_leftovers` removes the folders that a killed run left.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agent import integrity
from agent.git import GitError, Repository
from agent.records import Candidate, Proposal
from agent.surface import FOLDERS

TREES = "trees"
DRAFT = "draft"  # a proposer's own files
# Age at which a built object goes: a run builds what it needs before it needs it.
OLD_S = 30 * 24 * 3600


class Busy(RuntimeError):
    """Another loop runs in this checkout; two would spoil each other's timings."""


class Workspace:
    """The folders and the branch of one run."""

    def __init__(self, repository: Repository, lab: Path, run: str) -> None:
        self.repository = repository
        self.folder = lab / "runs" / run
        self.branch = f"lab/{run}"
        self._lock = threading.Lock()
        self._trees: dict[str, list[integrity.Seal]] = {}  # by commit; the last one is in use

    def checkout(self, commit: str) -> Path:
        """A tree that holds exactly the editable files of `commit`, the same for every caller."""
        with self._lock:
            sealed = self._trees.setdefault(commit, [])
            if not sealed or sealed[-1].changed():
                tree = self.folder / TREES / f"{commit[:12]}-{len(sealed)}"
                make_way(tree)
                self.repository.export(commit, tree, FOLDERS)
                sealed.append(integrity.of_tree(tree))
            return sealed[-1].root

    def forget(self, commit: str) -> None:
        """Remove the trees of a commit that nothing reads any more."""
        with self._lock:
            for sealed in self._trees.pop(commit, []):
                remove(sealed.root)

    def commit(self, parent: str, proposal: Proposal) -> str:
        """The proposal as a commit on `parent`; unreferenced until `hold` or `advance`."""
        return self.repository.commit(parent, proposal.files, f"lab: {proposal.hypothesis}\n")

    def candidate(self, target: str, parent: str, commit: str) -> Candidate:
        """The trees of parent and commit, side by side, and what differs between them."""
        return Candidate(
            target=target,
            incumbent=self.checkout(parent),
            tree=self.checkout(commit),
            changes=self.repository.changes(parent, commit),
            patch=self.repository.patch(parent, commit),
        )

    def tree_hash(self, commit: str) -> str:
        """What a trial of this commit depends on: a hash of the editable folders."""
        return self.repository.content_hash(commit, FOLDERS)

    def advance(self, commit: str) -> str:
        """Move the run's branch forward to `commit`; "", or why it stays where it is."""
        tip = self.repository.tip(self.branch)
        if tip == commit:
            return ""
        if tip is not None and not self.repository.is_ancestor(tip, commit):
            why = f"{self.branch} has commits that are not this run's"
        elif self.branch in self.repository.checked_out():
            why = f"{self.branch} is checked out"
        else:
            # Only from where it was just seen: what a person commits in between is not lost.
            ref = f"refs/heads/{self.branch}"
            try:
                self.repository.text("update-ref", ref, commit, tip or "")
            except GitError as error:
                # A lock, a full disk: the ledger has the keep, and the next keep moves the branch.
                why = f"git does not move {self.branch} ({error})"
            else:
                return ""
        return f"{why}: it is left alone; what the run has kept is commit {commit[:12]}, for `git merge {commit[:12]}`"

    def name(self, commit: str) -> str:
        """The name by which a person finds a commit: the run's branch if it stands there, else the hash."""
        return self.branch if self.repository.tip(self.branch) == commit else commit[:12]

    def hold(self, experiment: int, commit: str) -> None:
        """Keep a commit that no branch holds: its trial may come later, or its idea may be taken up again."""
        self.repository.text("update-ref", f"refs/lab/{self.folder.name}/{experiment}", commit)

    def close(self) -> None:
        """Remove the trees; branch and logs stay."""
        for name in (TREES, DRAFT):
            remove(self.folder / name)


@contextmanager
def lock(lab: Path) -> Iterator[None]:
    """Hold the checkout for one loop. Raises Busy; the operating system releases the lock when its holder dies."""
    lab.mkdir(parents=True, exist_ok=True)
    with (lab / "lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise Busy(
                f"a loop is already running in this checkout (process {handle.read().strip() or 'unknown'}); "
                "stop it with Ctrl-C, or use a second clone on another machine"
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def tell_busy(lab: Path, say: Callable[[str], None]) -> None:
    """Say so if a loop runs in this checkout, before something is measured beside it."""
    if held_since(lab) is not None:
        say("a loop is at work in this checkout: its timings and these spoil each other")


def held_since(lab: Path) -> float | None:
    """When the loop that runs in this checkout took its lock, in seconds since 1970; None if none runs."""
    try:
        with (lab / "lock").open("r") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return (lab / "lock").stat().st_mtime
    return None


def clear_leftovers(lab: Path) -> list[Path]:
    """Remove the trees that killed runs left; those that cannot be removed. To be called under `lock`."""
    left = [folder for name in (TREES, DRAFT) for folder in (lab / "runs").glob(f"*/{name}")]
    for folder in left:
        remove(folder)
    return [folder for folder in left if folder.exists()]


def clear_old_builds(lab: Path) -> None:
    """Remove what was built more than OLD_S ago: 10,000 kernels leave 1.3 GB, and hardly one is asked for again. To be called under `lock`."""
    for file in (lab / "cache" / "lab").glob("*"):
        with suppress(OSError):
            if file.stat().st_mtime >= time.time() - OLD_S:
                continue
            if file.is_dir():
                remove(file)  # of a build that was killed
            else:
                file.unlink()


def make_way(tree: Path) -> None:
    """Remove a tree, for another in its place. Raises FileExistsError if something stays, which would pass for a part of the new one."""
    remove(tree)
    if tree.exists():
        raise FileExistsError(f"{tree} cannot be removed: what is in it may be another user's")


def remove(tree: Path) -> None:
    """Remove a tree, even where folders in it are read-only. What cannot be removed (another user's) ends no night; the next run tries again."""
    if tree.is_symlink():
        tree.unlink()
        return
    with suppress(OSError):
        tree.chmod(0o700)  # os.walk passes over what it cannot read
    for folder, names, _ in os.walk(tree):
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            if not path.is_symlink():
                with suppress(OSError):
                    path.chmod(0o700)
    shutil.rmtree(tree, ignore_errors=True)
