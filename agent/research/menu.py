"""What the model is told about the researcher's tools: names, descriptions, arguments, and how much of each a session may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.research.draft import Mistake
from agent.research.messages import Tool

MODEL = "model"  # the "op" of a submission that changes no kernel
MAX_HYPOTHESIS = 400  # characters: the subject of a commit and a line of the memory
PAST = 30  # experiments in a list
MAX_COUNT = 10**9  # the ledger's integers end at 2^63
_TEXT, _COUNT = {"type": "string"}, {"type": "integer"}


@dataclass(frozen=True)
class ToolLimits:
    """By tool: how often it may be called in a session, and how many characters an answer has."""

    calls: Mapping[str, int] = field(
        default_factory=lambda: {
            "read": 60, "search": 40, "edit": 80, "write": 30, "diff": 20, "check": 16,
            "inspect": 10, "profile": 8, "history": 20, "submit": 10,
        }
    )  # fmt: skip
    characters: Mapping[str, int] = field(
        default_factory=lambda: {
            "read": 24_000, "search": 8_000, "edit": 2_000, "write": 2_000, "diff": 16_000, "check": 8_000,
            "inspect": 16_000, "profile": 8_000, "history": 12_000, "submit": 2_000,
        }
    )  # fmt: skip


def menu(limits: ToolLimits, ops: list[str], editable: str) -> tuple[Tool, ...]:
    """The tools, in the order in which a session uses them. `editable`: the surface in words."""
    known = ", ".join(ops)
    past = {"number": _COUNT, "run": _TEXT, "op": _TEXT, "words": _TEXT, "most": _COUNT}

    def tool(
        name: str,
        description: str,
        required: Mapping[str, Any],
        optional: Mapping[str, Any] | None = None,
    ) -> Tool:
        schema = {
            "type": "object",
            "properties": {**required, **(optional or {})},
            "required": list(required),
            "additionalProperties": False,
        }
        calls, characters = limits.calls[name], limits.characters[name]
        bounds = f"At most {calls} calls per session and {characters:,} characters per answer."
        return Tool(name, f"{description} {bounds}", schema)

    return (
        tool("read",
            "Read a file with numbered lines, or its lines `first` to `last`: kernels/, csrc/ and model/ as the draft has them, "
            "bench/contracts/<op>.py (what an op means; fixed) and program.md.",
            {"path": _TEXT}, {"first": _COUNT, "last": _COUNT}),
        tool("search",
            "Lines that match a regular expression (grep -E) in the files that can be read; `files` is a glob such as csrc/*.",
            {"pattern": _TEXT}, {"files": _TEXT}),
        tool("edit",
            f"Replace `old`, which has to match exactly one place of the file, character by character, by `new`. Editable: {editable}.",
            {"path": _TEXT, "old": _TEXT, "new": _TEXT}),
        tool("write",
            f"Write a whole file; an empty text deletes it. Editable: {editable}.",
            {"path": _TEXT, "text": _TEXT}),
        tool("diff", "The draft against the incumbent.", {}),
        tool("check",
            "Put the draft through the gates scope, static, build and correctness; a refusal says how to repair it. Nothing is recorded. "
            "Takes some 15 s per op beside the build, and waits for a trial that is under way.",
            {}),
        tool("inspect",
            "What compilers make of an op of the draft: which of its C++ loops are vectorised, and its Triton kernels for this GPU, or sm_90 without one (registers, "
            "spills, shared memory, instruction mix, memory and matrix instructions of the hot loop in SASS and PTX; integers are taken as "
            f"multiples of 16, as the trial's sizes are); first what this device runs. Ops: {known}.",
            {"op": _TEXT}),
        tool("profile",
            "With `op`: the time of each of its implementations on the trial's shapes and its % of the roofline, draft beside "
            "incumbent, and by operator what a call of the draft is made of, forward and backward. Without: a training step of the draft by op "
            "and operator, with the share of each.",
            {}, {"op": _TEXT}),
        tool("history",
            "Past experiments. With `number` (of this run, or of `run`): that one, with what each gate said, the times by shape, and its "
            f"patch. Without: a list, latest last, of those that fit `op`, `words` and `run`, at most `most` (up to {PAST}).",
            {}, past),
        tool("submit",
            f"End the session with the draft as the proposal, one change: its `hypothesis` (what and why, up to {MAX_HYPOTHESIS} "
            f"characters), the effect `expected`, and the `op` that it is about ({known} or {MODEL}). Check it first.",
            {"hypothesis": _TEXT, "expected": _TEXT, "op": _TEXT}),
    )  # fmt: skip


def checked(tool: Tool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, without those that are null. Raises Mistake where they do not fit the schema."""
    properties, required = tool.schema["properties"], tool.schema["required"]
    given: dict[str, Any] = {name: value for name, value in arguments.items() if value is not None}
    expects = f"{tool.name} takes {', '.join(properties) or 'no arguments'}"
    unknown, missing = sorted(set(given) - set(properties)), sorted(set(required) - set(given))
    if unknown or missing:
        what = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
        raise Mistake(f"{expects}; {what}")
    for name, value in given.items():
        if properties[name]["type"] == "integer":
            if type(value) is not int or not 1 <= value <= MAX_COUNT:
                raise Mistake(
                    f"{expects}; {name} is an integer from 1 to {MAX_COUNT:,}, got {str(value)[:80]!r}"
                )
        elif not isinstance(value, str) or not _is_text(value):
            raise Mistake(f"{expects}; {name} is a string of UTF-8 text, got {ascii(value)[:80]}")
    return given


def _is_text(value: str) -> bool:
    """False for null characters and for the lone surrogates that JSON can spell."""
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False
