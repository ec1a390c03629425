"""Worktrees and commits: the user's working tree, index and HEAD stay as they are, whatever the lab does or however it dies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lab_tree import CPP, PY, git, make, write

from agent.git import GitError, Repository
from agent.records import Proposal
from agent.surface import FOLDERS
from agent.workspace import (
    OLD_S,
    Busy,
    Workspace,
    clear_leftovers,
    clear_old_builds,
    held_since,
    lock,
    make_way,
    remove,
)

BETTER = CPP.replace("kRows = 1", "kRows = 4")
NOBODY = 65534


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make(tmp_path / "checkout")


@pytest.fixture
def workspace(root: Path) -> Workspace:
    return Workspace(Repository(root), root / ".lab", "r1")


def state(root: Path) -> tuple[str, str, str]:
    return (
        git(root, "rev-parse", "HEAD"),
        git(root, "status", "--porcelain"),
        git(root, "diff", "--cached"),
    )


def proposal(**files: str | None) -> Proposal:
    return Proposal(
        "more rows",
        {name.replace("__", "/") + ".cpp": text for name, text in files.items()},
        "test",
    )


def test_a_candidate_lies_beside_its_incumbent_and_the_user_s_tree_stays(
    root: Path, workspace: Workspace
) -> None:
    write(root, {"kernels/scale.py": "mine, half done", "notes.txt": "mine"})
    git(root, "add", "kernels/scale.py")
    before = state(root)
    parent = workspace.repository.resolve("HEAD")
    commit = workspace.commit(parent, proposal(csrc__scale=BETTER))
    candidate = workspace.candidate("kernels", parent, commit)
    assert (candidate.tree / "csrc/scale.cpp").read_text() == BETTER
    assert (candidate.incumbent / "csrc/scale.cpp").read_text() == CPP
    assert candidate.paths == ("csrc/scale.cpp",)
    assert "+constexpr int kRows = 4;" in candidate.patch
    workspace.advance(commit)
    assert git(root, "rev-parse", "lab/r1") == commit
    workspace.close()
    assert not (root / ".lab/runs/r1/trees").exists()
    assert state(root) == before
    assert (root / "kernels/scale.py").read_text() == "mine, half done"


def test_the_patch_in_the_ledger_makes_the_candidate_again(root: Path, tmp_path: Path) -> None:
    repository = Repository(root)
    head = repository.resolve("HEAD")
    commit = repository.commit(
        head, {"csrc/scale.cpp": BETTER, "kernels/new.py": "é\n", "model/optim.py": None}, "m"
    )
    (tmp_path / "p.patch").write_text(repository.patch(head, commit))
    git(root, "apply", "--index", str(tmp_path / "p.patch"))
    assert git(root, "write-tree") == git(root, "rev-parse", f"{commit}^{{tree}}")


def test_a_tree_that_was_littered_is_written_anew_and_the_old_one_left_to_its_readers(
    workspace: Workspace,
) -> None:
    head = workspace.repository.resolve("HEAD")
    tree = workspace.checkout(head)
    assert workspace.checkout(head) == tree
    write(tree, {"kernels/left.py": "x", "csrc/scale.cpp": "changed"})
    again = workspace.checkout(head)
    assert again != tree
    assert (again / "csrc/scale.cpp").read_text() == CPP
    assert not (again / "kernels/left.py").exists()
    assert tree.exists()
    workspace.forget(head)
    assert not tree.exists()
    assert not again.exists()


def test_no_hook_of_the_user_s_runs(root: Path, workspace: Workspace) -> None:
    (root / "my hooks").mkdir()
    for name in ("post-checkout", "pre-commit", "reference-transaction", "post-index-change"):
        hook = root / "my hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch '{root}/hooked'\n")
        hook.chmod(0o755)
    git(root, "config", "core.hooksPath", "my hooks")
    git(root, "config", "core.fsmonitor", f"touch '{root}/hooked'; false")
    repository = workspace.repository
    head = repository.resolve("HEAD")
    commit = workspace.commit(head, proposal(csrc__scale=BETTER))
    workspace.advance(commit)
    workspace.candidate("kernels", head, commit)
    repository.snapshot(FOLDERS)
    assert repository.dirty(FOLDERS) == []
    assert not (root / "hooked").exists()
    # they do run where git is called as a person calls it
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    subprocess.run(["git", "update-ref", "refs/heads/x", "HEAD"], cwd=root, check=True, env=own)
    assert (root / "hooked").exists()


def test_a_snapshot_holds_the_working_tree_and_leaves_the_index(root: Path) -> None:
    write(root, {"csrc/scale.cpp": BETTER, "kernels/other.py": "y\n", "README.md": "not asked for"})
    (root / "model/optim.py").unlink()
    before = state(root)
    repository = Repository(root)
    changes = repository.changes("HEAD", repository.snapshot([*FOLDERS, "absent"]))
    assert {c.path: (c.added, c.deleted) for c in changes} == {
        "csrc/scale.cpp": (False, False),
        "kernels/other.py": (True, False),
        "model/optim.py": (False, True),
    }
    assert state(root) == before


def test_a_snapshot_sees_what_assume_unchanged_hides(root: Path) -> None:
    git(root, "update-index", "--assume-unchanged", "csrc/scale.cpp")
    write(root, {"csrc/scale.cpp": BETTER})
    repository = Repository(root)
    assert [c.path for c in repository.changes("HEAD", repository.snapshot(FOLDERS))] == [
        "csrc/scale.cpp"
    ]


def test_an_export_cannot_be_thinned_by_attributes(root: Path, tmp_path: Path) -> None:
    write(root, {".gitattributes": "csrc/* export-ignore\n"})
    git(root, "add", "-A"), git(root, "commit", "-qm", "attributes")
    Repository(root).export("HEAD", tmp_path / "out", FOLDERS)
    assert (tmp_path / "out/csrc/scale.cpp").read_text() == CPP
    assert not (tmp_path / "out/bench").exists()


def test_no_attribute_and_no_filter_comes_between_a_commit_and_what_runs(
    root: Path, workspace: Workspace
) -> None:
    git(root, "config", "filter.swap.smudge", f"touch {root}/filtered; sed s/1/9/")
    git(root, "config", "filter.swap.clean", f"touch {root}/filtered; sed s/9/1/")
    git(root, "config", "core.autocrlf", "true")
    attributes = "*.cpp filter=swap eol=crlf ident\n*.py working-tree-encoding=UTF-16\n"
    head = workspace.repository.resolve("HEAD")
    files = {
        ".gitattributes": attributes,
        "csrc/.gitattributes": attributes,
        "csrc/scale.cpp": BETTER,
    }
    commit = workspace.commit(head, Proposal("attributes", files, "test"))
    candidate = workspace.candidate("all", head, commit)
    assert (candidate.tree / "csrc/scale.cpp").read_bytes() == BETTER.encode()
    assert (candidate.tree / "kernels/scale.py").read_text() == PY
    assert not (root / "filtered").exists()


@pytest.mark.parametrize(
    "path",
    ["../out.py", "/tmp/out.py", ".git/hooks/pre-commit", ".GIT/config", "csrc/../../out.h", "csrc//a.h", ""],
)  # fmt: skip
def test_a_path_that_leads_out_of_the_tree_is_refused(workspace: Workspace, path: str) -> None:
    head = workspace.repository.resolve("HEAD")
    with pytest.raises(GitError):
        workspace.commit(head, Proposal("out", {path: "x"}, "test"))


def test_a_handmade_tree_cannot_write_outside_of_its_folder(root: Path, tmp_path: Path) -> None:
    repository = Repository(root)
    blob = repository.text("hash-object", "-w", "--stdin", stdin=b"x")
    inner = b"100644 .git\0" + bytes.fromhex(blob)
    tree = repository.text("hash-object", "-w", "-t", "tree", "--literally", "--stdin", stdin=inner)
    outer = b"40000 csrc\0" + bytes.fromhex(tree)
    top = repository.text("hash-object", "-w", "-t", "tree", "--literally", "--stdin", stdin=outer)
    commit = repository.text("commit-tree", top, stdin=b"handmade")
    with pytest.raises(GitError, match="leads out of its tree"):
        repository.export(commit, tmp_path / "out", FOLDERS)


def test_links_and_submodules_are_left_out_of_a_tree(root: Path, tmp_path: Path) -> None:
    os.symlink("/etc/passwd", root / "csrc/secret.h")
    git(root, "add", "-A")
    git(
        root,
        "update-index",
        "--add",
        "--cacheinfo",
        f"160000,{git(root, 'rev-parse', 'HEAD')},csrc/third",
    )
    git(root, "commit", "-qm", "links")
    Repository(root).export("HEAD", tmp_path / "out", FOLDERS)
    assert sorted(p.name for p in (tmp_path / "out/csrc").iterdir()) == ["scale.cpp"]


def test_two_paths_that_a_file_system_takes_for_one_are_refused(root: Path, tmp_path: Path) -> None:
    # As SCALE.cpp would be there already where upper and lower case are one.
    write(tmp_path / "out", {"csrc/scale.cpp": "int x;\n"})
    with pytest.raises(GitError, match="upper and lower case"):
        Repository(root).export("HEAD", tmp_path / "out", FOLDERS)


def test_no_replaced_object_stands_for_another(root: Path, tmp_path: Path) -> None:
    repository = Repository(root)
    other = repository.text("hash-object", "-w", "--stdin", stdin=BETTER.encode())
    git(root, "replace", git(root, "rev-parse", "HEAD:csrc/scale.cpp"), other)
    repository.export("HEAD", tmp_path / "out", FOLDERS)
    assert (tmp_path / "out/csrc/scale.cpp").read_text() == CPP


def test_what_git_ignores_is_not_in_a_tree(root: Path, tmp_path: Path) -> None:
    write(root, {".gitignore": ".lab/\ncsrc/hidden.h\n", "csrc/hidden.h": "#define FAST\n"})
    repository = Repository(root)
    Repository(root).export(repository.snapshot(FOLDERS), tmp_path / "out", FOLDERS)
    assert not (tmp_path / "out/csrc/hidden.h").exists()


def test_a_tree_holds_no_executable_and_nothing_of_git(workspace: Workspace) -> None:
    tree = workspace.checkout(workspace.repository.resolve("HEAD"))
    assert sorted(p.name for p in tree.iterdir()) == ["csrc", "kernels", "model"]
    assert not any(p.stat().st_mode & 0o111 for p in tree.rglob("*.*"))


def test_git_variables_of_a_calling_hook_do_not_lead_astray(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    assert Repository(root).dirty(FOLDERS) == []


def test_an_unknown_ref_is_named(root: Path) -> None:
    with pytest.raises(GitError, match="'origin/main' names no commit"):
        Repository(root).resolve("origin/main")


def test_equal_content_has_an_equal_hash_whatever_the_history(root: Path) -> None:
    repository = Repository(root)
    head = repository.resolve("HEAD")
    there = repository.commit(head, {"csrc/scale.cpp": BETTER}, "there")
    back = repository.commit(there, {"csrc/scale.cpp": CPP}, "and back")
    assert repository.content_hash(head, FOLDERS) == repository.content_hash(back, FOLDERS)
    assert repository.content_hash(head, FOLDERS) != repository.content_hash(there, FOLDERS)


HOLDER = """
import sys, time
from pathlib import Path
from agent.git import Repository
from agent.workspace import Workspace, lock
root = Path(sys.argv[1])
with lock(root / ".lab"):
    workspace = Workspace(Repository(root), root / ".lab", "dead")
    workspace.checkout("HEAD")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_one_loop_a_checkout_and_a_killed_one_leaves_nothing_for_long(root: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    assert held_since(root / ".lab") is not None
    with pytest.raises(Busy, match=f"process {holder.pid}"), lock(root / ".lab"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert held_since(root / ".lab") is None
    with lock(root / ".lab"):
        assert clear_leftovers(root / ".lab") == []
    assert not (root / ".lab/runs/dead/trees").exists()


def test_what_was_built_long_ago_is_removed_and_the_rest_stays(root: Path) -> None:
    cache = root / ".lab" / "cache" / "lab"
    cache.mkdir(parents=True)
    (cache / "killed.scratch").mkdir()
    (cache / "killed.scratch" / "a.o").touch()
    for name, age_s in (("old.so", OLD_S + 60), ("old.lock", OLD_S + 60), ("new.so", 60), ("killed.scratch", OLD_S + 60)):  # fmt: skip
        if name != "killed.scratch":
            (cache / name).touch()
        os.utime(cache / name, (time.time() - age_s,) * 2)
    clear_old_builds(root / ".lab")
    assert [file.name for file in cache.iterdir()] == ["new.so"]


def test_the_branch_goes_forwards_alone_and_never_under_a_person(
    root: Path, workspace: Workspace
) -> None:
    repository = workspace.repository
    head = repository.resolve("HEAD")
    first = workspace.commit(head, proposal(csrc__scale=BETTER))
    second = workspace.commit(first, proposal(csrc__scale=BETTER + "int x;\n"))
    assert workspace.advance(first) == ""
    git(root, "worktree", "add", "-q", str(root / ".lab" / "mine"), "lab/r1")
    assert "lab/r1 is checked out" in workspace.advance(second)
    assert repository.tip("lab/r1") == first
    write(root / ".lab" / "mine", {"csrc/scale.cpp": "mine"})
    git(root / ".lab" / "mine", "commit", "-qam", "mine")
    git(root, "worktree", "remove", str(root / ".lab" / "mine"))
    mine = repository.tip("lab/r1")
    said = workspace.advance(second)
    assert "commits that are not this run's" in said
    assert f"git merge {second[:12]}" in said
    assert repository.tip("lab/r1") == mine
    assert workspace.name(second) == second[:12]
    git(root, "branch", "-q", "-D", "lab/r1")
    assert workspace.advance(second) == ""
    assert repository.tip("lab/r1") == second
    assert workspace.name(second) == "lab/r1"


@pytest.mark.parametrize("linked", [False, True])
def test_a_branch_that_is_being_rebased_stays_where_it_is(
    linked: bool, root: Path, workspace: Workspace, tmp_path: Path
) -> None:
    repository = workspace.repository
    head = repository.resolve("HEAD")
    first = workspace.commit(head, proposal(csrc__scale=BETTER))
    second = workspace.commit(first, proposal(csrc__scale=BETTER + "int x;\n"))
    assert workspace.advance(first) == ""
    where = tmp_path / "linked" if linked else root
    git(root, *(("worktree", "add", "-q", str(where)) if linked else ("checkout", "-q")), "lab/r1")
    with pytest.raises(subprocess.CalledProcessError):  # it stops there, with HEAD at no branch
        git(where, "rebase", "-q", "--exec", "false", head)
    assert "lab/r1 is checked out" in workspace.advance(second)
    git(where, "rebase", "--abort")
    assert repository.tip("lab/r1") == first


def test_a_branch_that_git_does_not_move_ends_no_night(root: Path, workspace: Workspace) -> None:
    head = workspace.repository.resolve("HEAD")
    commit = workspace.commit(head, proposal(csrc__scale=BETTER))
    taken = root / ".git" / "refs" / "heads" / "lab" / "r1.lock"
    taken.parent.mkdir(parents=True)
    taken.touch()
    said = workspace.advance(commit)
    assert "git does not move lab/r1" in said
    assert f"git merge {commit[:12]}" in said
    taken.unlink()
    assert workspace.advance(commit) == ""


def test_looking_at_the_working_tree_takes_no_lock_of_the_index(root: Path) -> None:
    index = root / ".git" / "index"
    before = index.read_bytes()
    (root / "csrc/scale.cpp").touch()  # `git status` would write the new times down
    assert Repository(root).dirty(FOLDERS) == []
    assert index.read_bytes() == before


def test_a_folder_that_was_made_read_only_is_removed_and_what_a_link_leads_to_is_left() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        locked, outside = root / "tree" / "locked", root / "outside"
        locked.mkdir(parents=True)
        (locked / "file").touch()
        outside.mkdir()
        (root / "tree" / "link").symlink_to(outside)
        outside.chmod(0o500)
        locked.chmod(0o500)
        (root / "tree").chmod(0o300)
        _as_a_user(root, lambda: remove(root / "tree"))
        assert not (root / "tree").exists()
        assert outside.stat().st_mode & 0o777 == 0o500
        remove(root / "tree")  # that is not there


def _as_a_user(root: Path, call: Callable[[], None]) -> None:
    """In a child that may not do what its folders' modes forbid, as root may; it owns what is in `root`."""
    if os.geteuid():
        return call()
    for path in (root, *root.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setuid(NOBODY)
            call()
            status = 0
        finally:
            os._exit(status)  # never a second pytest
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_nothing_is_built_upon_what_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "rmtree", lambda tree, ignore_errors: None)
    make_way(tmp_path / "new")
    with pytest.raises(FileExistsError, match="cannot be removed"):
        make_way(tmp_path)


def test_where_a_shallow_clone_left_its_base_is_not_guessed(root: Path, tmp_path: Path) -> None:
    git(root, "checkout", "-qb", "mine")
    write(root, {"csrc/scale.cpp": BETTER})
    git(root, "commit", "-qam", "rows")
    git(root, "checkout", "-q", "main")
    write(root, {"bench/rule.py": "LIMIT = 2\n"})
    git(root, "commit", "-qam", "a rule")
    both = "--no-single-branch", "-b", "mine"
    git(root, "clone", "-q", "--depth", "1", *both, f"file://{root}", str(tmp_path / "shallow"))
    with pytest.raises(GitError, match="shallow clone"):
        Repository(tmp_path / "shallow").merge_base("origin/main")
