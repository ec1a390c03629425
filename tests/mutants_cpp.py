"""Places where one small change makes a C++ kernel another program: found in the text, between its comments.

The sources are laid out by clang-format, so that a binary operator has a blank on either side and nothing else has: no parser is needed to
tell `a * b` from `T* b`, or `a < b` from `<T>`. A change that does not compile all the same is counted as not built.

What is not mutated: comments, strings, preprocessor lines, templates' heads, checks of arguments, registration, and constants that carry a
`// tune:` note, which by their contract change no value (sizes of tiles, grains of threads).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mutants_python import Site

OPERATORS = {
    "+": ("-", "arithmetic operator"), "-": ("+", "arithmetic operator"),
    "*": ("/", "arithmetic operator"), "/": ("*", "arithmetic operator"), "%": ("/", "arithmetic operator"),
    "<<": (">>", "arithmetic operator"), ">>": ("<<", "arithmetic operator"),
    "&": ("|", "arithmetic operator"), "|": ("&", "arithmetic operator"),
    "<": ("<=", "comparison"), "<=": ("<", "comparison"), ">": (">=", "comparison"), ">=": (">", "comparison"),
    "==": ("!=", "comparison"), "!=": ("==", "comparison"),
    "&&": ("||", "condition"), "||": ("&&", "condition"),
    "+=": ("-=", "accumulation"), "*=": ("=", "accumulation"), "|=": ("=", "accumulation"),
}  # fmt: skip
FUNCTIONS = {
    "std::max": "std::min",
    "std::min": "std::max",
    "std::sqrt": "std::cbrt",
    "std::log": "std::log2",
    "fast_exp": "std::exp2",
    "rational_tanh": "exp_of",
    "exp_of": "rational_tanh",
}
STRIDES = {".row": ".column", ".column": ".row"}
NOT_VALUES = re.compile(
    r"// tune\b|^\s*template\b|^\s*using\b|static_assert|constexpr int k|^LAB_|^\s*m\.(def|impl)\("
)
# Called by no shipped kernel, the words of an error, and advice to the operating system: no change there can show.
WITHOUT_EFFECT = re.compile(
    r"^(?:inline float fast_(?:exp|tanh)|inline std::string describe|Tensor new_buffer)\(.*?^}",
    re.M | re.S,
)
OPERAND = r"\w+(?:::\w+)?(?:\.\w+)?(?:<\w+>)?(?:\([^()]*\)|\[[^\[\]]*\])?(?![\w(<\[.:])"
DECLARATION = re.compile(r"^(const |float |int64_t |T )|[*&]\s*\w+$|^\s*$|[\[{]")


def sites(source: str) -> list[Site]:
    """Every change of a C++ file, in the order of the text."""
    text = _visible(source)
    found = {*_operators(text), *_constants(text), *_branches(text), *_loops(text), *_calls(text)}
    return sorted(
        s for s in found if text[s.start : s.end].strip() and s.text != text[s.start : s.end]
    )


def _visible(source: str) -> str:
    """The source with blanks in place of everything that is not to be mutated; offsets stay."""

    def blank(found: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", found[0])

    lines = [" " * len(line) if NOT_VALUES.search(line) else line for line in source.split("\n")]
    text = re.sub(
        r'//[^\n]*|"[^"\n]*"|^#(?:[^\n]*\\\n)*[^\n]*', blank, "\n".join(lines), flags=re.M
    )
    text = WITHOUT_EFFECT.sub(blank, text)
    for check in reversed(list(re.finditer(r"STD_TORCH_CHECK\(", text))):
        end = _closing(text, check.end() - 1) + 1
        text = text[: check.start()] + re.sub(r"[^\n]", " ", text[check.start() : end]) + text[end:]
    return text


def _closing(text: str, opening: int) -> int:
    """Position of the parenthesis that closes the one at `opening`."""
    depth = 0
    for i in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError(f"no closing parenthesis for the one at {opening}")


def _headers(text: str) -> list[range]:
    """The spans of `for (...)`: a changed step there would not end."""
    return [range(m.end(), _closing(text, m.end() - 1)) for m in re.finditer(r"\bfor \(", text)]


def _operators(text: str) -> Iterator[Site]:
    headers = _headers(text)
    for found in re.finditer(r"(?<= )([-+*/%&|<>=!]{1,2})(?= )", text):
        start, end, operator = found.start(), found.end(), found[1]
        in_header = any(start in header for header in headers)
        if operator not in OPERATORS or (
            in_header and operator.endswith("=") and operator not in "<=>="
        ):
            continue
        other, kind = OPERATORS[operator]
        yield Site(start, end, other, kind)
        if operator == "+=" and not in_header:
            yield Site(start, end, "=", "accumulation")
        if operator in ("+", "-"):
            # the term is multiplied away, with all its factors
            yield Site(start, end, f"{operator} 0 *", "dropped term")
        if operator in ("*", "/"):
            factor = re.match(rf" {OPERAND}", text[end:])
            if factor:
                yield Site(start - 1, end + factor.end(), "", "dropped factor")


def _constants(text: str) -> Iterator[Site]:
    for found in re.finditer(r"(?<![\w.])(\d+\.\d*(?:e[-+]?\d+)?)(f?)\b", text):
        value, suffix = float(found[1]), found[2]
        for other in (value * 1.01, value * 2) if value else (1.0,):
            yield Site(found.start(), found.end(), f"{other!r}{suffix}", "constant")
    for found in re.finditer(r"(?<![\w.])(\d+)(u?)(?![\w.])", text):
        value = int(found[1])
        for other in (value + 1, value - 1) if value else (1,):
            yield Site(found.start(), found.end(), f"{other}{found[2]}", "constant")


def _branches(text: str) -> Iterator[Site]:
    for found in re.finditer(r"\bif \(", text):
        opening = found.end() - 1
        condition = text[opening + 1 : _closing(text, opening)]
        yield Site(opening + 1, opening + 1 + len(condition), f"!({condition})", "condition")
    for found in re.finditer(r" \? ", text):
        yield Site(found.start(), found.end(), " && false ? ", "condition")
        yield Site(found.start(), found.end(), " || true ? ", "condition")


def _loops(text: str) -> Iterator[Site]:
    for header in _headers(text):
        parts = text[header.start : header.stop].split(";")
        if len(parts) == 3 and (bound := re.search(r" < ([^;]+)$", parts[1])):
            at = header.start + len(parts[0]) + 1 + bound.start(1)
            yield Site(at, at + len(bound[1]), f"({bound[1]}) - 1", "loop bound")


def _calls(text: str) -> Iterator[Site]:
    for found in re.finditer(r"(?<![\w:])((?:std::)?\w+)(?:<[\w, ]*>)?\(", text):
        name = found[1]
        if name in ("for", "if", "while", "switch", "return"):
            continue
        closing = _closing(text, found.end() - 1)
        if text[closing + 1 :].lstrip().startswith(("{", "const {", ":")):
            # the head of a definition
            continue
        if name in FUNCTIONS:
            yield Site(found.start(1), found.end(1), FUNCTIONS[name], "function")
        arguments = _split(text, found.end(), closing)
        for (a, b), (c, d) in zip(arguments, arguments[1:], strict=False):
            first, second = text[a:b], text[c:d]
            if first != second and not any(map(DECLARATION.search, (first, second))):
                yield Site(a, d, second + text[b:c] + first, "swapped arguments")
    for stride, other in STRIDES.items():
        for found in re.finditer(rf"\w{re.escape(stride)}\b", text):
            yield Site(found.start() + 1, found.end(), other, "index")


def _split(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Spans of the arguments between two parentheses, without their outer blanks."""
    spans, depth, begin = [], 0, start
    for i in range(start, end + 1):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(text[i], 0)
        if (text[i] == "," and depth == 0) or i == end:
            inner = text[begin:i]
            left = len(inner) - len(inner.lstrip())
            spans.append((begin + left, begin + len(inner.rstrip())))
            begin = i + 1
    return spans
