"""Preparing text: exact bytes, disjoint splits, whole directories or none, and errors that name the place."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard

from bench import tokenizer
from bench.corpus import DataError, Document, find_source, read
from bench.data import Dataset, open_dataset, prepare
from bench.split import TEST, TRAIN, VAL, assign

SPLITS = ("train", "val", "test")
ROOT = Path(__file__).parents[1]


def prose(seed: int, words: int = 120) -> str:
    """Invented words with what a byte tokenizer may cut in half."""
    draw = random.Random(seed)
    syllables = "ka to mi ren sol é ß 漢字 かな 🙂 👩‍🔬 ñu lor vex".split()
    rare = (chr(0x4E00 + draw.randrange(5000)) for _ in range(9))
    return " ".join((*("".join(draw.choices(syllables, k=3)) for _ in range(words)), *rare, "\r\n"))


def jsonl(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def spelled(dataset: Dataset, tokens: Iterable[int]) -> bytes:
    """The bytes of the tokens; not always UTF-8, since a token may be half a character."""
    vocabulary = tokenizer.load(dataset.directory / "tokenizer.tiktoken")
    return b"".join(vocabulary[int(token)] for token in tokens)


def documents(dataset: Dataset, split: str) -> list[str]:
    tokens = dataset.tokens(split)
    assert tokens[0] == dataset.bos
    ends = np.cumsum(dataset.token_bytes()[tokens])
    cuts = [*ends[tokens == dataset.bos].tolist(), int(ends[-1])]
    text = spelled(dataset, tokens)
    return [text[start:end].decode() for start, end in pairwise(cuts)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [prose(seed) for seed in range(150)]


@pytest.fixture(scope="module")
def source(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    return jsonl(tmp_path_factory.mktemp("source") / "tales.jsonl", texts)


@pytest.fixture(scope="module")
def tiny(source: str, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare(source, vocab_size=300, root=tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare(root=tmp_path_factory.mktemp("embedded"))


def test_every_document_comes_back_byte_for_byte_in_exactly_one_split(tiny, texts):
    came = [text for split in SPLITS for text in documents(tiny, split)]
    assert sorted(came) == sorted(texts)


def test_token_bytes_sum_to_the_raw_length_though_tokens_are_half_characters(tiny):
    def whole(token: int) -> bool:
        try:
            spelled(tiny, [token]).decode()
        except UnicodeDecodeError:
            return False
        return True

    assert not all(whole(int(token)) for token in np.unique(tiny.tokens("val")))
    for split, size in (("val", tiny.val_bytes), ("test", tiny.test_bytes)):
        raw = sum(len(text.encode()) for text in documents(tiny, split))
        assert tiny.token_bytes()[tiny.tokens(split)].sum() == raw == size
    assert tiny.token_bytes()[tiny.bos] == 0
    assert tiny.train_tokens == len(tiny.tokens("train"))
    assert (tiny.directory / "train.bin").stat().st_size == 2 * tiny.train_tokens


def test_text_that_looks_like_a_special_token_is_text(tmp_path):
    texts = [f"<|bos|> {prose(seed)} <|endoftext|>" for seed in range(8)]
    dataset = prepare(jsonl(tmp_path / "a.jsonl", texts), vocab_size=257, root=tmp_path / "data")
    assert sorted(t for split in SPLITS for t in documents(dataset, split)) == sorted(texts)


def test_a_vocabulary_above_65536_is_stored_in_uint32(tmp_path, monkeypatch, source, texts):
    """With every pair of bytes as a token, since training so many takes 20 s."""
    one = [bytes([i]) for i in range(256)]
    pairs = [first + second for first in one for second in one]
    monkeypatch.setattr(tokenizer, "train", lambda sample, vocab_size: [*one, *pairs, b""])
    dataset = prepare(source, vocab_size=65_793, root=tmp_path)
    assert dataset.tokens("val").dtype == np.uint32
    assert dataset.tokens("val").max() == dataset.bos == 65_792
    assert sorted(text for split in SPLITS for text in documents(dataset, split)) == sorted(texts)


def test_near_duplicates_are_dropped_from_the_held_out_splits_only(tmp_path, texts):
    altered = [text.replace(" ", " - ").replace("ka", "KA") for text in texts[:40]]
    dataset = prepare(
        jsonl(tmp_path / "a.jsonl", texts + altered), vocab_size=300, root=tmp_path / "d"
    )
    manifest = json.loads((dataset.directory / "manifest.json").read_text())
    kinds = {text: i for i, text in enumerate(texts)} | {text: i for i, text in enumerate(altered)}
    train, val, test = ({kinds[text] for text in documents(dataset, split)} for split in SPLITS)
    assert manifest["near_duplicates"] > 0
    assert not train & (val | test)
    assert not val & test


def parted(folder: Path, texts: list[str]) -> str:
    """A folder whose files say what trains, what selects and what tests: 130, 10 and 10 texts."""
    folder.mkdir()
    jsonl(folder / "train_a.jsonl", texts[:60])
    jsonl(folder / "train_b.jsonl", texts[60:130])
    jsonl(folder / "val.jsonl", texts[130:140])
    jsonl(folder / "test.jsonl", texts[140:150])
    return str(folder)


def test_files_that_are_named_after_a_split_keep_to_it(tmp_path, texts):
    dataset = prepare(parted(tmp_path / "text", texts), vocab_size=300, root=tmp_path)
    parts = (texts[:130], texts[130:140], texts[140:150])
    for split, expected in zip(SPLITS, parts, strict=True):
        assert sorted(documents(dataset, split)) == sorted(expected)


def test_a_limit_takes_less_of_train_and_all_that_is_held_out(tmp_path, texts):
    limit = sum(len(text.encode()) for text in texts[:20])
    folder = parted(tmp_path / "text", texts)
    dataset = prepare(folder, vocab_size=300, root=tmp_path, limit_bytes=limit)
    assert sorted(documents(dataset, "train")) == sorted(texts[:20])
    assert len(documents(dataset, "val")) == len(documents(dataset, "test")) == 10


def test_held_out_text_of_a_given_split_that_repeats_train_is_dropped_too(tmp_path, texts):
    folder = Path(parted(tmp_path / "text", texts))
    jsonl(folder / "val_b.jsonl", [texts[0].replace(" ", " - ")])
    dataset = prepare(str(folder), vocab_size=300, root=tmp_path)
    assert sorted(documents(dataset, "val")) == sorted(texts[130:140])
    assert json.loads((dataset.directory / "manifest.json").read_text())["near_duplicates"] == 1


def test_a_file_of_no_split_beside_a_split_and_too_much_held_out_text_are_refused(
    tmp_path, texts, monkeypatch
):
    folder = Path(parted(tmp_path / "text", texts))
    monkeypatch.setattr("bench.split.LARGEST", 100)
    with pytest.raises(DataError, match="bytes of val: expected at most 100"):
        prepare(str(folder), vocab_size=300, root=tmp_path / "data")
    (folder / "notes.txt").write_text("of nothing")
    with pytest.raises(
        DataError, match=r"notes.txt: its name begins with none of train, val, test"
    ):
        prepare(str(folder), vocab_size=300, root=tmp_path / "data")


def test_exact_repetitions_are_kept_once(tmp_path, texts):
    once = prepare(jsonl(tmp_path / "a.jsonl", texts), vocab_size=300, root=tmp_path)
    thrice = prepare(jsonl(tmp_path / "b.jsonl", texts * 3), vocab_size=300, root=tmp_path)
    assert np.array_equal(once.tokens("train"), thrice.tokens("train"))
    assert json.loads((thrice.directory / "manifest.json").read_text())["repeated_documents"] == 300


def test_when_all_held_out_documents_repeat_train_the_error_counts(tmp_path):
    texts = [prose(0) + "x" * i for i in range(9)]
    with pytest.raises(
        DataError,
        match=r"of 9 different documents none is left for val: .*holds no text or repeats",
    ):
        prepare(jsonl(tmp_path / "a.jsonl", texts), vocab_size=300, root=tmp_path / "data")


def test_the_same_text_gives_the_same_files_whatever_the_order_of_documents(tiny, tmp_path, texts):
    again = prepare(jsonl(tmp_path / "tales.jsonl", texts[::-1]), vocab_size=300, root=tmp_path)
    for name in ("train.bin", "val.bin", "test.bin", "tokenizer.tiktoken"):
        assert (again.directory / name).read_bytes() == (tiny.directory / name).read_bytes()


def test_each_origin_and_each_length_has_its_share_of_val_and_test():
    draw = np.random.default_rng(0)
    origin = np.repeat(np.array([1, 2, 3], np.uint64), [6200, 1240, 620])
    size = np.where(draw.random(8060) < 0.3, 30_000, 500)
    split = assign(origin, size, draw.integers(0, 2**64, 8060, dtype=np.uint64))
    for held_out in (VAL, TEST):
        assert [int((split[origin == o] == held_out).sum()) for o in (1, 2, 3)] == [100, 20, 10]
        assert abs(int((split[size > 500] == held_out).sum()) - 39) <= 3
    assert (split == TRAIN).sum() == 8060 - 260


def test_a_large_corpus_holds_out_about_three_megabytes_each():
    size = np.full(1000, 1_000_000)
    keys = np.arange(1000, dtype=np.uint64)
    split = assign(np.zeros(1000, np.uint64), size, keys)
    assert size[split == VAL].sum() == pytest.approx(3e6, rel=0.35)
    assert size[split == TEST].sum() == pytest.approx(3e6, rel=0.35)


def test_the_embedded_corpus_has_fair_splits_and_no_dictionary_header(embedded):
    assert 300_000 < embedded.val_bytes < 500_000
    assert 300_000 < embedded.test_bytes < 500_000
    assert (embedded.vocab_size, embedded.bos, embedded.name) == (8192, 8191, "embedded")
    lengths = embedded.token_bytes()
    assert lengths[embedded.tokens("val")].sum() == embedded.val_bytes
    assert embedded.val_bytes / len(embedded.tokens("val")) > 3.8  # bytes a token
    for split, size in (("val", embedded.val_bytes), ("test", embedded.test_bytes)):
        text = spelled(embedded, embedded.tokens(split))
        assert len(text) == size
        assert b"00-database" not in text


def test_the_second_call_only_verifies(embedded):
    """Without torch, tokenizer or decompression, without a stage of preparing, and without writing."""
    before = {file: file.stat().st_mtime_ns for file in embedded.directory.iterdir()}
    code = f"""
import sys
from pathlib import Path
from bench.data import prepare
heard = []
dataset = prepare(root=Path({str(embedded.directory.parent)!r}), progress=lambda *said: heard.append(said))
assert not heard, heard
assert not {{"torch", "rustbpe", "tiktoken", "zstandard"}} & set(sys.modules)
print(dataset.directory)
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.strip() == str(embedded.directory), ran.stderr
    assert {file: file.stat().st_mtime_ns for file in embedded.directory.iterdir()} == before


def test_progress_rises_from_0_to_1_and_names_the_stages(tmp_path, source):
    heard: list[tuple[str, float]] = []
    prepare(source, vocab_size=300, root=tmp_path, progress=lambda *said: heard.append(said))
    fractions = [fraction for _, fraction in heard]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] < 0.01
    assert fractions[-1] == pytest.approx(1)
    stages = ["reading", "near-duplicates", "vocabulary", "tokens"]
    assert list(dict.fromkeys(label for label, _ in heard)) == stages


def test_a_changed_source_vocabulary_or_limit_gives_other_data(tmp_path, texts):
    file = jsonl(tmp_path / "a.jsonl", texts)
    made = {prepare(file, vocab_size=300, root=tmp_path).directory}
    made.add(prepare(file, vocab_size=301, root=tmp_path).directory)
    made.add(prepare(file, vocab_size=300, limit_bytes=20_000, root=tmp_path).directory)
    jsonl(tmp_path / "a.jsonl", texts[1:])
    made.add(prepare(file, vocab_size=300, root=tmp_path).directory)
    assert len(made) == 4


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tokenizer.tiktoken", "manifest.json"])
def test_damage_is_found_named_and_mended(tmp_path, source, name):
    dataset = prepare(source, vocab_size=300, root=tmp_path)
    file = dataset.directory / name
    whole = file.read_bytes()
    file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(DataError, match=f"{name}.*damaged.*python -m agent prepare"):
        open_dataset(dataset.directory)
    prepare(source, vocab_size=300, root=tmp_path)
    assert file.read_bytes() == whole
    file.unlink()
    with pytest.raises(DataError, match=f"{name} is missing; run `python -m agent prepare`"):
        open_dataset(dataset.directory)


def test_data_that_was_never_prepared_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match="no prepared data: .*run `python -m agent prepare`"):
        open_dataset(tmp_path / "nowhere")


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from bench.data import prepare
def stop(stage, fraction):
    if stage == sys.argv[3] and fraction >= float(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
prepare(sys.argv[1], vocab_size=300, root=Path(sys.argv[2]), progress=stop)
"""


@pytest.mark.parametrize(
    ("stage", "fraction"),
    [("reading", 0.05), ("near-duplicates", 0.2), ("vocabulary", 0.5), ("tokens", 0.9)],
)
def test_a_kill_leaves_nothing_half_written(tmp_path, source, tiny, stage, fraction):
    command = [sys.executable, "-c", KILLED_AT, source, str(tmp_path), stage, str(fraction)]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    dataset = prepare(source, vocab_size=300, root=tmp_path)
    shards = [each.directory / "train.bin" for each in (dataset, tiny)]
    assert shards[0].read_bytes() == shards[1].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", dataset.directory.name]


@pytest.mark.parametrize("stage", ["reading", "near-duplicates", "vocabulary", "tokens"])
def test_an_interrupt_passes_through_and_cleans_up(tmp_path, source, stage):
    def interrupt(label: str, fraction: float) -> None:
        if label == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, vocab_size=300, root=tmp_path, progress=interrupt)
    assert os.listdir(tmp_path) == [".lock"]


def test_two_processes_at_once_build_once_and_agree(tmp_path, source):
    code = """
import sys
from pathlib import Path
from bench.data import prepare
stages = set()
made = prepare(sys.argv[1], vocab_size=300, root=Path(sys.argv[2]), progress=lambda s, f: stages.add(s))
print("reading" in stages, made.directory)
"""
    command = [sys.executable, "-c", code, source, str(tmp_path)]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = sorted(process.communicate()[0].split() for process in running)
    assert [built for built, _ in said] == ["False", "True"]
    assert said[0][1] == said[1][1]
    open_dataset(Path(said[0][1]))


def _read(path: Path) -> list[Document]:
    return list(read(find_source(str(path)), None, lambda fraction: None))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_jsonl_is_read_plain_and_compressed(tmp_path, texts, suffix):
    lines = [json.dumps({"id": f"tales/{i}", "text": text}) for i, text in enumerate(texts)]
    raw = ("\n".join(lines) + "\n\n").encode()
    if suffix == ".jsonl.gz":
        raw = gzip.compress(raw)
    if suffix == ".jsonl.zst":  # two frames, as parallel compressors write them
        half = len(raw) // 2
        raw = zstandard.compress(raw[:half]) + zstandard.compress(raw[half:])
    (tmp_path / f"a{suffix}").write_bytes(raw)
    assert _read(tmp_path) == [Document("tales", text.encode()) for text in texts]


def test_parquet_is_read(tmp_path, texts):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"n": range(150), "text": texts}), tmp_path / "a.parquet")
    assert [document.text.decode() for document in _read(tmp_path)] == texts


def test_bad_parquet_is_named_with_its_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"body": ["a"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: expected a column `text`; it has: body, n"):
        _read(tmp_path)
    parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=r"a\.parquet, row 2: expected a string in `text`, got None"
    ):
        _read(tmp_path)
    halves = pyarrow.array([b"a", b"\xff"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": halves}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 2: not UTF-8"):
        _read(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match=r"a\.parquet: not readable as parquet"):
        _read(tmp_path)


def test_parquet_without_its_extra_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install -e '\.\[parquet\]'"):
        _read(tmp_path)


def test_plain_text_is_cut_at_paragraphs_and_loses_nothing(tmp_path):
    paragraph = "one line of words\nand another one\n"
    text = (paragraph * 3 + "\n") * 200 + "long " * 20 + (paragraph * 3000)
    (tmp_path / "a.txt").write_text(text)
    cut = _read(tmp_path / "a.txt")
    assert b"".join(document.text for document in cut).decode() == text
    assert all(4_000 <= len(document.text) < 32_100 for document in cut[:-1])
    assert all(document.text.endswith(b"\n\n") for document in cut[:4])


BAD = {
    "a.txt": (b"fine\n\xff\xfe\n", r"a\.txt, line 2: not UTF-8"),
    "b.txt": (b"", r"b\.txt: the file is empty"),
    "a.jsonl": (b'{"text": "a"}\n{"text": \n', r"a\.jsonl, line 2: broken JSON"),
    "b.jsonl": (b'{"text": "a"}\n{"text": "\xff"}\n', r"b\.jsonl, line 2: not UTF-8"),
    "c.jsonl": (b'{"body": "a", "n": 1}\n', r"c\.jsonl, line 1: .*`text`; it has: body, n"),
    "d.jsonl": (b"[1]\n", r"d\.jsonl, line 1: .*`text`; it has: a list"),
    "e.jsonl": (b'{"text": 7}\n', r"e\.jsonl, line 1: expected a string in `text`, got int"),
    "f.jsonl": (b'{"text": "\\ud800"}\n', r"f\.jsonl, line 1: not UTF-8"),
    "g.jsonl": (b'{"text": "a"}\n\n{"text": "b"}\n', r"2 different documents came.*at least 3"),
    "h.jsonl": (b"\n\n", r"0 different documents came.*at least 3"),
    "a.jsonl.gz": (b"\x1f\x8b not gzip", r"a\.jsonl\.gz: cannot be read"),
    "b.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 99)[:-9], r"b\.jsonl\.gz: cannot be read"),
    "a.jsonl.zst": (b"not zstandard", r"a\.jsonl\.zst: cannot be read"),
    "b.jsonl.zst": (
        zstandard.compress(os.urandom(999).hex().encode())[:-9],
        r"b\.jsonl\.zst: cannot be read: the file is cut off",
    ),
    "a.csv": (b"text\na\n", r"a\.csv: unknown kind of file; known are \.parquet, \.jsonl"),
    "dir/a.csv": (b"text\na\n", r"dir: no file to read here; known are \.parquet, \.jsonl"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_leaves_nothing(tmp_path, name):
    content, message = BAD[name]
    file = tmp_path / "in" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    where = file.parent if "/" in name else file
    with pytest.raises(DataError, match=message):
        prepare(str(where), vocab_size=300, root=tmp_path / "data")
    assert not (tmp_path / "data").exists() or os.listdir(tmp_path / "data") == [".lock"]


def test_unusable_requests_say_what_is_expected(tmp_path, source):
    with pytest.raises(DataError, match="nowhere: no such file or directory"):
        prepare(str(tmp_path / "nowhere"), root=tmp_path)
    with pytest.raises(DataError, match="vocabulary of 256: expected 257 to 262,144"):
        prepare(source, vocab_size=256, root=tmp_path)
    with pytest.raises(
        DataError, match="too small for a vocabulary of 8,192: it gives [0-9,]+ tokens"
    ):
        prepare(source, root=tmp_path)
    with pytest.raises(DataError, match="expected hf:OWNER/NAME"):
        prepare("hf:nobody", root=tmp_path)


def test_a_hub_dataset_is_streamed_up_to_the_limit(tmp_path, monkeypatch, texts):
    asked: list[tuple[str, str, bool]] = []

    def load_dataset(name: str, *, split: str, streaming: bool) -> list[dict[str, str]]:
        asked.append((name, split, streaming))
        return [{"text": text} for text in texts]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    dataset = prepare("hf:some/tales", vocab_size=300, limit_bytes=40_000, root=tmp_path)
    kept = [text for split in SPLITS for text in documents(dataset, split)]
    assert asked == [("some/tales", "train", True)]
    assert sorted(kept) == sorted(texts[: len(kept)])
    assert 40_000 <= sum(len(text.encode()) for text in kept) < 45_000


def test_a_hub_dataset_without_extra_network_or_text_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the extra `hf`: pip install -e '\.\[hf\]'"):
        prepare("hf:some/tales", root=tmp_path)

    def unreachable(name: str, *, split: str, streaming: bool) -> None:
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=unreachable))
    with pytest.raises(DataError, match="cannot be streamed.*network.*Couldn't reach 'some/tales'"):
        prepare("hf:some/tales", root=tmp_path)
    rows = SimpleNamespace(load_dataset=lambda *_, **__: [{"story": "a"}])
    monkeypatch.setitem(sys.modules, "datasets", rows)
    with pytest.raises(
        DataError, match="hf:some/tales, row 1: expected a column `text`; it has: story"
    ):
        prepare("hf:some/tales", root=tmp_path)


def test_a_given_split_without_held_out_text_is_an_error_in_words(tmp_path, texts):
    folder = tmp_path / "text"
    folder.mkdir()
    jsonl(folder / "train.jsonl", texts)
    for name in ("val.txt", "test.txt"):
        (folder / name).write_text("\n")
    with pytest.raises(DataError, match="meant for val"):
        prepare(str(folder), vocab_size=300, root=tmp_path / "data")


def test_a_file_in_the_place_of_a_folder_is_no_prepared_data(tmp_path):
    (tmp_path / "text.txt").write_text("of nothing")
    with pytest.raises(DataError, match="no prepared data: .*run `python -m agent prepare`"):
        open_dataset(tmp_path / "text.txt")
