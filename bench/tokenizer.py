"""A byte-pair tokenizer: trained with rustbpe, applied with tiktoken, kept in tiktoken's text format.

Its tokens are byte strings (one may be half a character); the last id of the vocabulary is `bos`, which
stands before every document and spells nothing.
"""

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bench.corpus import DataError

if TYPE_CHECKING:
    import tiktoken

# Vocabularies: 256 bytes and bos; a row of 2,048 logits each that takes half of the 4 GiB that a judge lends (bench/arena.py).
SMALLEST, LARGEST = 257, 1 << 18

# GPT-4's way to cut text into words, but with numbers cut every 2 digits: a small vocabulary has better
# uses than 1,000 numbers.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)


def train(texts: Iterable[str], vocab_size: int) -> list[bytes]:
    """The bytes of tokens 0 to vocab_size - 1, in order of merging; the last, bos, is empty."""
    import rustbpe

    tokenizer = rustbpe.Tokenizer()
    tokenizer.train_from_iterator(iter(texts), vocab_size - 1, pattern=PATTERN)
    ranks = sorted(tokenizer.get_mergeable_ranks(), key=lambda pair: pair[1])
    tokens = [bytes(token) for token, _ in ranks]
    if len(tokens) < vocab_size - 1:
        raise DataError(
            f"the training text is too small for a vocabulary of {vocab_size:,}: it gives "
            f"{len(tokens) + 1:,} tokens; bring more text or a smaller vocabulary"
        )
    return [*tokens, b""]


def save(tokens: list[bytes], path: Path) -> None:
    """Write one line `base64(token) rank` a token; bos, which has no bytes, is left out."""
    lines = (f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens[:-1]))
    path.write_text("".join(lines), encoding="ascii")


def load(path: Path) -> list[bytes]:
    """The bytes of each token as `train` returned them."""
    lines = path.read_text(encoding="ascii").splitlines()
    return [*(base64.b64decode(line.partition(" ")[0]) for line in lines), b""]


def encoding(tokens: list[bytes]) -> "tiktoken.Encoding":
    """The tiktoken encoder of a vocabulary; its one special token is `<|bos|>`."""
    import tiktoken

    bos = len(tokens) - 1
    return tiktoken.Encoding(
        name=f"bpe-{len(tokens)}",
        pat_str=PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(tokens[:-1])},
        special_tokens={"<|bos|>": bos},
    )
