"""What a coding agent says at its end: words for a person, or the JSON object with its costs that some print."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from agent.records import Usage

MAX_HYPOTHESIS = 500  # characters
MOST = 1e15  # the largest figure that is believed; the ledger's integers end at 2^63
_EXPECTED = "expected:"
# So begins the last object where claude prints all of them as one array.
_RESULT = '{"type":"result"'
_USAGE = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")  # colours and cursor moves of a terminal


@dataclass(frozen=True)
class Said:
    """What an agent's output comes to: the first line of its last words, and what it says it spent."""

    words: str
    usd: float = 0.0
    usage: Usage = Usage()


def without_escapes(text: str) -> str:
    """The text without what moves a terminal's cursor or changes its colours; lines stay lines."""
    kept = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n").expandtabs()
    return "".join(character for character in kept if character == "\n" or character.isprintable())


def parse(output: str) -> Said:
    """Read the end of an agent's output: a JSON object in its last line, alone or at the end of an array, or plain words."""
    text = without_escapes(output).strip()
    last = _object(text.splitlines()[-1]) if text else None
    if last is None:
        paragraph = re.split(r"\n\s*\n", text)[-1]
        return Said(paragraph.strip().split("\n")[0])
    used = last.get("usage")
    used = used if isinstance(used, dict) else {}
    words = str(last.get("result") or "").strip().split("\n")[0]
    usage = Usage(*(int(_number(used.get(name))) for name in _USAGE))
    return Said(words, _number(last.get("total_cost_usd")), usage)


def split_hypothesis(text: str) -> tuple[str, str]:
    """Hypothesis and expected effect of a text: its first line, and the one that begins with `Expected:`."""
    lines = [line.strip("# ") for line in without_escapes(text).splitlines() if line.strip("# ")]
    marked = [line for line in lines if line.lower().startswith(_EXPECTED)]
    first = next((line for line in lines if line not in marked), "")
    expected = marked[0][len(_EXPECTED) :].strip() if marked else ""
    return first[:MAX_HYPOTHESIS], expected[:MAX_HYPOTHESIS]


def _object(line: str) -> dict[str, Any] | None:
    """The JSON object that a line is, or the last one of the array that it is, whose beginning may be cut off; None if it is neither."""
    for part in (line, line[max(0, line.rfind(_RESULT)) :].removesuffix("]")):
        try:
            found = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return None


def _number(value: Any) -> float:
    """A figure that an agent prints; 0 if it is none."""
    known = isinstance(value, int | float) and 0 <= value < MOST
    return float(value) if known else 0.0
