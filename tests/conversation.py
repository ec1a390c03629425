"""A short conversation with a model: the prompt that it begins with, how it goes on, and one that reads two files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from model_servers import Say

from agent.research.messages import Prompt, Reply, Results, Tool, ToolResult, User

READ = Tool("read", "Read a file.", {"type": "object", "properties": {"path": {"type": "string"}}})
PROMPT = Prompt(
    ("You make kernels fast.", "def scale(x): return 2 * x\n" * 40), (READ,), (User("Begin."),)
)
# What a server says in `two_files`; the thought comes in more than one piece.
TWO_FILES = (
    Say(
        "Two files.",
        [("read", {"path": "a"}), ("read", {"path": "b"})],
        thinking="Which of them?",
    ),
    Say("Done."),
)


def after(prompt: Prompt, reply: Reply, *results: ToolResult, note: str = "") -> Prompt:
    return replace(prompt, turns=(*prompt.turns, reply, Results(results, note)))


def two_files(model: Any) -> tuple[Reply, Reply]:
    """The model asks for two files, of which it is given one, and a note; both its answers."""
    first = model.reply(PROMPT, 1000)
    a, b = first.calls
    results = (ToolResult(a.id, "A"), ToolResult(b.id, "no b", True))
    second = model.reply(after(PROMPT, first, *results, note="5 turns are left."), 1000)
    return first, second
