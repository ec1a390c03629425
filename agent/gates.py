"""The gates, cheapest first; their order matters. Each says passed or refused, why, and on what evidence.

    scope        only the surface, plain text of a sane size, no earlier idea again
    static       parses, exports what it must, and has nothing that a kernel has no business with
    build        compiles: C++ and CUDA through the JIT, Triton ahead of time; the object asks nothing unusual of the system
    correctness  agrees with float64 over drawn cases, values and gradients; a changed model takes its first steps
    microbench   faster on the trial's shapes, beyond the measurement's own interval; beside a change of the model no slower
    parity       the first training steps go as before, and no slower

A new gate is a function here, its place in EARLY or MEASURING (and in USES, if it builds, runs or times), a row of ASSUMED in
agent/dry_run/pace.py, a line of JUDGED in agent/research/prompt.py (what a model is told of it), its name in agent/gate_command.py if
`agent gate` is to ask it, and a cheat in tests/cheats/ that only it stops.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import bare_code, integrity, similarity, surface
from agent import scope as rules
from agent.figures import count
from agent.judging import Judging, MachineFault, Unfit
from agent.machine import CORES, DEVICE, NOTHING
from agent.proposers import Stopped, Workshop
from agent.records import Candidate, Change, GateResult
from agent.static import cpp, exports, literals, python, symbols
from bench import hardware, implementations
from bench.finding import Finding

if TYPE_CHECKING:
    from bench.speed import Comparison


@dataclass(frozen=True)
class Context:
    """What the gates know beside the candidate.

    `earlier`: the proposals of this run, patch hash to experiment number; None for a person's change, which may repeat itself and may
    touch documents and tests (not judged here). `sketches`: number and sketch (similarity.py) of those that were found correct, or still
    may be. A change that need not win (`must_win` is False) has only to be no slower.
    """

    judge: Judging
    op: str | None = None
    earlier: Mapping[str, int] | None = None
    sketches: Sequence[tuple[int, tuple[int, ...]]] = ()
    must_win: bool = True
    complete: bool = True  # each kernel file must export IMPLEMENTATIONS

    def touched(self, candidate: Candidate) -> list[str]:
        return surface.touched_ops(candidate.paths, candidate.tree, self.judge.ops())


Gate = Callable[[Candidate, Context], Finding]


def scope(candidate: Candidate, context: Context) -> Finding:
    evidence = rules.evidence(candidate)
    judge = rules.judge_paths(candidate.paths)
    if judge:
        return Finding(
            False,
            f"{', '.join(judge)}: part of the judge, which cannot judge a change of itself; take it out of this change "
            "and have a person review it on its own",
            evidence,
        )
    if context.earlier is None:
        inside = tuple(c for c in candidate.changes if c.path.split("/")[0] in surface.FOLDERS)
        evidence["not_judged"] = [c.path for c in candidate.changes if c not in inside]
        candidate = replace(candidate, changes=inside)
    elif bare_code.is_idle(candidate.changes):
        return Finding(
            False,
            "nothing that runs is changed; change code, not comments or layout alone",
            evidence,
        )
    refusals = list(rules.refusals(candidate, context.op, context.judge.ops()))
    twin = (context.earlier or {}).get(bare_code.patch_hash(candidate.changes))
    if twin is not None:
        refusals.append(
            f"the same change as experiment {twin} of this run; its outcome is in the ledger: try another idea"
        )
    elif (near := similarity.nearest(candidate.changes, context.sketches)) is not None:
        refusals.append(
            f"the same change as experiment {near} of this run in all but names and layout; its outcome is in the ledger: try another idea"
        )
    if refusals:
        return Finding(False, "; ".join(refusals), evidence | {"refusals": refusals})
    said = (
        f"{count(len(candidate.changes), 'file')}, {count(evidence['lines'], 'line')}"
        if candidate.changes
        else "nothing to judge is changed"
    )
    return Finding(True, said, evidence)


def static(candidate: Candidate, context: Context) -> Finding:
    refusals: list[str] = []
    advice: list[str] = []
    judged = [change for change in candidate.changes if _is_judged(change)]
    for change in judged:
        path, source = change.path, (change.after or b"").decode(errors="replace")
        if len(source) > literals.MAX_FILE:
            refusals += [
                f"{path}:{line}: {text}" for line, text in literals.oversized(path, source)
            ]
            continue
        if path.endswith(".py"):
            try:
                report = python.inspect_source(path, source)
                if not any("does not parse" in text for _, text in report.refusals):
                    refusals += [f"{path}: {text}" for text in _exports(path, source, context)]
            except RecursionError:
                refusals.append(
                    f"{path}: an expression of some hundred terms, too deep to be read; write it shorter"
                )
                continue
        else:
            report = cpp.inspect(candidate.tree, path, source)
        said = sorted([*report.refusals, *literals.oversized(path, source)])
        refusals += [f"{path}:{line}: {text}" for line, text in said]
        advice += [f"{path}:{line}: {text}" for line, text in report.advice]
    texts = [(c.path, (c.before or b"").decode(errors="replace"), (c.after or b"").decode(errors="replace")) for c in judged]  # fmt: skip
    refusals += literals.too_much_added(texts)
    if any(change.path.endswith(".h") for change in judged):
        refusals += _including(candidate, {change.path for change in judged})
    if refusals:
        return Finding(False, "; ".join(refusals[:20]), {"refusals": refusals, "advice": advice})
    return Finding(True, f"{count(len(judged), 'file')} read", {"advice": advice})


def _is_judged(change: Change) -> bool:
    inside = change.path.startswith(tuple(f"{folder}/" for folder in surface.FOLDERS))
    return change.after is not None and change.path not in surface.FROZEN and inside


def _including(candidate: Candidate, read: set[str]) -> list[str]:
    """Refusals of the sources beside a changed header: what they mean may have changed with it."""
    found = []
    for path in surface.sources(candidate.tree):
        if path not in read:
            source = (candidate.tree / path).read_text(errors="replace")
            report = cpp.inspect(candidate.tree, path, source)
            found += [f"{path}:{line}: {text}" for line, text in report.refusals]
    return found


def _exports(path: str, source: str, context: Context) -> Iterator[str]:
    stem = Path(path).stem
    if path == "model/train.py":
        yield from exports.trainer_problems(source)
    elif path.startswith("kernels/") and stem in context.judge.ops():
        public = context.judge.signature(stem)
        yield from exports.op_problems(source, stem, public, context.complete)


def build(candidate: Candidate, context: Context) -> Finding:
    kernels = [path for path in candidate.paths if surface.is_kernel(path)]
    if not kernels:
        return Finding(True, "no kernel is changed")
    cuda = [
        change.path
        for change in candidate.changes
        if change.path.endswith(".cu") and change.after is not None
    ]
    if cuda and not hardware.toolkit("nvcc"):
        return Finding(False, f"{', '.join(cuda)}: nvcc, which compiles it, is neither on the PATH nor in CUDA_HOME/bin; install the CUDA toolkit, or set CUDA_HOME")  # fmt: skip
    finding = context.judge.build(candidate.tree, kernels)
    problems = [
        f"csrc/{source}: {text}"
        for source, built in finding.evidence.get("objects", {}).items()
        for text in symbols.problems(Path(built))
    ]
    if finding.passed and problems:
        return Finding(False, "; ".join(problems[:5]), finding.evidence | {"refusals": problems})
    return finding


# The implementations that a source is compiled into. Of a .py file every device runs some, if more than its Triton kernels is changed.
MADE_OF = {".cpp": {"cpp"}, ".cu": {"cuda"}, ".h": {"cpp", "cuda"}}


def correctness(candidate: Candidate, context: Context) -> Finding:
    """Also refuses a change of which nothing runs here: its sources are for another device, or no implementation loads them; and a model that does not train."""
    evidence: dict[str, Any] = {}
    said = []
    for op in context.touched(candidate):
        finding = context.judge.correctness(op, candidate.tree)
        evidence[op] = finding.evidence
        if not finding.passed:
            return Finding(False, f"{op}: {finding.reason}", evidence)
        said.append(f"{op}: {finding.reason}")
    unrun = _unrun(candidate, evidence)
    if unrun:
        where = f"{', '.join(unrun)}: no implementation that this device runs is made of it"
        if len(unrun) == sum(surface.is_kernel(path) for path in candidate.paths):
            mend = "judge it on the device that runs it (--device), or name it in IMPLEMENTATIONS of its op's file in kernels/"
            return Finding(False, f"{where}; {mend}", evidence | {"not_run": unrun})
        said.append(f"not run: {where}")
        evidence["not_run"] = unrun
    if any(path.startswith("model/") for path in candidate.paths):
        finding = context.judge.trains(candidate.tree)
        if not finding.passed:
            return Finding(False, finding.reason, evidence | finding.evidence)
        said.append(finding.reason)
    return Finding(True, "; ".join(said) or "nothing that runs is changed", evidence)


def _unrun(candidate: Candidate, evidence: Mapping[str, Any]) -> list[str]:
    """Changed sources that none of the examined implementations is made of."""
    uses = {op: surface.uses_of(op, candidate.tree) for op in evidence}
    found = []
    for change in candidate.changes:
        path = Path(change.path)
        made = _made_of(change) if surface.is_kernel(change.path) else set()
        examined = {
            row["impl"]
            for op, stems in uses.items()
            if path.stem in stems
            for row in evidence[op]["implementations"]
        }
        if made and change.after is not None and not made & examined:
            found.append(change.path)
    return found


def _made_of(change: Change) -> set[str]:
    """The implementations that a change concerns; none where every device runs some of it, or nobody can say."""
    if not change.path.endswith(".py") or change.before is None or change.after is None:
        return MADE_OF.get(Path(change.path).suffix, set())
    try:
        whole = [ast.dump(ast.parse(source)) for source in (change.before, change.after)]
        rest = [_without_triton(source) for source in (change.before, change.after)]
    # a base may not parse; a sum of some hundred terms is too deep
    except (SyntaxError, ValueError, RecursionError):
        return set()
    # where comments alone differ, every device runs what there is
    return {"triton"} if rest[0] == rest[1] and whole[0] != whole[1] else set()


def _without_triton(source: bytes) -> str:
    """The code of a kernel file but for its Triton kernels and what is compiled of them ahead of time."""
    tree = ast.parse(source)
    kernels = implementations.kernels_of(tree)
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.FunctionDef) and node.name in kernels)
        and not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "AOT")
    ]
    return ast.dump(tree)


def microbench(candidate: Candidate, context: Context) -> Finding:
    """Evidence: a Comparison by op, as a dict."""
    from bench.speed import SHAPE_SHARE

    evidence: dict[str, Any] = {}
    wins, product, said = 0, 1.0, []
    for op in context.touched(candidate):
        if not (candidate.incumbent / f"kernels/{op}.py").is_file():
            said.append(f"{op} is new: there is nothing to compare its time with")
            continue
        try:
            result = context.judge.compare(op, candidate.incumbent, candidate.tree)
        except Unfit as unfit:
            return Finding(False, f"{op}: {unfit}", evidence)
        evidence[op] = asdict(result)
        said.append(f"{op} {_speed(result)}")
        if not result.arms.get("candidate", {}).get("first_in_line", True):
            said[-1] += (
                " (timed without precedence over other work, for which the timer was never calibrated)"
            )
        if result.unsteady:
            said[-1] += f" (beside itself the incumbent takes {_range(**result.placebo)})"
        if result.slower:
            return Finding(
                False,
                f"slower: {said[-1]}; the incumbent's way is better on these shapes",
                evidence,
            )
        if result.lagging:
            worst = max(result.lagging, key=lambda shape: float(shape["ratio"]))
            return Finding(
                False,
                f"slower on a shape that the model uses: {_range(**worst)} on {worst['case']}, at most {SHAPE_SHARE:.0%} more is allowed; "
                f"over the whole mix {said[-1]}",
                evidence,
            )
        wins += result.faster
        product *= result.ratio
    if not said:
        return Finding(True, "no kernel is changed", evidence)
    # beside a change of the model a kernel need only be no slower: the trial decides, by bits
    alone = all(map(surface.is_kernel, candidate.paths))
    if context.must_win and alone and (not wins or product >= 1.0):
        return Finding(
            False,
            f"not faster: {'; '.join(said)}; to pass, one interval has to lie below 1, none above, and their mean below 1",
            evidence,
        )
    return Finding(True, "; ".join(said), evidence)


def _speed(found: Comparison) -> str:
    return f"takes {_range(found.ratio, found.low, found.high)} over {found.blocks} blocks"


def _range(ratio: float, low: float, high: float, **_: object) -> str:
    return f"{ratio:.3f}x the incumbent's time [{low:.3f}, {high:.3f}]"


def parity(candidate: Candidate, context: Context) -> Finding:
    if any(not surface.is_kernel(path) for path in candidate.paths):
        return Finding(
            True, "the model is changed too: its curve may differ, and the trial decides"
        )
    found = context.judge.parity(candidate.incumbent, candidate.tree)
    if found.evidence.get("untrained") == "incumbent":
        raise MachineFault(found.reason)  # it has trained before
    return found


Steps = Sequence[tuple[str, Gate]]
EARLY: Steps = (
    ("scope", scope),
    ("static", static),
    ("build", build),
    ("correctness", correctness),
)
# These compare with the incumbent, which may change until a proposal's turn has come.
MEASURING: Steps = (("microbench", microbench), ("parity", parity))
GATES: Steps = (*EARLY, *MEASURING)
# What a gate needs of the machine while it runs; those that are not named need nothing.
USES = {
    "static": CORES,
    "build": CORES,
    "correctness": DEVICE,
    "microbench": DEVICE,
    "parity": DEVICE,
}


def run(
    candidate: Candidate,
    context: Context,
    gates: Steps = GATES,
    announce: Callable[[str], None] = lambda name: None,
    shop: Workshop | None = None,
) -> Iterator[GateResult]:
    """Each gate's result as it comes, up to the first refusal. The tree has to stay as it was before the first gate.

    In the `shop` of a run each gate waits for its turn on the machine, which is not part of its seconds. Raises Stopped if the run has
    ended by then.
    """
    sealed = integrity.of_tree(candidate.tree)
    for name, gate in gates:
        announce(name)
        with shop.machine.hold(USES.get(name, NOTHING)) if shop else nullcontext():
            if shop and shop.stop.is_set():
                raise Stopped("the run ended")
            started = time.monotonic()
            finding = _of_links(sealed) or gate(candidate, context)
            seconds = time.monotonic() - started
        changed = sealed.changed()
        if changed:
            reason = f"{', '.join(changed[:5])} changed while it was judged: what runs has to be what was read"
            finding = Finding(False, reason, {"changed": changed})
        yield GateResult(name, finding.passed, finding.reason, finding.evidence, seconds)
        if not finding.passed:
            return


def _of_links(sealed: integrity.Seal) -> Finding | None:
    odd = sealed.odd()
    return Finding(False, f"{'; '.join(odd[:5])}: a tree holds plain files alone") if odd else None
