"""How much knowledge a source file may carry: weights, tables and answers are learned in the trial, not brought along.

A kernel's own settings are small: the longest table of this project has 15 numbers, its longest line of text 200 characters, and all its files
together 1,700 numbers. There are limits for each literal, for the sum of a file, for what a change adds to all files together, and for text
without spaces, which is how data is packed into strings. Data can take other forms, such as names or the order of lines: whatever the form, a
compressor finds how much of it is new.
"""

from __future__ import annotations

import ast
import re
import zlib
from collections.abc import Iterable, Iterator

from agent.bare_code import CPP_TOKENS, without_comments, without_docstrings

MAX_STRING = 2_000  # bytes of one string, if it is no docstring
MAX_DOCSTRING = 20_000
MAX_STRINGS = 16_000  # bytes of all strings of a file, docstrings left out
MAX_PACKED = 200  # characters of a string without a space
MAX_NUMBERS = 512  # in one literal: a table of weights, not of settings
MAX_ALL_NUMBERS = 1_024  # in a file
MAX_ADDED = 16_000  # bytes that a change may add over all its files, a number counted as eight
MAX_NEW = (
    24_000  # bytes of a change's new lines, compressed: 2,000 lines of this project take 20,000
)
MAX_FILE = 64_000  # characters: the longest file of this project has 36,000, and some readings take the square of it
MAX_BITS = 64  # of one integer; more would hold as much as a table
_SAYS = "weights and tables are learned in the trial, not brought along"
_Docstringed = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_Table = ast.List | ast.Tuple | ast.Set | ast.Dict


def oversized(path: str, source: str) -> Iterator[tuple[int, str]]:
    """(line, sentence) of each literal of a source file that is too large; nothing for Python that does not parse."""
    if len(source) > MAX_FILE:
        yield 1, f"{len(source):,} characters in one file, at most {MAX_FILE:,}; {_SAYS}"
        return
    found = _python(source) if path.endswith(".py") else _cpp(source)
    yield from ((line, f"{what}; {_SAYS}") for line, what in found)


def too_much_added(files: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """What is wrong with a change of files, each (path, before, after), if all of them together carry too much: no one file shows that."""
    files = list(files)
    added = sum(_carried(path, after) - _carried(path, before) for path, before, after in files)
    if added > MAX_ADDED:
        yield f"{added:,} bytes of numbers and strings are added to all files together, at most {MAX_ADDED:,}; {_SAYS}"
    new = sum(_new(_code(path, before), _code(path, after)) for path, before, after in files)
    if new > MAX_NEW:
        yield f"the code of all files together takes {new:,} bytes more when compressed, names included, at most {MAX_NEW:,}; {_SAYS}"


def _new(before: str, after: str) -> int:
    """Bytes that the new lines take when they are compressed."""
    known = set(before.splitlines())
    lines = [line for line in after.splitlines() if line not in known]
    return len(zlib.compress("\n".join(lines).encode(errors="replace"), level=9))


def _code(path: str, source: str) -> str:
    """A file without what a program cannot read: comments and docstrings. Nothing for Python that does not parse."""
    if not path.endswith(".py"):
        return without_comments(source)
    tree = _parsed(source)
    if tree is None:
        return ""
    # A sum of some hundred terms, or a no-break space in the braces of an f-string: the text as it stands counts, comments included.
    try:
        return ast.unparse(without_docstrings(tree))
    except (RecursionError, ValueError):
        return source


def _carried(path: str, source: str) -> int:
    """Bytes of a file's strings, docstrings left out, and eight for each number (in Python also for None, True and the like); 0 for Python that does not parse."""
    if not path.endswith(".py"):
        bare = without_comments(source, strings=False)
        numbers = sum(bool(match["number"]) for match in _TOKENS.finditer(bare))
        return len(without_comments(source)) - len(bare) + 8 * numbers
    tree = _parsed(source)
    if tree is None:
        return 0
    docstrings = _docstrings(tree)
    values = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in docstrings]  # fmt: skip
    return sum(len(v) if isinstance(v, str | bytes) else 8 for v in values)


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _docstring(node: ast.AST) -> ast.Constant | None:
    if isinstance(node, _Docstringed) and node.body:
        match node.body[0]:
            case ast.Expr(value=ast.Constant(value=str()) as text):
                return text
    return None


def _docstrings(tree: ast.Module) -> set[int]:
    """The ids of the nodes that are docstrings."""
    return {id(text) for node in ast.walk(tree) if (text := _docstring(node))}


def _python(source: str) -> Iterator[tuple[int, str]]:
    tree = _parsed(source)
    if tree is None:
        return
    docstrings = _docstrings(tree)
    strings = numbers = 0
    tables: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            value = node.value
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            size = len(text.encode(errors="replace"))
            documents = id(node) in docstrings
            strings += 0 if documents else size
            yield from (
                (node.lineno, what)
                for what in _text(text, size, MAX_DOCSTRING if documents else MAX_STRING)
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float | complex):
            numbers += 1
            if isinstance(node.value, int) and node.value.bit_length() > MAX_BITS:
                yield (
                    node.lineno,
                    f"an integer of {node.value.bit_length():,} bits, at most {MAX_BITS}",
                )
        elif isinstance(node, _Table) and id(node) not in tables:
            inside = list(ast.walk(node))
            # Nested ones are reported with the outermost.
            tables |= {id(n) for n in inside}
            count = sum(
                isinstance(n, ast.Constant) and isinstance(n.value, int | float | complex)
                for n in inside
            )
            if count > MAX_NUMBERS:
                yield node.lineno, f"a table of {count:,} numbers, at most {MAX_NUMBERS}"
    yield from _sums(strings, numbers)


def _text(text: str, size: int, limit: int) -> Iterator[str]:
    if size > limit:
        yield f"a literal of {size:,} bytes, at most {limit:,}"
        return
    longest = max((len(word) for word in text.split()), default=0)
    if longest > MAX_PACKED:
        yield f"{longest:,} characters without a space, at most {MAX_PACKED}: packed data"


def _sums(strings: int, numbers: int) -> Iterator[tuple[int, str]]:
    if strings > MAX_STRINGS:
        yield 1, f"{strings:,} bytes of strings, at most {MAX_STRINGS:,}"
    if numbers > MAX_ALL_NUMBERS:
        yield 1, f"{numbers:,} numbers in one file, at most {MAX_ALL_NUMBERS:,}"


# A number, what may stand between the numbers of a table, and anything else, which ends the table.
_TOKENS = re.compile(
    r"(?P<number>(?:0[xX][\da-fA-F.']+(?:[pP][-+]?\d+)?|\.?\d(?:[eE][-+]|[\w.'])*)\w*)|(?P<between>[-+,{}()\s]+)|(?P<word>\w+)|(?P<other>.)",
    re.S,
)


def _cpp(source: str) -> Iterator[tuple[int, str]]:
    code = without_comments(source)
    strings = 0

    def line(match: re.Match[str], text: str) -> int:
        return text.count("\n", 0, match.start()) + 1

    for match in CPP_TOKENS.finditer(code):
        if match["number"]:
            continue
        size = len(match.group())
        strings += size
        for what in _text(match.group(), size, MAX_STRING):
            yield line(match, code), what
    bare = without_comments(source, strings=False)
    numbers = run = 0
    for match in _TOKENS.finditer(bare):
        run = 0 if match["word"] or match["other"] else run + bool(match["number"])
        numbers += bool(match["number"])
        if run == MAX_NUMBERS + 1:
            yield line(match, bare), f"a table of more than {MAX_NUMBERS} numbers"
    yield from _sums(strings, numbers)
