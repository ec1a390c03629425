"""Reading text: the embedded corpus, a user's files, or a dataset streamed from Hugging Face.

Every source becomes a stream of `Document`s whose text is valid UTF-8. What cannot be read raises
`DataError` with the file and the line or row. Files whose names begin with train, val and test
(train_a.parquet, val.parquet, ...), at least one of each, keep to that split.

| file                        | a document is                                                            |
|-----------------------------|--------------------------------------------------------------------------|
| .parquet                    | a row, column `text` (optional extra `parquet`)                          |
| .jsonl .jsonl.zst .jsonl.gz | a line, field `text`; a field `id` like `novels/0042` names its origin   |
| .txt                        | paragraphs, cut at a blank line after 4,000 bytes or a line after 32,000 |
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

EMBEDDED = Path(__file__).with_name("embedded") / "default.jsonl.zst"
# Where an endless stream stops: more text than one GPU reads in 5 minutes.
HUB_BYTES = 2_000_000_000
SPLITS = ("train", "val", "test")
# Bytes after which a blank line, or any line, ends a .txt document.
PARAGRAPHS, LONGEST = 4_000, 32_000


class DataError(ValueError):
    """Unusable text, or prepared data missing or damaged; says where and what to do."""


@dataclass(frozen=True)
class Document:
    """One text in UTF-8; `origin` (an id's prefix, else the file) groups texts of one kind.
    `split` is that of its file, if the source has such files."""

    origin: str
    text: bytes
    split: str = ""


@dataclass(frozen=True)
class Source:
    """Where text comes from: files, or `hub`, a dataset OWNER/NAME.

    `fingerprint` differs whenever the text may: content of the embedded corpus, path, size and
    modification time of a user's files, name of a hub dataset.
    """

    name: str
    fingerprint: str
    files: tuple[Path, ...] = ()
    splits: tuple[str, ...] = ()  # of each file, where their names tell
    hub: str = ""


def find_source(source: str | None) -> Source:
    """Resolve None (embedded), a file, a directory (recursively) or hf:OWNER/NAME; reads no text."""
    if source is None:
        return Source("embedded", hashlib.sha256(EMBEDDED.read_bytes()).hexdigest(), (EMBEDDED,))
    if source.startswith("hf:"):
        hub = source.removeprefix("hf:")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub):
            raise DataError(
                f"{source}: expected hf:OWNER/NAME, for example hf:roneneldan/TinyStories"
            )
        return Source(_slug(hub), source, hub=hub)
    path = Path(source).expanduser().resolve()
    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    if path.is_file() and _reader(path) is None:
        raise DataError(f"{path}: unknown kind of file; known are {', '.join(_READERS)}")
    found = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    files = tuple(file for file in found if _reader(file))
    if not files:
        raise DataError(f"{path}: no file to read here; known are {', '.join(_READERS)}")
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    splits = _splits(files)
    fingerprint = json.dumps([stamps, splits] if splits else stamps)
    return Source(_slug(path.name.partition(".")[0]), fingerprint, files, splits)


def read(
    source: Source, limit_bytes: int | None, progress: Callable[[float], None]
) -> Iterator[Document]:
    """Yield documents that hold text, in the source's order, until `limit_bytes` have come. Of a
    source with a split of its own, so many bytes of train come, and all of val and test.

    Calls `progress` with the fraction read; it may go back (a parquet file is read from its end).
    """
    if source.hub:
        documents = _hub(source.hub)
        limit_bytes = HUB_BYTES if limit_bytes is None else limit_bytes
    else:
        documents = _files(source, progress)
    taken = 0
    for document in documents:
        if not document.text.strip() or _is_dictionary_header(document):
            continue
        if document.split in SPLITS[1:]:
            yield document
        elif limit_bytes is None or taken < limit_bytes:
            yield document
            taken += len(document.text)
            if limit_bytes is not None:
                progress(min(1.0, taken / limit_bytes))
                if taken >= limit_bytes and not source.splits:
                    return


def _splits(files: tuple[Path, ...]) -> tuple[str, ...]:
    """The split of each file by its name; empty unless all three are present. Raises DataError for a file of no split beside them."""
    found = tuple(next((s for s in SPLITS if file.name.startswith(s)), "") for file in files)
    if not set(SPLITS) <= set(found):
        return ()
    if "" in found:
        raise DataError(
            f"{files[found.index('')]}: its name begins with none of {', '.join(SPLITS)}, while files of all three stand beside it and "
            "are taken for a split: rename it, or take it away"
        )
    return found


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40] or "data"


def _is_dictionary_header(document: Document) -> bool:
    return document.origin.startswith("dict-") and document.text.lstrip().startswith(b"00-database")


def _utf8(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not UTF-8: {error}; convert the file to UTF-8"
        ) from None


def _row(row: Any, where: str, origin: str) -> Document:
    """The document in a mapping with `text`, or an error that says what the mapping has instead."""
    if not isinstance(row, dict) or "text" not in row:
        has = ", ".join(map(str, row)) if isinstance(row, dict) else f"a {type(row).__name__}"
        raise DataError(f"{where}: expected a column `text`; it has: {has or 'nothing'}")
    text, name = row["text"], row.get("id")
    if not isinstance(text, str):
        raise DataError(f"{where}: expected a string in `text`, got {type(text).__name__}")
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: not UTF-8: {error}") from None
    return Document((name.rpartition("/")[0] if isinstance(name, str) else "") or origin, encoded)


def _files(source: Source, progress: Callable[[float], None]) -> Iterator[Document]:
    done, total = 0, sum(file.stat().st_size for file in source.files)
    for path, split in zip(source.files, source.splits or [""] * len(source.files), strict=True):
        reader = _reader(path)
        assert reader is not None, path  # `find_source` takes no other files
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty")
        with path.open("rb") as raw:
            try:
                for document in reader(raw, path):
                    progress((done + min(raw.tell(), path.stat().st_size)) / total)
                    yield replace(document, split=split)
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"{path}: cannot be read: {error}") from error
        done += path.stat().st_size


def _jsonl(lines: Iterable[bytes], path: Path) -> Iterator[Document]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        text = _utf8(line, path, number)
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: broken JSON: {error}") from None
        yield _row(row, f"{path}, line {number}", path.name)


def _jsonl_gz(raw: BinaryIO, path: Path) -> Iterator[Document]:
    return _jsonl(gzip.GzipFile(fileobj=raw), path)


def _jsonl_zst(raw: BinaryIO, path: Path) -> Iterator[Document]:
    return _jsonl(_zst_lines(raw), path)


def _zst_lines(raw: BinaryIO) -> Iterator[bytes]:
    """The lines of all frames; zstandard's own stream reader ends in silence where a file is cut off."""
    # Only here: where prepared data is read, and nothing else, it need not be installed.
    import zstandard

    frame, rest = None, b""
    while chunk := raw.read(1 << 17):
        while chunk:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                text = frame.decompress(chunk)
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from error
            *lines, rest = (rest + text).split(b"\n")
            yield from lines
            chunk = frame.unused_data
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the file is cut off: its last frame has no end")
    yield rest


def _plain_text(raw: BinaryIO, path: Path) -> Iterator[Document]:
    lines: list[str] = []
    size = 0
    for number, line in enumerate(raw, 1):
        lines.append(_utf8(line, path, number))
        size += len(line)
        if size >= (LONGEST if line.strip() else PARAGRAPHS):
            yield Document(path.name, "".join(lines).encode())
            lines, size = [], 0
    yield Document(path.name, "".join(lines).encode())


def _parquet(raw: BinaryIO, path: Path) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise DataError(
            f"{path}: parquet needs the extra `parquet`: pip install -e '.[parquet]'"
        ) from None
    try:
        table = pyarrow.parquet.ParquetFile(raw)
        columns = table.schema_arrow.names
        if "text" not in columns:
            raise DataError(f"{path}: expected a column `text`; it has: {', '.join(columns)}")
        row = 0
        for batch in table.iter_batches(batch_size=1024, columns=["text"]):
            for value in batch.column(0):
                row += 1
                try:
                    text = value.as_py()
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}, row {row}: not UTF-8: {error}") from None
                yield _row({"text": text}, f"{path}, row {row}", path.name)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not readable as parquet: {error}") from error


def _hub(name: str) -> Iterator[Document]:
    for number, row in enumerate(_hub_rows(name), 1):
        yield _row(row, f"hf:{name}, row {number}", name)


def _hub_rows(name: str) -> Iterator[Any]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise DataError(
            f"hf:{name}: streaming needs the extra `hf`: pip install -e '.[hf]'"
        ) from None
    try:
        rows = datasets.load_dataset(name, split="train", streaming=True)
        yield from rows
    # RuntimeError: a data set that is a script
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"hf:{name}: cannot be streamed (is there a network?): {reason}") from error


Reader = Callable[[BinaryIO, Path], Iterator[Document]]
_READERS: dict[str, Reader] = {
    ".parquet": _parquet,
    ".jsonl": _jsonl,
    ".jsonl.zst": _jsonl_zst,
    ".jsonl.gz": _jsonl_gz,
    ".txt": _plain_text,
}


def _reader(path: Path) -> Reader | None:
    return next((read for suffix, read in _READERS.items() if path.name.endswith(suffix)), None)
