"""How often does the correctness gate refuse what is right? Every file of tests/honest/ and every shipped kernel, over many fresh seeds.

    python tests/calibrate.py --seeds 20              all of them, into results/honest.tsv
    python tests/calibrate.py --seeds 3 --only gram   those whose name holds "gram", printed and not kept

A line as each is done (with --jobs N, N files at a time). The table is written after every line; started again, the command adds to each
file of the same source (its headers included) the seeds that it lacks, so that a few seeds of everything can come before many; after a change of the gate, delete the
table. Exit status 1 if anything was refused.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agent.lab import Lab  # noqa: E402
from bench import builds  # noqa: E402
from bench.contracts import ops, written  # noqa: E402
from bench.correctness import check  # noqa: E402

HONEST = ROOT / "tests" / "honest"
TABLE = ROOT / "results" / "honest.tsv"
COLUMNS = ("name", "source", "seeds", "refused", "kinds", "largest_share")


@dataclass(frozen=True)
class Row:
    """One line of the table. `largest_share`: of the allowed error, over all tensors, cases and seeds; "-" where the op's judge has no such figure."""

    name: str
    source: str
    seeds: int
    refused: int
    kinds: str
    largest_share: str

    def line(self) -> str:
        return "\t".join(str(getattr(self, column)) for column in COLUMNS)


def honest_files() -> list[Path]:
    return sorted(p for p in HONEST.iterdir() if p.suffix in (".py", ".cpp"))


def op_of(file: Path) -> str:
    """The op whose name the file's name begins with: `add_rms_norm_pairwise.cpp` is for add_rms_norm."""
    found = [op for op in ops() if file.stem == op or file.stem.startswith(f"{op}_")]
    if not found:
        raise ValueError(f"{file.name}: expected a name that begins with one of {', '.join(ops())}")
    return max(found, key=len)


def place_of(file: Path) -> str:
    """Where in a tree the file goes."""
    return f"{'kernels' if file.suffix == '.py' else 'csrc'}/{op_of(file)}{file.suffix}"


def tree_with(file: Path, folder: Path) -> Path:
    """The project's kernels in `folder`, with the file in its op's place; a C++ source is built into the cache, as the gate does it."""
    Lab(ROOT).copy_tree(folder)
    shutil.copy(file, folder / place_of(file))
    if file.suffix == ".cpp":
        built = builds.build(folder, [place_of(file)])
        if not built.passed:
            raise RuntimeError(f"{file.name} does not build: {built.reason}")
    return folder


def examine(name: str, op: str, source: bytes, tree: Path, seeds: int) -> Row:
    """Judge an op of a tree over fresh seeds; refusals are printed with the seed that repeats them."""
    kinds: Counter[str] = Counter()
    shares: list[float] = []
    for _ in range(seeds):
        seed = secrets.randbits(48)
        finding = check(op, tree, seed=seed)
        if not finding.passed:
            kinds[str(finding.evidence["kind"])] += 1
            print(f"  REFUSED {name}, seed {seed}: {finding.reason}", flush=True)
            continue
        for implementation in finding.evidence["implementations"]:
            shares += [tensor["used"] for tensor in implementation["tensors"]]
    return Row(
        name,
        digest(source),
        seeds,
        kinds.total(),
        " ".join(f"{kind}:{count}" for kind, count in sorted(kinds.items())) or "-",
        f"{max(shares):.2f}" if shares else "-",
    )


def digest(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()[:12]


def everything(only: str) -> Iterator[tuple[str, str, bytes, Path | None]]:
    """(name, op, source, file): the shipped kernels, whose file is None, then the honest files."""
    for op in written(ROOT):
        cpp = sorted((ROOT / "csrc").glob(f"{op}.*"))
        sources = [ROOT / "kernels" / f"{op}.py", *cpp, *headers(cpp)]
        yield f"shipped_{op}", op, b"".join(p.read_bytes() for p in sources), None
    for file in honest_files():
        if only in file.name:
            source = b"".join(p.read_bytes() for p in (file, *headers([file])))
            yield file.name, op_of(file), source, file


def headers(sources: Sequence[Path]) -> list[Path]:
    """The headers of csrc that these files include, and those that they include, each once."""
    found: list[Path] = []
    for file in sources:
        for name in re.findall(r'^#include "([^"]+)"', file.read_text(), re.M):
            header = ROOT / "csrc" / name
            if header not in found:
                found += [header, *(h for h in headers([header]) if h not in found)]
    return found


def read_table() -> dict[str, Row]:
    if not TABLE.is_file():
        return {}
    rows = [line.split("\t") for line in TABLE.read_text().splitlines() if line[:1] != "#"]
    found = [Row(n, s, int(seeds), int(r), k, share) for n, s, seeds, r, k, share in rows[1:]]
    return {row.name: row for row in found}


def write_table(rows: dict[str, Row], seeds: int) -> None:
    header = [f"# python tests/calibrate.py --seeds {seeds}", "\t".join(COLUMNS)]
    TABLE.write_text("\n".join([*header, *(row.line() for row in rows.values())]) + "\n")


def together(one: Row, other: Row) -> Row:
    """Both rows of the same file as one."""
    kinds: Counter[str] = Counter()
    for row in (one, other):
        for each in row.kinds.split() if row.kinds != "-" else ():
            kind, _, count = each.partition(":")
            kinds[kind] += int(count)
    return Row(
        one.name,
        one.source,
        one.seeds + other.seeds,
        one.refused + other.refused,
        " ".join(f"{kind}:{count}" for kind, count in sorted(kinds.items())) or "-",
        max(one.largest_share, other.largest_share),  # "-" sorts before every figure
    )


def judged(entry: tuple[str, str, bytes, Path | None], seeds: int) -> Row:
    """Examine one file, in a tree of its own."""
    name, op, source, file = entry
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lab-calibrate-") as folder:
        tree = ROOT if file is None else tree_with(file, Path(folder))
        row = examine(name, op, source, tree, seeds)
    seconds = (time.monotonic() - started) / seeds
    print(f"{row.refused}/{row.seeds} refused, share {row.largest_share}, {seconds:.1f} s each: {name}", flush=True)  # fmt: skip
    return row


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=_positive, default=20, help="fresh seeds a file")
    parser.add_argument("--only", default="", metavar="NAME", help="files whose name holds this")
    parser.add_argument("--jobs", type=_positive, default=1, help="files examined at a time")
    asked = parser.parse_args(arguments)
    chosen = [entry for entry in everything(asked.only) if asked.only in entry[0]]
    if not chosen:
        parser.error(f"--only {asked.only}: no such name in {HONEST.relative_to(ROOT)}")
    current = {name: digest(source) for name, _, source, _ in chosen}
    known = {} if asked.only else read_table()
    rows = {n: row for n, row in known.items() if current.get(n) == row.source}

    def lacking(name: str) -> int:
        return asked.seeds - (rows[name].seeds if name in rows else 0)

    waiting = [entry for entry in chosen if lacking(entry[0]) > 0]
    with ThreadPoolExecutor(asked.jobs) as pool:
        for row in pool.map(lambda entry: judged(entry, lacking(entry[0])), waiting):
            rows[row.name] = together(rows[row.name], row) if row.name in rows else row
            if not asked.only:
                write_table({n: rows[n] for n in current if n in rows}, asked.seeds)
    refused = sum(row.refused for row in rows.values())
    print(f"{refused} of {sum(row.seeds for row in rows.values())} examinations refused")
    return 1 if refused else 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())
