"""Git's plumbing, as the lab uses it: commits are written without a checkout, an index or a hook of the user's.

Every call runs with hooks, system configuration and file monitors off: a tree under test brings none of them. Nothing here
touches the user's working tree, index or HEAD.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.records import ABSENT, PLAIN, Change

_OFF = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.ignoreStat=false",
    "core.sparseCheckout=false",
    "core.symlinks=true",
    "core.autocrlf=false",
    "core.safecrlf=false",
    "core.attributesFile=/dev/null",
    "core.protectHFS=true",
    "core.protectNTFS=true",
    "submodule.recurse=false",
    "commit.gpgSign=false",
    "core.quotePath=false",
    # with loose objects: the ledger, which is synced, must not name a commit that a power cut has emptied
    "core.fsync=committed",
)
_PLAIN = (PLAIN, "100755")
_WHO = ("AUTHOR", "COMMITTER")
MAX_PATH = 255  # bytes: as long as a name alone may be on most file systems


class GitError(RuntimeError):
    """Git refused; the message is its own."""


class Repository:
    """The checkout at `root`, read and extended through plumbing."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        self._env |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1", "LC_ALL": "C"}
        self._env |= {"GIT_OPTIONAL_LOCKS": "0"}  # `git status` would refresh the user's index
        # `git replace` shows one object in another's place: content and hash would not agree.
        self._env |= {"GIT_NO_REPLACE_OBJECTS": "1"}
        for role in _WHO:
            self._env |= {f"GIT_{role}_NAME": "lab", f"GIT_{role}_EMAIL": "lab@localhost"}

    def raw(self, *args: str, stdin: bytes | None = None, index: Path | None = None) -> bytes:
        """Output of `git args`. Raises GitError."""
        options = [
            part for setting in (*_OFF, f"safe.directory={self.root}") for part in ("-c", setting)
        ]
        env = self._env | ({"GIT_INDEX_FILE": str(index)} if index else {})
        try:
            # In a session of its own: Ctrl-C in a terminal is meant for the lab, and would end a commit half-way.
            done = subprocess.run(
                ["git", *options, *args], cwd=self.root, env=env, input=stdin, capture_output=True, start_new_session=True
            )  # fmt: skip
        except FileNotFoundError:
            raise GitError("git is not on the PATH: install it") from None
        except OSError as error:
            raise GitError(f"git cannot be started: {error}") from None
        if done.returncode:
            raise GitError(f"git {args[0]}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def text(self, *args: str, stdin: bytes | None = None, index: Path | None = None) -> str:
        return self.raw(*args, stdin=stdin, index=index).decode(errors="replace").strip()

    def resolve(self, ref: str) -> str:
        """The commit that `ref` names. Raises GitError."""
        try:
            return self.text("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
        except GitError:
            raise GitError(
                f"{ref!r} names no commit in {self.root}; expected a branch, tag or hash"
            ) from None

    def tip(self, branch: str) -> str | None:
        """The commit that a branch stands at; None if there is no such branch."""
        try:
            return self.resolve(f"refs/heads/{branch}")
        except GitError:
            return None

    def is_ancestor(self, commit: str, of: str) -> bool:
        """Whether `of` has `commit` in its history."""
        try:
            return self.text("merge-base", commit, of) == commit
        except GitError:  # they share no history
            return False

    def checked_out(self) -> set[str]:
        """The branches that this or another working tree of the repository stands on."""
        listed = self.text("worktree", "list", "--porcelain").splitlines()
        found = {
            line.removeprefix("branch refs/heads/") for line in listed if line.startswith("branch ")
        }
        # nobody stands on a branch that is being rebased, here or in another working tree
        common = self.root / self.text("rev-parse", "--git-common-dir")
        for place in ("rebase-*", "worktrees/*/rebase-*"):
            for head in common.glob(f"{place}/head-name"):
                found.add(head.read_text().strip().removeprefix("refs/heads/"))
        return found

    def merge_base(self, ref: str) -> str:
        """Where HEAD left `ref`; `ref` itself if they share no history."""
        commit = self.resolve(ref)
        try:
            return self.text("merge-base", commit, "HEAD")
        except GitError:
            if self.text("rev-parse", "--is-shallow-repository") != "true":
                return commit
        # What a shallow clone has cut off still stands in the commit, as in a request merged by CI.
        if f"parent {commit}" in self.text("cat-file", "commit", "HEAD").splitlines():
            return commit
        raise GitError(
            f"where HEAD left {ref} is not in this shallow clone: git fetch --unshallow "
            "(actions/checkout: fetch-depth: 0)"
        )

    def dirty(self, folders: Sequence[str]) -> list[str]:
        """Paths under `folders` that differ from HEAD, untracked ones included."""
        lines = self.raw("status", "--porcelain", "-z", "-uall", "--no-renames", "--", *folders)
        return sorted(entry[3:].decode(errors="replace") for entry in lines.split(b"\0") if entry)

    def read(self, commit: str, path: str) -> str:
        """The text of a file of a commit. Raises GitError if it is not there."""
        return self.raw("show", f"{commit}:{path}").decode()

    def files(self, commit: str, folders: Sequence[str]) -> list[str]:
        listed = self.raw("ls-tree", "-r", "-z", "--name-only", commit, "--", *folders)
        return [path.decode(errors="replace") for path in listed.split(b"\0") if path]

    def content_hash(self, commit: str, folders: Sequence[str]) -> str:
        """A hash of what the folders hold in a commit: paths, modes and contents."""
        listed = self.raw("ls-tree", "-r", "-z", commit, "--", *folders)
        return hashlib.sha256(listed).hexdigest()[:16]

    def commit(self, parent: str, files: Mapping[str, str | None], message: str) -> str:
        """A commit on `parent` in which `files` have these texts (None: deleted); nothing points to it yet."""
        with tempfile.TemporaryDirectory() as scratch:
            index = Path(scratch) / "index"
            self.text("read-tree", parent, index=index)
            for path, text in files.items():
                if len(path.encode()) > MAX_PATH:
                    raise GitError(
                        f"{path[:60]!r}... is a path of {len(path.encode()):,} bytes: expected at most {MAX_PATH}"
                    )
                if text is None:
                    self.text("update-index", "--force-remove", "--", path, index=index)
                    continue
                blob = self.text("hash-object", "-w", "--stdin", stdin=text.encode())
                entry = f"{self._mode(parent, path)},{blob},{path}"
                self.text("update-index", "--add", "--cacheinfo", entry, index=index)
            return self._commit(index, parent, message)

    def snapshot(self, folders: Sequence[str]) -> str:
        """A commit on HEAD with `folders` as they are in the working tree (ignored files left out)."""
        with tempfile.TemporaryDirectory() as scratch:
            index = Path(scratch) / "index"
            # A fresh index: a copy of the user's may carry assume-unchanged bits that hide a change.
            self.text("read-tree", "HEAD", index=index)
            present = [f for f in folders if (self.root / f).exists() or self.files("HEAD", [f])]
            if present:
                self.text("add", "-A", "--", *present, index=index)
            return self._commit(index, self.resolve("HEAD"), "lab: the working tree as it is")

    def _commit(self, index: Path, parent: str, message: str) -> str:
        tree = self.text("write-tree", index=index)
        return self.text("commit-tree", tree, "-p", parent, "-F", "-", stdin=message.encode())

    def _mode(self, commit: str, path: str) -> str:
        listed = self.text("ls-tree", commit, "--", path)
        return listed.split()[0] if listed else PLAIN

    def export(self, commit: str, folder: Path, only: Sequence[str]) -> None:
        """Write the files of a commit under `only` into `folder`, byte for byte: no attribute, filter or hook has a say.

        Links, submodules and executable bits are left out. Raises GitError for a path that leads out of the folder, or that a file
        system without upper and lower case takes for another.
        """
        listed = self.raw("ls-tree", "-r", "-z", commit, "--", *only).decode(errors="replace")
        entries = [entry.split("\t", 1) for entry in listed.split("\0") if entry]
        plain = [(head.split()[2], path) for head, path in entries if head.split()[0] in _PLAIN]
        blobs = self.raw("cat-file", "--batch", stdin="".join(f"{b}\n" for b, _ in plain).encode())
        folder.mkdir(parents=True, exist_ok=True)
        at = 0
        for _, path in plain:
            start = blobs.index(b"\n", at) + 1
            size = int(blobs[at:start].split()[2])
            _write(folder, path, blobs[start : start + size])
            at = start + size + 1

    def patch(self, before: str, after: str, only: Sequence[str] = ()) -> str:
        """The difference of two commits, in the folders `only` or in all, as text that `git apply` takes."""
        plain = ("--no-renames", "--no-ext-diff", "--no-textconv")
        raw = self.raw("diff-tree", "-r", "-p", *plain, before, after, "--", *only)
        return raw.decode(errors="replace")

    def changes(self, before: str, after: str) -> tuple[Change, ...]:
        """What differs between two commits, path by path."""
        raw = self.raw("diff-tree", "-r", "-z", "--raw", "--no-renames", before, after)
        fields = raw.split(b"\0")[:-1]
        found = []
        for head, path in zip(fields[::2], fields[1::2], strict=True):
            mode_before, mode_after, blob_before, blob_after, _ = head.decode().lstrip(":").split()
            found.append(
                Change(
                    path.decode(errors="replace"),
                    mode_before,
                    mode_after,
                    self._content(mode_before, blob_before),
                    self._content(mode_after, blob_after),
                )
            )
        return tuple(found)

    def _content(self, mode: str, blob: str) -> bytes | None:
        if mode == ABSENT:
            return None
        # A submodule has no content here.
        return b"" if mode == "160000" else self.raw("cat-file", "blob", blob)


def _write(folder: Path, path: str, content: bytes) -> None:
    parts = path.split("/")
    if any(part.casefold() in ("", ".", "..", ".git") for part in parts):
        raise GitError(f"{path!r} leads out of its tree: name paths of the surface")
    file = folder.joinpath(*parts)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file.open("xb") as handle:
            handle.write(content)
    except FileExistsError:
        raise GitError(
            f"{path!r} exists already, perhaps in other upper and lower case: rename one of the two"
        ) from None
