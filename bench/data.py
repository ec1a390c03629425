"""Prepared data: text split by document, tokenized, and kept as checksummed shards that are memory-mapped.

`prepare` builds `<root>/<name>-<hash>/` once and afterwards only verifies it:

    tokenizer.tiktoken               the vocabulary, one line a token
    train.bin  val.bin  test.bin     token ids, uint16 (uint32 when the vocabulary exceeds 65,536): the
                                     documents in the order of their hashes, each preceded by bos
    manifest.json                    sizes, counts, and the SHA-256 of each file above

A directory appears whole or not at all: it is built beside its place as `.building`, synced, and renamed,
under a lock that ends with its holder. A root has one lock, so a `.building` that its holder finds was left
by a dead process, and is deleted.
"""

import fcntl
import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import tokenizer
from bench.corpus import SPLITS, DataError, Source, find_source, read
from bench.split import alike, assign, given

__all__ = ["DataError", "Dataset", "open_dataset", "prepare"]

FORMAT = 1  # part of every key: raise it when the same text would give other files
TRAINING_BYTES = 20_000_000  # the tokenizer is trained on the first so many bytes of train
ENCODED_AT_ONCE = 256  # documents whose tokens may wait in memory
DROPPED = -1  # in the place of a split
# Shares of the time that preparing takes.
STAGES = {"reading": 0.1, "near-duplicates": 0.2, "vocabulary": 0.35, "tokens": 0.35}

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Dataset:
    """Prepared text on disk. `*_bytes` are the raw UTF-8 lengths of the documents: BPB's denominator."""

    directory: Path
    name: str
    vocab_size: int  # with bos, the last id
    bos: int
    train_tokens: int  # with one bos a document
    val_bytes: int
    test_bytes: int

    def tokens(self, split: str) -> np.memmap[Any, Any]:
        """The token ids of `train`, `val` or `test`, (tokens,) uint16 or uint32, read-only."""
        if split not in SPLITS:
            raise DataError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        return np.memmap(self.directory / f"{split}.bin", _token_type(self.vocab_size), mode="r")

    def token_bytes(self) -> NDArray[np.int32]:
        """(vocab_size,) int32: how many bytes each token spells, 0 for bos."""
        vocabulary = tokenizer.load(self.directory / "tokenizer.tiktoken")
        return np.array([len(token) for token in vocabulary], np.int32)


def prepare(
    source: str | None = None,
    *,
    vocab_size: int = 8192,
    root: Path,
    progress: Progress | None = None,
    limit_bytes: int | None = None,
) -> Dataset:
    """Make the data of a source under `root`; if it is there and whole, only verify it.

    `source` is None for the embedded corpus, a file, a directory, or `hf:OWNER/NAME`; `limit_bytes` takes
    only its first bytes of text (of train, where the source brings a split). `progress(label, fraction)`
    hears of the work, the fraction rising from 0 to 1 over all of it. Raises DataError for text that cannot
    be used; nothing half-made stays.
    """
    if not tokenizer.SMALLEST <= vocab_size <= tokenizer.LARGEST:
        raise DataError(
            f"a vocabulary of {vocab_size:,}: expected {tokenizer.SMALLEST} to {tokenizer.LARGEST:,}"
        )
    progress = progress or (lambda label, fraction: None)
    tell = _overall(progress)
    found = find_source(source)
    recipe = json.dumps([FORMAT, found.fingerprint, vocab_size, limit_bytes])
    directory = root / f"{found.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:10]}"
    with suppress(DataError):
        return open_dataset(directory)
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:  # held until the file is closed or this process dies
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that prepares data", 0.0)
            fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(DataError):
            return open_dataset(directory)  # another process has built it meanwhile
        building = root / ".building"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        try:
            _build(found, building, vocab_size, limit_bytes, tell)
            shutil.rmtree(directory, ignore_errors=True)  # damaged, or not there
            building.rename(directory)
            _sync(root)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return open_dataset(directory)


def open_dataset(directory: Path) -> Dataset:
    """The data in a directory that `prepare` made, after verifying every file; else DataError."""
    again = "run `python -m agent prepare`"
    try:
        manifest = json.loads((directory / "manifest.json").read_bytes())
        if manifest["format"] != FORMAT:
            raise DataError(f"{directory}: format {manifest['format']}, expected {FORMAT}; {again}")
        for name, checksum in manifest["files"].items():
            if _checksum(directory / name) != checksum:
                raise DataError(f"{directory / name}: damaged, its checksum differs; {again}")
        vocab_size, documents = manifest["vocab_size"], manifest["splits"]
        dataset = Dataset(
            directory=directory,
            name=manifest["name"],
            vocab_size=vocab_size,
            bos=vocab_size - 1,
            train_tokens=documents["train"]["tokens"],
            val_bytes=documents["val"]["bytes"],
            test_bytes=documents["test"]["bytes"],
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"no prepared data: {error.filename} is missing; {again}") from None
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{directory / 'manifest.json'}: damaged ({error!r}); {again}") from None
    for split, size in (("val", dataset.val_bytes), ("test", dataset.test_bytes)):
        if dataset.token_bytes()[dataset.tokens(split)].sum() != size:
            raise DataError(f"{directory}: {split} is not the {size:,} bytes it should be; {again}")
    return dataset


class _Documents:
    """N different documents, their text in one mapped file; origin, size and digest are (N,) arrays."""

    def __init__(self, file: Path, source: Source, limit: int | None, tell: Progress) -> None:
        hashes, sizes, splits = array("Q"), array("q"), []
        with file.open("wb") as spool:
            for document in read(source, limit, lambda fraction: tell("reading", fraction)):
                spool.write(document.text)
                sizes.append(len(document.text))
                splits.append(document.split)
                hashes.extend(
                    (_hash(document.origin.encode(errors="surrogatepass")), _hash(document.text))
                )
        both, size = np.array(hashes, np.uint64).reshape(-1, 2), np.array(sizes, np.int64)
        kept = np.sort(np.unique(both[:, 1], return_index=True)[1])
        self.start, self.size = (np.cumsum(size) - size)[kept], size[kept]
        self.origin, self.digest = both[kept].T
        self.splits = [splits[i] for i in kept] if source.splits else []
        self.repeated = len(size) - len(kept)
        self._text = np.memmap(file, np.uint8, mode="r") if len(kept) else np.empty(0, np.uint8)

    def text(self, i: int) -> bytes:
        return self._text[self.start[i] : self.start[i] + self.size[i]].tobytes()


def _build(
    source: Source, directory: Path, vocab_size: int, limit: int | None, tell: Progress
) -> None:
    """Fill an empty directory with the files that the module's docstring lists."""
    spool = directory / "text"
    documents = _Documents(spool, source, limit, tell)
    if documents.splits:
        split = given(documents.splits, documents.size)
    else:
        split = assign(documents.origin, documents.size, documents.digest)
    dropped = alike(split, documents.text, lambda fraction: tell("near-duplicates", fraction))
    split[dropped] = DROPPED
    order = np.argsort(documents.digest)  # mixes the origins
    members = {name: order[split[order] == i].tolist() for i, name in enumerate(SPLITS)}
    for name, indices in members.items():
        if not indices:
            raise DataError(
                f"of {len(split):,} different documents none is left for {name}: what is meant for {name} holds no text or repeats the others; "
                "each of train, val and test needs 1 of its own: bring more varied text"
            )
    vocabulary = tokenizer.train(_sample(documents, members["train"], tell), vocab_size)
    tokenizer.save(vocabulary, directory / "tokenizer.tiktoken")
    splits = {}
    for name, indices in members.items():
        splits[name] = _write_shard(directory / f"{name}.bin", documents, indices, vocabulary, tell)
    spool.unlink()
    files = sorted(directory.iterdir())
    manifest = {
        "format": FORMAT,
        "name": source.name,
        "vocab_size": vocab_size,
        "splits": splits,
        "repeated_documents": documents.repeated,
        "near_duplicates": len(dropped),
        "files": {file.name: _checksum(file) for file in files},
    }
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    for path in (*files, directory / "manifest.json", directory):
        _sync(path)


def _sample(documents: _Documents, indices: list[int], tell: Progress) -> Iterator[str]:
    """The first TRAINING_BYTES of the documents."""
    taken, enough = 0, min(TRAINING_BYTES, int(documents.size[indices].sum()))
    for i in indices:
        if taken >= enough:
            return
        yield documents.text(i).decode()
        taken += int(documents.size[i])
        tell("vocabulary", taken / enough)


def _write_shard(
    file: Path, documents: _Documents, indices: list[int], vocabulary: list[bytes], tell: Progress
) -> dict[str, int]:
    """Write bos and the tokens of each document; returns the counts of the shard."""
    encoder, bos = tokenizer.encoding(vocabulary), len(vocabulary) - 1
    length = np.array([len(token) for token in vocabulary])
    total, tokens, spelled = int(documents.size[indices].sum()), 0, 0

    def encode(i: int) -> NDArray[Any]:  # text that looks like a special token is text
        ids = encoder.encode_to_numpy(documents.text(i).decode(), disallowed_special=())
        return np.concatenate(([bos], ids)).astype(_token_type(len(vocabulary)))

    with file.open("wb") as shard, ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(indices), ENCODED_AT_ONCE):
            for ids in pool.map(encode, indices[first : first + ENCODED_AT_ONCE]):
                shard.write(ids.tobytes())
                tokens, spelled = tokens + len(ids), spelled + int(length[ids].sum())
                if file.stem == "train":
                    tell("tokens", spelled / total)
    if spelled != total:
        raise AssertionError(f"{file.name}: its tokens spell {spelled:,} bytes of {total:,}")
    return {"documents": len(indices), "bytes": total, "tokens": tokens}


def _overall(progress: Progress) -> Progress:
    """From a fraction of a stage to a rising fraction of the whole, told at most 1,000 times."""
    start = dict(zip(STAGES, accumulate(STAGES.values(), initial=0.0), strict=False))
    reached = -1.0

    def tell(stage: str, fraction: float) -> None:
        nonlocal reached
        overall = start[stage] + STAGES[stage] * fraction
        if overall - reached >= 0.001:
            reached = overall
            progress(stage, overall)

    return tell


def _token_type(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if vocab_size <= 65_536 else np.uint32


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Bring a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
