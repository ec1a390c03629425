"""Tunable constants, found and rewritten where they stand, in any language:

    BLOCK_N = 1024  # tune: 512 1024 2048
    constexpr int64_t kGrain = 1 << 14;  // tune: 4096 16384
    #define UNROLL 4  // tune: 1 2 4 8
    num_warps=4,  # tune: 2 4 8

    "depth": 4,  # tune: 2 4 6
    dim=512,  # tune on cuda: 512 640
    constexpr int kRows = 8;  // tune on avx512: 4 8

The value is the constant between the last `=` (or the colon after a key, or the name after #define) and the marker. Choices are numbers,
true and false, or quoted strings; they end at the first word that is none of these, so a remark may follow them. `on` says where a
constant is used and worth searching: on a device (cpu, cuda), or on hardware with this word in its name (bench/hardware.py).
"""

from __future__ import annotations

import ast
import hashlib
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_MARKER = re.compile(
    r"^(?P<code>.*?)(?P<gap>[;,)\s]*)(?P<mark>(?:#|//)\s*tune(?:\s+on\s+(?P<where>\w+))?:\s*)(?P<choices>.*)$"
)
_DEFINE = re.compile(r"^(?P<head>\s*#\s*define\s+(?P<name>\w+)\s+)(?P<value>\S.*)$")
_ENTRY = re.compile(r"""^(?P<head>.*["'](?P<name>\w+)["']\s*:\s*)(?P<value>[^=:]+)$""")
_ASSIGNED = re.compile(r"^(?P<head>.*[^=!<>]=\s*)(?P<value>[^=]+)$")
# A name with its annotation, if it has one.
_NAME = re.compile(r"(?P<name>\w+)\s*(?::\s*[\w\[\]., |]+)?\s*$")
_CHOICE = re.compile(
    r"""[-+]?(?:0[xX][\da-fA-F']+|\d[\d_'.]*(?:[eE][-+]?\d+)?|\.\d+)[fFuUlL]*|[tT]rue|[fF]alse|None|"[^"]*"|'[^']*'"""
)
# The largest exponent and shift: any line may look like a constant, and 9**9**9 would take hours.
MOST_SHIFT = 64
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.LShift: operator.lshift, ast.Mult: operator.mul, ast.Add: operator.add, ast.Sub: operator.sub,
    ast.Div: operator.truediv, ast.Pow: operator.pow, ast.FloorDiv: operator.floordiv,
}  # fmt: skip


@dataclass(frozen=True)
class Tunable:
    """One marked constant: its name, its line (from 0), the columns of its value, the value, the choices, and where it counts."""

    name: str
    line: int
    begin: int
    end: int
    value: str  # as written, or the choice that it equals
    choices: tuple[str, ...]
    where: str = ""  # everywhere

    def applies_to(self, hardware: str) -> bool:
        """Whether it has an effect on a device and hardware of this name."""
        return not self.where or self.where.lower() in re.findall(r"\w+", hardware.lower())


def find(text: str) -> list[Tunable]:
    """The marked constants of a source file, in order.

    One that counts on cuda alone is called `name on cuda`; a name that occurs several times gets #2, #3, ... from its second place on.
    """
    found: list[Tunable] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines()):
        marker = _MARKER.match(line)
        if marker is None:
            continue
        place = _place(marker["code"])
        choices = _choices(marker["choices"])
        if place is None or len(choices) < 2:
            continue
        name, begin, value = place
        where = marker["where"] or ""
        name += f" on {where}" if where else ""
        seen[name] = count = seen.get(name, 0) + 1
        same = [choice for choice in choices if number_of(choice) == number_of(value)]
        if not same:
            choices = (value, *choices)
        unique = name if count == 1 else f"{name}#{count}"
        found.append(
            Tunable(unique, number, begin, begin + len(value), (same or [value])[0], choices, where)
        )
    return found


def _place(code: str) -> tuple[str, int, str] | None:
    """(name, column, text) of the constant that a line of code sets, if it sets one."""
    for form in (_DEFINE, _ASSIGNED, _ENTRY):
        place = form.match(code)
        if place is None or not _is_constant(place["value"]):
            continue
        name = (
            place
            if "name" in form.groupindex
            else _NAME.search(place["head"].rstrip().removesuffix("="))
        )
        if name is not None:
            return name["name"], len(place["head"]), place["value"]
    return None


def rewrite(text: str, values: Mapping[str, str]) -> str:
    """The text with these constants set; everything else stays, layout included.

    Raises KeyError for a name that is not marked and ValueError for a value that is not among its choices.
    """
    lines = text.splitlines(keepends=True)
    known = {tunable.name: tunable for tunable in find(text)}
    for name, value in values.items():
        at = known[name]
        if value not in at.choices:
            raise ValueError(f"{name} = {value}: expected one of {' '.join(at.choices)}")
        if value != at.value:
            lines[at.line] = lines[at.line][: at.begin] + value + lines[at.line][at.end :]
    return "".join(lines)


def template(text: str) -> str:
    """A hash of the text without its marked constants: equal for files that differ only in these."""
    lines = text.splitlines()
    for at in find(text):
        lines[at.line] = lines[at.line][: at.begin] + "?" + lines[at.line][at.end :]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def number_of(value: str) -> Any:
    """A choice's value, so that `1 << 14` equals `16384`; the text itself if it is no constant."""
    plain = re.sub(r"(?<=\d)'(?=\d)", "", value.strip())
    plain = plain if plain.lower().startswith("0x") else re.sub(r"(?<=[\d.])[fFuUlL]+\b", "", plain)
    plain = {"true": "True", "false": "False"}.get(plain, plain)
    try:
        return _evaluate(ast.parse(plain, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
        return value.strip()


def _is_constant(value: str) -> bool:
    return not isinstance(number_of(value), str) or value.strip()[:1] in ("'", '"')


def _evaluate(node: ast.expr) -> Any:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _evaluate(node.left), _evaluate(node.right)
        steep = isinstance(node.op, ast.Pow | ast.LShift)
        if not (_is_sane(left) and _is_sane(right)) or (steep and not 0 <= right <= MOST_SHIFT):
            raise ValueError("not a sane constant")
        return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand)
    if isinstance(node, ast.Constant):
        return node.value
    raise ValueError("not a constant")


def _is_sane(value: Any) -> bool:
    """Whether it may be computed with: "-" * 9**9 takes 387 MB, and each further power of (9**64)**64 makes 64 times as many digits."""
    return isinstance(value, int | float) and abs(value) <= 2**MOST_SHIFT


def _choices(text: str) -> tuple[str, ...]:
    choices: list[str] = []
    for word in text.replace(",", " ").split():
        if not _CHOICE.fullmatch(word):
            break
        if word not in choices:
            choices.append(word)
    return tuple(choices)
