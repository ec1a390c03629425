"""Clocks in C++: a kernel may time its own settings, and nothing else may follow from what time it is (agent/static/clock.py).

The two ends of a duration are readings `Clock::now()`, or names that were declared with one in the same function; all else that tells the time is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from agent.static import cpp_names as names

_SAID = (
    "a clock for more than a duration: write `const auto a = std::chrono::steady_clock::now();`, and differences of such names and readings, under "
    "names used for nothing else in that block; in device code clock64(); a function of your own is called otherwise than time or clock"
)
# The head of a lambda, after its parentheses have been taken out; `x[i] = ` is not one.
_LAMBDA = re.compile(r"\](?!\s*(?:[-+*/%&|^]?=(?!=)|,))[^()]*$")
_PARENTHESES = re.compile(r"\([^()]*\)")
_NO_FUNCTION = re.compile(r"\s*(?:inline\s+)?(?:namespace|extern|struct|class|union|enum)\b")
_Stamp = tuple[str, int, int]  # a name, and where it begins and ceases to be one


def clocks(code: str) -> Iterator[tuple[int, str]]:
    """(line, sentence) of readings that are more than the two ends of a duration; in code without comments, whose strings are empty."""
    for match in names.OTHER_CLOCKS.finditer(code):
        yield _line(code, match.start()), _SAID
    ends: set[int] = set()
    stamps: list[_Stamp] = []
    for match in names.STAMP.finditer(code):
        end = _end_of_block(code, match.start())
        if end is not None:
            ends |= {match.start(1), match.start(2)}
            stamps.append((match[1], match.end(), end))
    side = "|".join([names.NOW, *(rf"\b{name}\b" for name, _, _ in stamps)])
    for match in re.finditer(rf"(?<![\w.:>])({side})\s*[-<>]\s*({side})(?!\s*[\w.(:])", code):
        if all(_is_end(code, match[n], match.start(n), stamps) for n in (1, 2)):
            ends |= {match.start(1), match.start(2)}
    asked = [*re.finditer(rf"(?<![\w:]){names.NOW}|(?:\.|->)\s*now\s*\(|::\s*now\b(?!\s*\()", code)]
    for name, begin, end in stamps:
        asked += re.compile(rf"(?<![\w.>]){name}\b").finditer(code, begin, end)
    yield from ((_line(code, each.start()), _SAID) for each in asked if each.start() not in ends)


def _line(code: str, at: int) -> int:
    return code.count("\n", 0, at) + 1


def _is_end(code: str, text: str, at: int, stamps: list[_Stamp]) -> bool:
    """Whether a reading, or the name of one that was taken in the same function, stands there."""
    if "now" in text and "(" in text:
        return True
    begun = [begin for name, begin, end in stamps if name == text and begin <= at < end]
    return bool(begun) and not any(map(_is_lambda, _open(code[begun[-1] : at])))


def _is_lambda(head: str) -> bool:
    for _ in range(50):
        if (less := _PARENTHESES.sub("", head)) == head:
            return bool(_LAMBDA.search(head))
        head = less
    return True


def _open(code: str) -> list[str]:
    """What stands before each brace that is still open at the end of a piece of code."""
    heads: list[str] = []
    start = 0
    for match in re.finditer(r"[;{}]", code):
        if match[0] == "{":
            heads.append(code[start : match.start()])
        elif match[0] == "}" and heads:
            heads.pop()
        start = match.end()
    return heads


def _end_of_block(code: str, at: int) -> int | None:
    """Where the block ends that a declaration stands in; None where that is no function's."""
    heads = _open(code[:at])
    if not any(re.search(r"\)[^()]*$|\]\s*$", h) and not _NO_FUNCTION.match(h) for h in heads):
        return None
    depth = 0
    for match in re.compile(r"[{}]").finditer(code, at):
        depth += 1 if match[0] == "{" else -1
        if depth < 0:
            return match.start()
    return len(code)
