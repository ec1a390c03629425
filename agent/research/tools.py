"""The researcher's tools: read, search and edit a draft, put it through the cheap gates, look into it, look up the past, submit.

Each may be called a bounded number of times in a session and answers with a bounded number of characters (`ToolLimits`); its description
says so, and so does an answer that is cut. A mistake of the model comes back to it as an answer that says what was expected. What builds or
measures holds the machine (agent/machine.py); candidate code runs only in the judge's sandbox.
"""

from __future__ import annotations

import fnmatch
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent import gates, surface
from agent.judging import Unfit
from agent.machine import CORES, DEVICE
from agent.proposers import Context, Workshop
from agent.research import answers
from agent.research.draft import Draft, Mistake, lines_of
from agent.research.menu import MAX_HYPOTHESIS, MODEL, PAST, ToolLimits, checked, menu
from agent.research.messages import ToolCall, ToolResult

SEARCH_S = 5.0
MAX_MATCHES = 200


@dataclass(frozen=True)
class Submission:
    """What a session ends with; `files` are whole texts of those that differ from the incumbent's (None: deleted)."""

    hypothesis: str
    expected: str
    op: str
    files: Mapping[str, str | None]


class Toolbox:
    """The tools of one session, on its draft."""

    def __init__(
        self, draft: Draft, workshop: Workshop, context: Context, limits: ToolLimits | None = None
    ) -> None:
        self._draft, self._workshop, self._context = draft, workshop, context
        self._limits = limits or ToolLimits()
        self._used: Counter[str] = Counter()
        self._ops = workshop.judge.ops()
        self._references = _references(workshop, context)
        ledger, run = workshop.ledger, workshop.run
        # Read before the session submits: its own proposal, when it comes back for a repair, must not count as an earlier one.
        self._judged_as = gates.Context(
            workshop.judge,
            context.op,
            ledger.patch_numbers(run),
            ledger.sketches(run),
        )
        editable = surface.describe(draft.target, draft.op)
        self.tools = menu(self._limits, self._ops, editable)

    def call(self, call: ToolCall) -> ToolResult | Submission:
        """Carry out a call; a mistake in it becomes an answer that says what was expected."""
        try:
            done = self._carry_out(call)
        except Mistake as mistake:
            cut = self._cut(call.name, str(mistake))
            return ToolResult(call.id, cut, is_error=True)
        if isinstance(done, Submission):
            return done
        return ToolResult(call.id, self._cut(call.name, done))

    def _carry_out(self, call: ToolCall) -> str | Submission:
        tool = next((tool for tool in self.tools if tool.name == call.name), None)
        if tool is None:
            known = ", ".join(tool.name for tool in self.tools)
            raise Mistake(f"no tool {call.name!r}: expected one of {known}")
        if call.arguments is None:
            raise Mistake(f"{call.name}: the arguments are no JSON object: {call.problem}")
        arguments = checked(tool, call.arguments)
        if self._used[call.name] >= self._limits.calls[call.name]:
            raise Mistake(
                f"{call.name} may be called {self._limits.calls[call.name]} times in a session, and was; "
                "go on with what you know, or submit"
            )
        self._used[call.name] += 1
        done: str | Submission = getattr(self, f"_{call.name}")(**arguments)
        return done

    def _cut(self, name: str, text: str) -> str:
        limit = self._limits.characters.get(name, 2_000)
        if len(text) <= limit:
            return text
        return f"{text[:limit]}\n[cut: {len(text) - limit:,} more characters than the {limit:,} of an answer]"

    # ---- files

    def _read(self, path: str, first: int = 1, last: int | None = None) -> str:
        lines = lines_of(self._text(path))
        if first > max(1, len(lines)) or (last is not None and last < first):
            raise Mistake(f"{path} has {len(lines)} lines; lines {first} to {last} were asked for")
        shown, room = [], self._limits.characters["read"] - 200  # for the words at the end
        for number, line in enumerate(lines[first - 1 : last], first):
            shown.append(f"{number:5}\t{line}")
            room -= len(shown[-1]) + 1
            if room < 0 and len(shown) > 1:
                shown[-1] = (
                    f"[cut before line {number} of {len(lines)}; read on with first={number}]"
                )
                break
        return "\n".join(shown) or "[an empty file]"

    def _text(self, path: str) -> str:
        return self._references[path] if path in self._references else self._draft.read(path)

    def _search(self, pattern: str, files: str = "*") -> str:
        paths = [*self._draft.paths(), *self._references]
        chosen = [path for path in paths if fnmatch.fnmatchcase(path, files)]
        if not chosen:
            raise Mistake(f"no file matches {files!r}; there are {', '.join(paths)}")
        lines = [(p, n, text) for p in chosen for n, text in enumerate(lines_of(self._text(p)), 1)]
        found = _grep(pattern, "\n".join(text for _, _, text in lines))
        if not found:
            return f"nothing matches in {len(chosen)} files"
        shown = [f"{path}:{n}: {text}" for path, n, text in (lines[i] for i in found[:MAX_MATCHES])]
        more = (
            [f"[{len(found) - MAX_MATCHES} more lines match]"] if len(found) > MAX_MATCHES else []
        )
        return "\n".join([*shown, *more])

    def _edit(self, path: str, old: str, new: str) -> str:
        line = self._draft.replace(path, old, new)
        return f"{path} is edited from line {line} on"

    def _write(self, path: str, text: str) -> str:
        self._draft.write(path, text or None)
        return f"{path} is {'written' if text else 'deleted'}"

    def _diff(self) -> str:
        return self._draft.diff() or "the draft is the incumbent: nothing is changed"

    # ---- the lab

    def _check(self) -> str:
        self._require_change()
        candidate = self._draft.candidate()
        results = list(gates.run(candidate, self._judged_as, gates.EARLY, shop=self._workshop))
        if not results[-1].passed:
            raise Mistake(answers.gates(results))
        return answers.gates(results)

    def _inspect(self, op: str) -> str:
        self._require_op(op)
        with self._workshop.machine.hold(CORES):
            try:
                return answers.inspection(
                    self._workshop.judge.inspect(op, self._draft.tree()), self._context.device
                )
            except Unfit as unfit:
                raise Mistake(f"{op} does not compile: {unfit}") from None

    def _profile(self, op: str | None = None) -> str:
        if op is not None:
            self._require_op(op)
        tree = self._draft.tree()
        self._build(tree)
        beside = self._context.incumbent if op is not None and self._draft.files() else None
        with self._workshop.machine.hold(DEVICE):
            try:
                return answers.profile(self._workshop.judge.profile(op, tree, beside))
            except Unfit as unfit:
                raise Mistake(f"the draft does not run: {unfit}") from None

    def _build(self, tree: Path) -> None:
        """Build what the draft changes, into the cache that every runner can read and none can fill."""
        changed = [path for path in self._draft.files() if surface.is_kernel(path)]
        if changed:
            with self._workshop.machine.hold(CORES):
                built = self._workshop.judge.build(tree, changed)
            if not built.passed:
                raise Mistake(f"the draft does not build: {built.reason}")

    def _history(
        self,
        number: int | None = None,
        run: str | None = None,
        op: str | None = None,
        words: str | None = None,
        most: int = PAST,
    ) -> str:
        ours, history = self._workshop.run, self._context.history
        if number is not None:
            found = self._workshop.ledger.find(run or ours, number)
            if found is None:
                raise Mistake(f"run {run or ours} has no experiment {number}")
            return answers.experiment(found, ours)
        wanted = [
            past
            for past in history
            if (run is None or past.run == run)
            and (op is None or op in past.ops)
            and all(
                w in f"{past.hypothesis} {past.outcome.reason}".lower()
                for w in (words or "").lower().split()
            )
        ]
        if not wanted:
            return f"none of {len(history)} experiments matches"
        last = wanted[-min(most, PAST) :]
        return f"the last {len(last)} of {len(wanted)} that match\n{answers.listed(last, ours)}"

    # ---- the end

    def _submit(self, hypothesis: str, expected: str, op: str) -> Submission:
        hypothesis, expected = " ".join(hypothesis.split()), " ".join(expected.split())
        for name, text in (("hypothesis", hypothesis), ("expected", expected)):
            if not 0 < len(text) <= MAX_HYPOTHESIS:
                raise Mistake(
                    f"{name} has {len(text)} characters: expected 1 to {MAX_HYPOTHESIS}, in words"
                )
        self._require_change()
        files = self._draft.files()
        if op not in (*self._ops, MODEL):
            raise Mistake(f"op {op!r}: expected one of {', '.join([*self._ops, MODEL])}")
        if op == MODEL and not any(not surface.is_kernel(path) for path in files):
            raise Mistake(
                f"op {MODEL!r}, but only kernels are changed: {', '.join(files)}; name the op"
            )
        return Submission(hypothesis, expected, op, files)

    def _require_change(self) -> None:
        if not self._draft.files():
            raise Mistake("the draft is the incumbent: nothing is changed; edit a file first")

    def _require_op(self, op: str) -> None:
        if op not in self._ops:
            raise Mistake(f"op {op!r}: expected one of {', '.join(self._ops)}")


def _references(workshop: Workshop, context: Context) -> dict[str, str]:
    """What can be read beside the draft: the contracts and the research agenda."""
    return workshop.contracts() | ({"program.md": context.agenda} if context.agenda else {})


def _grep(pattern: str, text: str) -> list[int]:
    """Numbers, from 0, of the lines that match. By grep, since `re` has no time limit, and a pattern from outside could hang the loop."""
    command = ["grep", "-naE", "-e", pattern]
    environment = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=SEARCH_S, env=environment)  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Mistake(f"the pattern took more than {SEARCH_S:.0f} s: use a simpler one") from None
    except ValueError:
        raise Mistake("the pattern holds a null character") from None
    if done.returncode > 1:
        raise Mistake(f"grep: {done.stderr.decode(errors='replace').strip()}")
    return [int(line.split(b":", 1)[0]) - 1 for line in done.stdout.split(b"\n") if line]
