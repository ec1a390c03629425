"""Near-duplicates: a proposal that is an earlier one in other words is refused before it costs a trial.

A change is read as the statements that it adds and those that it removes. A statement is identified by its content and depth of
nesting, so that one that only moved counts as neither. Comments, layout and docstrings are dropped, and local names are numbered by order of
appearance in their function. What is left is compared by its runs of four tokens (shingles; Broder 1997), with a MinHash signature of HASHES values for each
side. It takes 3 KB of the ledger and estimates the Jaccard similarity with a standard deviation of 0.024 at the threshold; equal sets
always give 1.

Two changes are duplicates if they are at least ALIKE similar both in what they add and in what they remove, have the same numbers
and operators (another constant or sign is another experiment) and have at least MIN_TOKENS tokens each: shorter ones say too little to be called the same.
"""

from __future__ import annotations

import ast
import random
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import eq

from agent.bare_code import without_comments, without_docstrings
from agent.records import Change

ALIKE = 0.92
MIN_TOKENS = 30
SHINGLE = 4  # tokens
HASHES = 128  # values of a signature: one for what is added, one for what is removed

# Number of tokens, hash of the numbers and operators, signature of what is added, signature of what is removed.
Sketch = tuple[int, ...]

_HEAD = 2
# Duplicates agree in at least one of the first six values, but for one pair in four million: so 3,000 comparisons stay below 5 ms.
_PROBE = slice(_HEAD, _HEAD + 6)
_PRIME = 4_294_967_311  # the first beyond 2**32
_EMPTY = _PRIME  # no hash is as large
_RANDOM = random.Random("signatures that the ledger keeps: these constants may not change")
_FACTORS = [(_RANDOM.randrange(1, 2**31), _RANDOM.randrange(2**31)) for _ in range(HASHES)]

_NUMBER = r"\.?\d(?:[eEpP][-+]|[\w.'])*"
_TOKEN = re.compile(
    rf"""(?P<directive>^[ \t]*\#[^\n]*)|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|{_NUMBER}|\w+|<<=|>>=|[-+*/%&|^=!<>]=|->|::|&&|\|\||<<|>>|\+\+|--|\*\*|//|\S""",
    re.M,
)
_NAME = re.compile(r"[A-Za-z_]\w*")
_OPERATOR = re.compile(r"[-+*/%&|^=!<>@~]+")
_TYPES = {*"auto bool char const double float int long short signed unsigned void T".split()}
_NO_TYPES = {
    *"return else case goto new delete throw using namespace typename struct class enum operator sizeof".split()
}


@dataclass(frozen=True)
class Statement:
    """Tokens at a depth of nesting in `block`, the number of a function or other top-level piece, with the names local to that."""

    block: int
    depth: int
    tokens: tuple[str, ...]
    local: frozenset[str]

    def form(self) -> tuple[int, tuple[str, ...]]:
        """The statement without its place and its local names."""
        return self.depth, _numbered(self.tokens, self.local, {})


def sketch(changes: Iterable[Change]) -> Sketch:
    """What a change is like, as 2 + 2 HASHES integers below 2**33, the same on every machine."""
    added: list[str] = []
    removed: list[str] = []
    numbers: list[str] = []
    tokens = 0
    for change in changes:
        before, after = (_statements(change.path, side) for side in (change.before, change.after))
        for sign, grams, found in (
            ("+", added, _beyond(after, before)),
            ("-", removed, _beyond(before, after)),
        ):
            tokens += sum(len(statement.tokens) for statement in found)
            numbers += [
                f"{sign}{token}"
                for s in found
                for token in s.tokens
                if _is_number(token) or _OPERATOR.fullmatch(token)
            ]
            grams += [f"{change.path} {gram}" for gram in _shingles(found)]
    return (tokens, _hash(" ".join(sorted(numbers))), *_signature(added), *_signature(removed))


def likeness(a: Sketch, b: Sketch) -> float:
    """The estimated Jaccard similarity of what two changes add or of what they remove, whichever is smaller; 0 to 1."""
    added, removed = slice(_HEAD, _HEAD + HASHES), slice(_HEAD + HASHES, None)
    alike: int = min(sum(map(eq, a[side], b[side])) for side in (added, removed))
    return alike / HASHES


def is_duplicate(a: Sketch, b: Sketch) -> bool:
    """Whether the rule of this module calls two changes the same."""
    if a[1] != b[1] or min(a[0], b[0]) < MIN_TOKENS or not any(map(eq, a[_PROBE], b[_PROBE])):
        return False
    return likeness(a, b) >= ALIKE


def nearest(changes: Iterable[Change], sketches: Iterable[tuple[int, Sketch]]) -> int | None:
    """The number of the first of the earlier changes, (number, sketch), that this one duplicates."""
    earlier = list(sketches)
    if not earlier:
        return None
    mine = sketch(changes)
    return next((number for number, other in earlier if is_duplicate(mine, other)), None)


# ---- from texts to statements ----


def _statements(path: str, content: bytes | None) -> list[Statement]:
    text = (content or b"").decode(errors="replace")
    if not path.endswith(".py"):
        return list(_cpp(text))
    try:
        return list(_python(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # The static gate will refuse it for that; until then its lines are its statements.
        lines = [tuple(_words(line)) for line in text.splitlines()]
        return [Statement(0, 0, tokens, frozenset()) for tokens in lines if tokens]


def _words(text: str) -> Iterator[str]:
    return (match.group().strip() for match in _TOKEN.finditer(text))


def _python(tree: ast.Module) -> Iterator[Statement]:
    for block, node in enumerate(without_docstrings(tree).body):
        inside = isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
        local = frozenset(_bound(node)) if inside else frozenset()
        for line in ast.unparse(node).splitlines():
            depth = (len(line) - len(line.lstrip())) // 4
            if tokens := tuple(_words(line)):
                yield Statement(block, depth, tokens, local)


def _bound(tree: ast.AST) -> Iterator[str]:
    """Arguments and assigned names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _cpp(text: str) -> Iterator[Statement]:
    """Statements end at ; { } outside parentheses; a brace inside parentheses (a lambda) opens a body of its own."""
    text = without_comments(text).replace("\\\n", " ")
    block: list[tuple[int, list[str]]] = []
    names: set[str] = set()
    # Of each open brace: how many parentheses are open around it, and whether it is a namespace.
    braces: list[tuple[int, bool]] = []
    number = parentheses = 0
    current: list[str] = []
    for match in _TOKEN.finditer(text):
        token = match.group()
        if match["directive"]:
            block.append((0, re.findall(r"\w+|\S", token)))
            continue
        current.append(token)
        within = parentheses > 0 or not all(namespace for _, namespace in braces)
        if token == "}":
            parentheses = braces.pop()[0] if braces else 0
        parentheses += (token in "([") - (token in ")]")
        if (
            within
            and len(current) > 2
            and (_declares(current) or (not parentheses and _goes_on(current)))
        ):
            names.add(current[-2])
        if token in "{}" or (token == ";" and not parentheses):
            block.append((len(braces), current))
            if token == "{":
                braces.append((parentheses, "namespace" in current or "extern" in current))
                parentheses = 0
            current = []
            if token != "{" and all(namespace for _, namespace in braces):
                yield from _block(number, block, names)
                number, block, names = number + 1, [], set()
    yield from _block(number, [*block, (0, current)], names)


def _block(number: int, block: list[tuple[int, list[str]]], names: set[str]) -> Iterator[Statement]:
    local = frozenset(names)
    return (Statement(number, depth, tuple(tokens), local) for depth, tokens in block if tokens)


def _declares(tokens: Sequence[str]) -> bool:
    """Whether the token before the last is a name that is declared here: it follows a type and stands before one of = ; , ) [ { :"""
    name, after = tokens[-2], tokens[-1]
    if after not in "=;,)[{:" or not _NAME.fullmatch(name) or _is_type(name):
        return False
    before, place = tokens[-3], len(tokens) - 3
    while before in ("*", "&", "&&", ">", "const", "__restrict__") and place > 0:
        place -= 1
        before = tokens[place]
        if not _is_type(before) and before not in ("*", "&", "&&", ">"):
            return False  # a product or a comparison
    return bool(_NAME.fullmatch(before)) and before not in _NO_TYPES


def _goes_on(tokens: Sequence[str]) -> bool:
    """Whether the token before the last is a further name of a declaration, as b in `float a = 0.f, b = 0.f;`"""
    before, name, after = tokens[-3:]
    return before == "," and after in "=,;" and bool(_NAME.fullmatch(name)) and _is_type(tokens[0])


def _is_type(word: str) -> bool:
    return word in _TYPES or word.endswith("_t") or (word[:1].isupper() and word != word.upper())


# ---- from statements to numbers ----


def _beyond(these: Sequence[Statement], those: Sequence[Statement]) -> list[Statement]:
    """The statements of `these` that are not also among `those`, each counted as often as it occurs, in order."""
    there = Counter(statement.form() for statement in those)
    found = []
    for statement in these:
        form = statement.form()
        if there[form]:
            there[form] -= 1
        else:
            found.append(statement)
    return found


def _shingles(statements: Sequence[Statement]) -> Iterator[str]:
    """Runs of SHINGLE tokens within each block, so that the order of functions does not matter."""
    blocks: dict[int, list[str]] = defaultdict(list)
    seen: dict[int, dict[str, str]] = defaultdict(dict)
    for each in statements:
        blocks[each.block] += _numbered(each.tokens, each.local, seen[each.block])
    for tokens in blocks.values():
        for start in range(max(1, len(tokens) - SHINGLE + 1)):
            yield " ".join(tokens[start : start + SHINGLE])


def _numbered(
    tokens: Sequence[str], local: frozenset[str], seen: dict[str, str]
) -> tuple[str, ...]:
    """The tokens with local names numbered by order of appearance, which `seen` remembers. An attribute is not a name."""
    return tuple(
        seen.setdefault(token, f"_{len(seen)}")
        if token in local and (place == 0 or tokens[place - 1] not in (".", "->", "::"))
        else token
        for place, token in enumerate(tokens)
    )


def _is_number(token: str) -> bool:
    return token[0].isdigit() or (token[0] == "." and token[1:2].isdigit())


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


def _signature(grams: Iterable[str]) -> Sketch:
    import numpy as np  # 0.1 s, which `--help` need not wait for

    hashes = np.array(sorted({_hash(gram) for gram in grams}), dtype=np.uint64)
    if not hashes.size:
        return (_EMPTY,) * HASHES
    factors, offsets = np.array(_FACTORS, dtype=np.uint64).T
    signature = ((hashes[:, None] * factors + offsets) % np.uint64(_PRIME)).min(axis=0)
    return tuple(int(value) for value in signature)
