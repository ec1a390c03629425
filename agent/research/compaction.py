"""What leaves a conversation that has grown too long, by rule and without asking a model.

The oldest goes first, and in one large step, so that what a provider has cached stays valid for many turns: half of the old tool results,
then all of them, then the old turns themselves. In the place of a result a line says what was there. The first message and the last turns
stay, and a call is never parted from its result, which every provider would refuse.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from agent.research.messages import Prompt, Reply, Results, ToolCall, ToolResult, Turn, User

KEEP_TURNS = 6  # at the end, which stay as they are
# Of the bound. What is dropped stays dropped, so a smaller step would break the cache again after a turn or two.
AIM = 0.6
SHORT = 200  # characters; a result no longer than this is not worth a line in its place
LEFT_OUT = (
    "The turns that stood here were left out to make room. Your edits are in the draft: look at its diff, and read again what "
    "you need."
)


def compact(prompt: Prompt, bound: int, count: Callable[[Prompt], int]) -> tuple[Prompt, int]:
    """The prompt and its tokens, brought below `bound` tokens if any rule here can do that.

    A prompt that fits is returned as it is. Otherwise the mildest step is taken that comes below AIM of the bound, or the strongest.
    """
    tokens = count(prompt)
    if tokens <= bound:
        return prompt, tokens
    old = _old(prompt.turns)
    for turns in (
        _without_results(prompt.turns, 1 + old // 2),
        _without_results(prompt.turns, old),
        _without_turns(prompt.turns, old),
    ):
        shorter = replace(prompt, turns=turns)
        tokens = count(shorter)
        if tokens <= AIM * bound:
            break
    return shorter, tokens


def _old(turns: Sequence[Turn]) -> int:
    """How many turns come before those that stay; results stay with their calls."""
    old = max(1, len(turns) - KEEP_TURNS)
    while old > 1 and isinstance(turns[old], Results):
        old -= 1
    return old


def _without_results(turns: Sequence[Turn], end: int) -> tuple[Turn, ...]:
    """The turns, with a line in place of each long tool result before `end`."""
    calls: dict[str, ToolCall] = {}
    kept: list[Turn] = []
    for index, turn in enumerate(turns):
        if isinstance(turn, Reply):
            calls = {call.id: call for call in turn.calls}
        if isinstance(turn, Results) and index < end:
            turn = replace(turn, results=tuple(_line(r, calls[r.id]) for r in turn.results))
        kept.append(turn)
    return tuple(kept)


def _line(result: ToolResult, call: ToolCall) -> ToolResult:
    if len(result.text) <= SHORT:
        return result
    arguments = json.dumps(call.arguments)
    asked = arguments if len(arguments) <= 80 else arguments[:77] + "..."
    said = f"[left out to make room: {len(result.text):,} characters that {call.name} {asked} gave]"
    return replace(result, text=said)


def _without_turns(turns: Sequence[Turn], old: int) -> tuple[Turn, ...]:
    """The first turn, a line, and the turns from `old` on."""
    return (turns[0], User(LEFT_OUT), *turns[old:]) if old > 1 else tuple(turns)
