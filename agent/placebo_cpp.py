"""Changes of C++ that change tokens and nothing that runs: a local variable under another name, two functions in the other order.

Both work on the text. A name is replaced everywhere in the file, and only if it is nowhere a member, a call or part of a macro; a mistake
would not compile.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from agent.bare_code import CPP_TOKENS

_DECLARED = re.compile(r"^\s+(?:const )?(?:int64_t|int|float|double|auto|bool) (\w+) = ", re.M)
_NOT_PLAIN = r"(?:\.|->|::|#)\s*{0}\b|\b{0}\s*(?:\(|::|<\w)|^[ \t]*#.*\b{0}\b"
_CONSTANT = re.compile(r"k[A-Z]|[A-Z_0-9]{2,}$")
# A function that begins in the first column, with the comment above it, and ends with a brace there.
_FUNCTION = re.compile(
    r"^(?:(?://|template)[^\n]*\n)*(?!struct|class|enum|union|namespace|using|static_assert)[a-z][\w:<>,&* ]* [&*]?([a-z_]\w*)\((?:[^;{}]|\n)*?\{\n(?:(?!\})[^\n]*\n)*\}\n",
    re.M,
)


def rename(text: str, suffix: str, rng: random.Random) -> tuple[str, str] | None:
    """The text with one local variable renamed to end in `suffix`, and what was done; None if there is none to rename."""
    found = sorted({name for name in _DECLARED.findall(text) if _is_plain(name, text)})
    if not found:
        return None
    name = rng.choice(found)
    new = f"{name}_{suffix}"
    pieces, at = [], 0
    for match in CPP_TOKENS.finditer(text):  # comments and strings stay as they are
        pieces += [re.sub(rf"\b{name}\b", new, text[at : match.start()]), match.group()]
        at = match.end()
    pieces.append(re.sub(rf"\b{name}\b", new, text[at:]))
    return "".join(pieces), f"{name} is called {new}"


def reorder(text: str, rng: random.Random) -> tuple[str, str] | None:
    """The text with two neighbouring functions swapped, the second of which does not need the first; None if no two can be."""
    pairs = list(_neighbours(text))
    if not pairs:
        return None
    one, other = rng.choice(pairs)
    between = text[one.end() : other.start()]
    swapped = text[: one.start()] + other.group() + between + one.group() + text[other.end() :]
    return swapped, f"{other[1]} stands before {one[1]}"


def _neighbours(text: str) -> Iterator[tuple[re.Match[str], re.Match[str]]]:
    functions = list(_FUNCTION.finditer(text))
    for one, other in zip(functions, functions[1:], strict=False):
        apart = bool(text[one.end() : other.start()].strip())
        if not apart and not re.search(rf"\b{one[1]}\b", other.group()):
            yield one, other


def _is_plain(name: str, text: str) -> bool:
    return not _CONSTANT.match(name) and not re.search(_NOT_PLAIN.format(name), text, re.M)
