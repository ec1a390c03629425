"""`python -m agent gate`: judge one file, or what the working tree changes. Exit status 0 passed, 1 refused, 2 could not judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from agent import gates, integrity, surface
from agent.judging import Judging
from agent.lab import Lab, Unusable
from agent.records import ABSENT, PLAIN, Candidate, Change, GateResult
from agent.screen import Screen, duration
from agent.surface import FOLDERS, JUDGE, PLACES
from bench.sandbox import processes

PASSED, REFUSED = 0, 1


def judge_file(
    lab: Lab, op: str, file: Path, speed: bool, screen: Screen, judge: Judging
) -> list[GateResult]:
    """Put the file in its op's place in a copy of the tree, and judge it against the tree's own version; it has to be faster."""
    if file.suffix not in (".py", ".cpp", ".cu"):
        raise Unusable(f"--candidate {file}: expected a .py, .cpp or .cu file")
    if not file.is_file():
        raise Unusable(f"--candidate {file}: no such file")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise Unusable(f"--candidate {file}: cannot be read ({error.strerror})") from None
    if op not in judge.ops():
        raise Unusable(f"--op {op}: expected one of {', '.join(judge.ops())}")
    path = f"{PLACES[file.suffix]}/{op}{file.suffix}"
    with processes.scratch() as scratch:
        incumbent = lab.copy_tree(Path(scratch) / "incumbent")
        tree = lab.copy_tree(Path(scratch) / "candidate")
        before = (tree / path).read_bytes() if (tree / path).is_file() else None
        (tree / path).parent.mkdir(exist_ok=True)
        (tree / path).write_bytes(content)
        change = Change(path, ABSENT if before is None else PLAIN, PLAIN, before, content)
        names = ["static", "build", "correctness", *(["microbench"] if speed else [])]
        there = (incumbent / f"kernels/{op}.py").is_file()
        context = gates.Context(judge, must_win=there, complete=False)
        return _run(lab, Candidate("kernels", incumbent, tree, (change,)), context, names, screen)


def judge_working_tree(
    lab: Lab, base: str | None, speed: bool, screen: Screen, judge: Judging
) -> list[GateResult]:
    """Judge what the working tree changes since it left `base` (HEAD without one); it has to be right, and not slower."""
    repository = lab.repository()
    commit = repository.resolve("HEAD") if base is None else repository.merge_base(base)
    snapshot = repository.snapshot([*FOLDERS, *JUDGE])
    changes = repository.changes(commit, snapshot)
    with processes.scratch() as scratch:
        incumbent, tree = Path(scratch) / "incumbent", Path(scratch) / "candidate"
        repository.export(commit, incumbent, FOLDERS)
        repository.export(snapshot, tree, FOLDERS)
        patch = repository.patch(commit, snapshot, FOLDERS)  # documents and tests have any size
        candidate = Candidate("all", incumbent, tree, changes, patch)
        names = ["scope", "static", "build", "correctness", *(["microbench"] if speed else [])]
        context = gates.Context(judge, must_win=False)
        return _run(lab, candidate, context, names, screen)


def as_json(results: Sequence[GateResult]) -> str:
    """The result for a machine: whether it passed, which gate refused it (null if none), and what each gate said."""
    passed = results[-1].passed
    said = {"passed": passed, "refused_by": None if passed else results[-1].name}
    return json.dumps(said | {"gates": [result.as_json() for result in results]}, indent=2)


def _run(
    lab: Lab, candidate: Candidate, context: gates.Context, names: Sequence[str], screen: Screen
) -> list[GateResult]:
    """Raises Tampered if the judge has changed meanwhile."""
    judge = integrity.of_judge(lab.root)
    results: list[GateResult] = []

    def announce(name: str) -> None:
        if name == "build":
            _build_incumbent(candidate, context, screen, timed="microbench" in names)
        screen.stage(name)

    steps = [(name, gate) for name, gate in gates.GATES if name in names]
    for result in gates.run(candidate, context, steps, announce):
        said = "passed" if result.passed else "REFUSED"
        screen.say(f"{result.name} {said} in {duration(result.seconds)}: {result.reason}")
        results.append(result)
    integrity.verify(judge)
    return results


def _build_incumbent(
    candidate: Candidate, context: gates.Context, screen: Screen, timed: bool
) -> None:
    """Build the sources of the ops that are judged once, into the cache that every runner can read and none can fill."""
    trees = (candidate.incumbent, candidate.tree)
    stems = {
        stem
        for op in context.touched(candidate)
        for tree in trees
        for stem in surface.uses_of(op, tree)
    }
    sources = [path for path in surface.sources(candidate.incumbent) if Path(path).stem in stems]
    if not sources:
        return
    screen.stage("building what the candidate is compared with")
    built = context.judge.build(candidate.incumbent, sources)
    if timed and not built.passed:
        raise Unusable(f"what the candidate is compared with does not build: {built.reason}")
