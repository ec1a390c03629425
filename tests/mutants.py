"""Mutation testing of the correctness gate: does it refuse a kernel in which one operator, bound or term is wrong?

    python tests/mutants.py                    judge every mutant that results/mutants.tsv does not hold yet, then sum up
    python tests/mutants.py --op attention     only those of one op; --limit N: at most N; --jobs N: N at a time
    python tests/mutants.py --report           write results/mutants.md from what is there

A mutant is one of the project's own kernels with one change (mutants_python.py, mutants_cpp.py). Of several thousand possible changes a fixed
draw is taken, so many a file and every kind in turn. The mutated file is the only one that its tree can run: IMPLEMENTATIONS holds nothing
else. Each is judged as a person's candidate is, with a fresh seed, and the row is written at once, so that a campaign can be stopped and
continued. What the gate lets through is put to an oracle that knows nothing of the gate (mutants_oracle.py): is it another program at all?

Triton kernels are left out: the gate cannot run them on a CPU.
"""

from __future__ import annotations

import argparse
import csv
import functools
import hashlib
import re
import secrets
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import mutants_cpp  # noqa: E402
import mutants_oracle  # noqa: E402
import mutants_python  # noqa: E402
from mutants_python import Site  # noqa: E402

from agent.lab import Lab  # noqa: E402
from bench.builds import build  # noqa: E402
from bench.contracts import ops  # noqa: E402
from bench.correctness import check  # noqa: E402

ROWS = ROOT / "results" / "mutants.tsv"
REASONS = ROOT / "results" / "mutants_reasons.tsv"
REPORT = ROOT / "results" / "mutants.md"
DRAW = "1"  # another one takes another draw

CONTROL_SEED = 5
# How many mutants of a file, and the ops that run it.
SHARES: dict[str, tuple[int, tuple[str, ...]]] = {
    "kernels/rms_norm.py": (18, ("rms_norm",)),
    "kernels/add_rms_norm.py": (18, ("add_rms_norm",)),
    "kernels/attention.py": (26, ("attention",)),
    "kernels/linear_cross_entropy.py": (28, ("linear_cross_entropy",)),
    "kernels/newton_schulz.py": (34, ("newton_schulz",)),
    "csrc/rms_norm.cpp": (6, ("rms_norm",)),
    "csrc/add_rms_norm.cpp": (6, ("add_rms_norm",)),
    "csrc/norm_rows.h": (22, ("rms_norm", "add_rms_norm")),
    "csrc/newton_schulz.cpp": (14, ("newton_schulz",)),
    "csrc/linear_cross_entropy.cpp": (26, ("linear_cross_entropy",)),
    "csrc/attention.cpp": (30, ("attention",)),
    "csrc/lab.h": (10, ("rms_norm", "linear_cross_entropy", "newton_schulz", "attention")),
    "kernels/qk_norm_rope.py": (14, ("qk_norm_rope",)),
    "kernels/relu2_mlp.py": (14, ("relu2_mlp",)),
    "kernels/adamw.py": (12, ("adamw",)),
    "kernels/nesterov.py": (8, ("nesterov",)),
    "kernels/muon_update.py": (12, ("muon_update",)),
    "csrc/qk_norm_rope.cpp": (16, ("qk_norm_rope",)),
    "csrc/relu2_mlp.cpp": (10, ("relu2_mlp",)),
    "csrc/adamw.cpp": (8, ("adamw",)),
    "csrc/nesterov.cpp": (4, ("nesterov",)),
    "csrc/muon_update.cpp": (12, ("muon_update",)),
    "csrc/lanes.h": (10, ("qk_norm_rope", "linear_cross_entropy", "attention", "newton_schulz")),
    "csrc/product.h": (24, ("newton_schulz",)),
    "csrc/pairs.h": (8, ("newton_schulz", "attention")),
}
ONLY = {
    "torch": 'IMPLEMENTATIONS = {"torch": _torch}',
    "cpp": 'IMPLEMENTATIONS = {"cpp": _kernel("cpp")}',
}


@dataclass(frozen=True)
class Mutant:
    """One change of one file. `id` is made from the change and the text around it, not from line numbers."""

    id: str
    ops: tuple[str, ...]
    impl: str
    path: str
    line: int
    kind: str
    before: str
    after: str
    place: tuple[int, int]
    text: str

    @property
    def source(self) -> str:
        original = (ROOT / self.path).read_text()
        return original[: self.place[0]] + self.text + original[self.place[1] :]


@dataclass
class Row:
    """What became of a mutant; a line of results/mutants.tsv."""

    id: str
    ops: str
    impl: str
    path: str
    line: int
    kind: str
    before: str
    after: str
    outcome: str  # killed, survived, not built, timed out
    by: str  # the kind of the refusal
    seed: int
    seconds: float
    # Of a survivor, by the oracle: equal, rounding, non-finite, property, different
    verdict: str = ""
    detail: str = ""


# ---- making ----


@functools.cache
def mutants() -> tuple[Mutant, ...]:
    """The fixed draw, in the order of the files."""
    return tuple(mutant for path in SHARES for mutant in drawn(path))


def drawn(path: str) -> list[Mutant]:
    """So many mutants of a file, taking the kinds in turn, a place in the text only once.

    Within a kind those of the smallest ids come first: an edit of one line leaves the draw from the others as it was.
    """
    source = (ROOT / path).read_text()
    wanted, _ = SHARES[path]
    find = mutants_python.sites if path.endswith(".py") else mutants_cpp.sites
    by_kind: dict[str, list[Mutant]] = defaultdict(list)
    for site in find(source):
        by_kind[site.kind].append(_mutant(path, source, site))
    for group in by_kind.values():
        group.sort(key=lambda m: m.id, reverse=True)
    chosen: list[Mutant] = []
    while len(chosen) < wanted and any(by_kind.values()):
        for kind in sorted(kind for kind in by_kind if by_kind[kind]):
            mutant = by_kind[kind].pop()
            if len(chosen) < wanted and mutant.place not in [c.place for c in chosen]:
                chosen.append(mutant)
    return sorted(chosen, key=lambda m: m.place)


def _mutant(path: str, source: str, site: Site) -> Mutant:
    line = source.count("\n", 0, site.start) + 1
    first, last = source.rfind("\n", 0, site.start) + 1, source.find("\n", site.end)
    before = " ".join(source[first:last].split())
    after = " ".join((source[first : site.start] + site.text + source[site.end : last]).split())
    earlier = source.count(source[first:last], 0, first)
    key = "\n".join((DRAW, path, site.kind, before, after, str(earlier)))
    digest = hashlib.sha256(key.encode()).hexdigest()[:10]
    ops = SHARES[path][1]
    impl = "cpp"
    if path.endswith(".py"):
        plain = mutants_python.reached_from(source, "_torch") | {ops[0]}
        impl = "torch" if mutants_python.owner(source, line) in plain else "cpp"
    return Mutant(
        digest, ops, impl, path, line, site.kind, before, after, (site.start, site.end), site.text
    )


def plant(mutant: Mutant | None, folder: Path, impl: str = "") -> Path:
    """A tree in `folder` with the mutant in it, or the project's own, where one implementation is all there is."""
    Lab(ROOT).copy_tree(folder)
    if mutant:
        (folder / mutant.path).write_text(mutant.source)
        impl = mutant.impl
    for path in [p for p in SHARES if p.endswith(".py")]:
        text, found = re.subn(
            r"^IMPLEMENTATIONS = \{[^}]*\}$", ONLY[impl], (folder / path).read_text(), flags=re.M
        )
        if found != 1:
            raise ValueError(f"{path}: expected one line IMPLEMENTATIONS = {{...}}, found {found}")
        (folder / path).write_text(text)
    return folder


# ---- judging ----


def judge(mutant: Mutant, seed: int | None = None, control: bool = True) -> Row:
    """Put a mutant before the gate, op by op until one refuses it; a survivor goes to the oracle.

    control: first see, once for each op and implementation, that the gate takes the original in the same form.
    """
    seed = secrets.randbits(48) if seed is None else seed
    for op in mutant.ops if control else ():
        _control(op, mutant.impl)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tree = plant(mutant, Path(folder))
        by = ""
        for op in mutant.ops:
            finding = check(op, tree, seed=seed)
            if not finding.passed:
                by = str(finding.evidence["kind"])
                break
        seconds = round(time.monotonic() - started, 1)
        outcome = {"": "survived", "BuildError": "not built", "timeout": "timed out"}.get(
            by, "killed"
        )
        row = Row(
            mutant.id, " ".join(mutant.ops), mutant.impl, mutant.path, mutant.line, mutant.kind,
            mutant.before, mutant.after, outcome, by, seed, seconds,
        )  # fmt: skip
        if outcome == "survived":
            original = Path(_originals(mutant.impl).name)
            row.verdict, row.detail = mutants_oracle.compare(mutant.ops, original, tree)
    return row


@functools.cache
def _originals(impl: str) -> tempfile.TemporaryDirectory[str]:
    """The project's own tree with one implementation, for the oracle; removed when this process ends."""
    folder = tempfile.TemporaryDirectory()
    plant(None, Path(folder.name), impl)
    return folder


@functools.cache
def _control(op: str, impl: str) -> None:
    """A refused mutant says something only if the same tree without a change is not refused."""
    finding = check(op, Path(_originals(impl).name), seed=CONTROL_SEED)
    if not finding.passed:
        raise SystemExit(f"the original {op} with {impl} alone is refused: {finding.reason}")


def campaign(chosen: Sequence[Mutant], jobs: int) -> None:
    """Judge what has no row yet; every row is written as it comes."""
    done = {row.id for row in rows()}
    waiting = [m for m in chosen if m.id not in done]
    if not waiting:
        return
    built = build(ROOT, ["csrc/lab.h"])
    if not built.passed:
        raise SystemExit(built.reason)
    for impl in {mutant.impl for mutant in waiting}:
        # Two threads that miss the cache together would plant two trees, and one is removed under the other's feet.
        _originals(impl)
    ROWS.parent.mkdir(exist_ok=True)
    names = [f.name for f in fields(Row)]
    with ROWS.open("a", newline="") as handle, ThreadPoolExecutor(jobs) as pool:
        writer = csv.DictWriter(handle, names, delimiter="\t", lineterminator="\n")
        if not handle.tell():
            writer.writeheader()
        for number, row in enumerate(pool.map(judge, waiting), 1):
            writer.writerow(asdict(row))
            handle.flush()
            said = f"{row.outcome} {row.by}{row.verdict} {row.detail}"
            print(f"{number}/{len(waiting)} {row.path}:{row.line} {row.kind}: {said}", flush=True)


def rows() -> list[Row]:
    """What results/mutants.tsv holds of the mutants that this tree has."""
    if not ROWS.is_file():
        return []
    current = {m.id for m in mutants()}
    with ROWS.open(newline="") as handle:
        return [
            Row(**{**line, "line": int(line["line"]), "seed": int(line["seed"]), "seconds": float(line["seconds"])})
            for line in csv.DictReader(handle, delimiter="\t")
            if line["id"] in current
        ]  # fmt: skip


# ---- telling ----

OUTCOMES = ("killed", "timed out", "not built", "survived")
VERDICTS = {
    "equal": "Equal: every result and gradient has the same bits",
    "rounding": "Rounding: other bits, no further from the original than twice its own rounding error",
    "property": "Another value that the contract allows: the op is judged by a property, which holds",
    "non-finite": "Differs on NaN and infinity alone",
    "different": "Real survivors: another result, and the gate let it through",
}


def table(found: Iterable[Row], key: str) -> Iterator[str]:
    """Lines of a table: outcomes by `key`, and the share of what was built that was refused or is no other program."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in found:
        groups[getattr(row, key)].append(row)
    yield f"| {key} | mutants | " + " | ".join(OUTCOMES) + " | of these another program |"
    yield "|---|" + "--:|" * (len(OUTCOMES) + 2)
    everything = [row for group in groups.values() for row in group]
    for name, group in [*sorted(groups.items()), ("all", everything)]:
        count = Counter(row.outcome for row in group)
        real = sum(row.verdict in ("different", "non-finite") for row in group)
        figures = [len(group), *(count[o] for o in OUTCOMES), real]
        yield f"| {name} | " + " | ".join(map(str, figures)) + " |"


def survivors(found: Iterable[Row]) -> Iterator[str]:
    """Lines on every survivor, by the oracle's verdict, with the reason a person wrote down."""
    reasons = {}
    if REASONS.is_file():
        reasons = dict(line.split("\t", 1) for line in REASONS.read_text().splitlines())
    for verdict, title in VERDICTS.items():
        group = [row for row in found if row.verdict == verdict]
        yield f"\n### {title} ({len(group)})\n"
        for row in group:
            yield f"- `{row.path}:{row.line}` {row.kind}: `{row.before}` → `{row.after}`  "
            yield f"  {reasons.get(row.id, 'Not looked at yet.')} ({row.id}; {row.detail})"


def report(found: Sequence[Row]) -> str:
    seconds = sum(row.seconds for row in found)
    lines = [
        "# Mutation testing of the correctness gate",
        "",
        "Written by `python tests/mutants.py --report` from mutants.tsv (every mutant, its seed and what became of it) and",
        "mutants_reasons.tsv (why a survivor survived, by a person). A mutant is one of our own correct kernels with one change.",
        "Each was put before `bench.correctness.check` once, with a seed of its own. Triton kernels are left out: the gate",
        "cannot run them on a CPU.",
        "",
        f"{len(found)} mutants, {seconds / 60:.0f} minutes of the gate's time.",
        "",
        *table(found, "kind"),
        "",
        *table(found, "path"),
        "",
        "## Survivors",
        *survivors(found),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--op", choices=ops(), help="only mutants that this op runs")
    parser.add_argument("--limit", type=int, help="at most so many in this campaign")
    parser.add_argument("--jobs", type=int, default=1, help="mutants judged at a time")
    parser.add_argument("--report", action="store_true", help=f"write {REPORT.name} and stop")
    asked = parser.parse_args()
    if asked.report:
        REPORT.write_text(report(rows()))
        return
    done = {row.id for row in rows()}
    chosen = [m for m in mutants() if m.id not in done and asked.op in (None, *m.ops)]
    campaign(chosen[: asked.limit], asked.jobs)
    found = [row for row in rows() if asked.op is None or asked.op in row.ops.split()]
    print("\n".join([*table(found, "kind"), "", *table(found, "ops")]))
    print("\n".join(survivors(found)))


if __name__ == "__main__":
    main()
