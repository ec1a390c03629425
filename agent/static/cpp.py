"""What a C++ or CUDA file of the surface may not contain: read as it is written, and as the preprocessor gives it to the compiler.

The text as written shows every branch, those for other machines too; the preprocessed text shows what macros and pasted words become. Of
the latter only the lines that come from csrc/ are read (agent/static/preprocessed.py). Words and headers are listed in
agent/static/cpp_names.py; what the object imports is read in agent/static/symbols.py.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from agent.bare_code import CPP_TOKENS, without_comments
from agent.static import cpp_names as names
from agent.static.cpp_clock import clocks
from agent.static.preprocessed import TIMEOUT_S, Unread, preprocess
from agent.static.python import Report


def inspect(tree: Path, path: str, source: str) -> Report:
    """Read a file of csrc/ as it is written and, unless it is a header, preprocessed with the headers of `tree`."""
    report = inspect_source(path, source)
    if report.refusals or not path.endswith((".cpp", ".cu")):
        return report
    try:
        lines = preprocess(tree.resolve(), path, source)
    except subprocess.TimeoutExpired:
        report.refusals.append((1, f"not through the preprocessor within {TIMEOUT_S} s"))
        return report
    except Unread as unread:
        report.refusals.append((1, str(unread)))
        return report
    if lines is None:
        hidden = "and what it becomes cannot be seen: no compiler is here, or it reports an error"
        report.refusals += [(line, f"{what}, {hidden}") for line, what in _pasted(source, tree)]
        return report
    for name, number, line in lines:
        # A line of a header is reported at line 1 of the file that includes it, with the header's name.
        place, prefix = (number, "") if name == path else (1, f"{name}:{number}: ")
        code = without_comments(line, strings=False)
        found = [*_words(code), *_whole_ops(line)]
        found += [what for _, what in _directives(line)]
        report.refusals += [(place, f"{prefix}{text}, after the preprocessor") for text in found]
    text = without_comments("\n".join(line for _, _, line in lines))
    bare = without_comments(text, strings=False)
    over_lines = [*_over_lines(bare), *_dispatched(text)]
    over_lines += _host_assemblies(text) if path.endswith(".cu") else _assemblies(text)
    over_lines += clocks(bare)
    report.refusals += [(1, f"{what}, after the preprocessor") for _, what in over_lines]
    report.refusals = sorted(set(report.refusals))
    return report


def inspect_source(path: str, source: str) -> Report:
    """Read one file of csrc/ as it is written."""
    report = Report()
    # A compiler ends a line at a carriage return too, and passes over a form feed.
    if odd := re.search(r"\0|\ufffd|[\v\f\x1c-\x1e\x85\u2028\u2029]|\r(?!\n)", source):
        said = "not UTF-8 text whose lines end in a newline alone: kernels are built from source, nothing else is taken"
        report.refusals.append((_line(source, odd), said))
        return report
    spliced = _spliced(source)
    code = without_comments(spliced, strings=False)
    directives = without_comments(spliced)  # an #include's name is a string
    found = {*_directives(directives), *_code(code), *_strings(path, directives)}
    found |= set(clocks(code))
    # To the compiler a quote that is never closed takes the rest of its line, an opened comment included.
    left = CPP_TOKENS.sub(lambda m: "\n" * m[0].count("\n"), spliced)
    found |= {
        (_line(left, m), "a quote that is never closed: close it")
        for m in re.finditer("[\"']", left)
    }
    # A raw string keeps the lines that a backslash would join: what is a directive there may be one for the preprocessor.
    found |= {*_directives(without_comments(source)), *_raw(source), *_raw(spliced)}
    report.refusals = sorted(found)
    for match in re.finditer(r"#\s*include\s*<(torch/extension\.h|ATen/ATen\.h)>", directives):
        text = f"<{match[1]}> costs 20 s a build; torch/csrc/stable/ costs 2 s (see csrc/lab.h)"
        report.advice.append((_line(directives, match), text))
    for match in names.CLOCKS.finditer(code):
        text = (
            f"`{match[1]}`: right in an autotuner on its first call; the judge keeps its own clock"
        )
        report.advice.append((_line(code, match), text))
    for line, text in _pasted(source, None):
        report.advice.append((line, f"{text}; it is read after the preprocessor"))
    return report


def _raw(text: str) -> Iterator[tuple[int, str]]:
    for match in CPP_TOKENS.finditer(text):
        if match["raw"] and "\n" in match[0]:
            yield _line(text, match), "a raw string over several lines; write one string a line"


def _line(text: str, match: re.Match[str]) -> int:
    return text.count("\n", 0, match.start()) + 1


def _spliced(source: str) -> str:
    """Lines that end in a backslash joined with the next, as the compiler does; the newlines follow, so that line numbers stay."""
    lines: list[str] = []
    joined, owed = "", 0
    for line in source.split("\n"):
        whole = line.rstrip(" \t\r")
        if whole.endswith("\\"):
            joined, owed = joined + whole[:-1], owed + 1
        else:
            lines += [joined + line, *[""] * owed]
            joined, owed = "", 0
    return "\n".join([*lines, *([joined] if owed else [])])


def _pasted(source: str, tree: Path | None) -> list[tuple[int, str]]:
    """(line, sentence) where words are pasted together, in the file or, then at line 1, in a header of `tree`."""
    texts = [("", source)]
    if tree is not None:
        headers = sorted((tree / "csrc").glob("*.h"))
        texts += [(f"csrc/{h.name}", h.read_text(errors="replace")) for h in headers]
    found = []
    for header, text in texts:
        code = without_comments(_spliced(text), strings=False)
        for match in names.PASTE.finditer(code):
            line = _line(code, match)
            place, prefix = (1, f"{header}:{line}: ") if header else (line, "")
            found.append((place, f"{prefix}`##` pastes words together"))
    return found


def _directives(code: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(code.splitlines(), 1):
        directive = re.match(r"\s*(?:#|%:|\?\?=)\s*(\w+)\s*(.*)", line)
        if directive is None:
            continue
        if directive[1] in ("include", "include_next", "import", "embed"):
            yield from ((number, text) for text in _include(directive[1], directive[2].strip()))
        if re.search(r"__has_(include|embed)", directive[2]):
            yield number, "`__has_include`: what a machine has is no business of a kernel"
        # GNU writes `#line 7` as `# 7`.
        if directive[1] in ("line", "ident") or directive[1].isdigit():
            yield number, f"#{directive[1]}: lines keep their own numbers and names; leave it out"
        if directive[1] == "pragma" and names.OMP.match(directive[2]):
            yield (
                number,
                "#pragma omp parallel: built without -fopenmp, so it runs on one thread; use torch::stable::parallel_for",
            )
        if directive[1] == "shadows":  # agent/static/preprocessed.py puts it there
            yield (
                number,
                f"headers of the system include {directive[2]} of csrc/ in place of their own; name it otherwise",
            )
        if directive[1] == "pragma" and re.match(
            r"(comment|redefine_extname|weak|init|fini|GCC\s+(system_header|pch_preprocess|dependency))",
            directive[2],
        ):
            yield (
                number,
                f"#pragma {directive[2].split()[0]}: the linker and the preprocessor are left alone",
            )


def _include(kind: str, name: str) -> Iterator[str]:
    own = re.fullmatch(r'"\w+\.h"', name)
    system = re.fullmatch(r"<([\w./+-]+)>", name) or re.fullmatch(
        r'"((?:torch|ATen|c10|cuda)[\w./+-]*)"', name
    )
    if kind in ("include", "include_next") and own:
        return
    if kind != "include" or system is None or ".." in name:
        yield f'#{kind} {name}: include a header of csrc/ as "name.h", or a system header by its name'
    elif names.REACHING.search(system[1]) or (
        system[1] not in names.STANDARD and not system[1].startswith(names.FAMILIES)
    ):
        hint = names.HINTS.get(
            system[1], "; a kernel needs arithmetic, torch's headers and the C++ containers"
        )
        yield f"#include <{system[1]}>: not among the headers that a kernel has business with{hint}"


def _words(code: str) -> Iterator[str]:
    """What is wrong with a piece of code without comments and strings, wherever it stands."""
    for match in names.WORDS.finditer(code):
        yield f"`{match[1]}`: a kernel has no business with processes, files, libraries or the environment"
    for match in names.CALLS.finditer(code):
        yield f"call of `{match[1]}`: a kernel has no business with processes, files or the network"
    for match in names.THREADS.finditer(code):
        yield f"`{match[1]}`: use torch::stable::parallel_for, the pool that the trial counts on"
    for match in names.ATTRIBUTES.finditer(code):
        yield f"attribute `{match[1]}`: code that runs at load time or replaces another symbol"


def _code(code: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_statements(code), 1):
        yield from ((number, text) for text in _words(line))
    for match in names.TORCH_OWN.finditer(code):
        yield (
            _line(code, match),
            f"registers into `{match[1]}`: torch's own operators stay as they are",
        )
    for match in names.REGISTERS.finditer(code):
        yield (
            _line(code, match),
            f"`{match[1]}`: register by LAB_SCHEMAS and LAB_KERNELS (csrc/lab.h), in the file's own namespace",
        )
    yield from _over_lines(code)
    for match in re.finditer(r"\\[uU][0-9a-fA-F]{4}", code):
        yield _line(code, match), "a universal character name in code; write the letter"


def _over_lines(code: str) -> Iterator[tuple[int, str]]:
    """What may be broken over lines anywhere: clocks that are kept, and attributes that place code."""
    for match in names.LASTING.finditer(code):
        yield (
            _line(code, match),
            "a clock that is kept from call to call; measure time within one call only",
        )
    for match in names.PLACED.finditer(code):
        yield _line(code, match), f"attribute `{match[1]}`: it puts code elsewhere"


def _statements(code: str) -> list[str]:
    """Lines; a call whose parenthesis follows on the next line is joined with it."""
    return re.sub(
        r"(\w|::)([ \t]*)\n(\s*)(?=\(|::)", lambda m: m[1] + " " + m[3], code
    ).splitlines()


def _strings(path: str, code: str) -> Iterator[tuple[int, str]]:
    """What is wrong with what stands in strings: assembly, and operators that are called by name."""
    if not path.endswith(".cu"):
        yield from _assemblies(code)
    else:
        yield from _host_assemblies(code)
    yield from (
        (n, text) for n, line in enumerate(code.splitlines(), 1) for text in _whole_ops(line)
    )
    yield from _dispatched(code)


def _dispatched(code: str) -> Iterator[tuple[int, str]]:
    for match in names.DISPATCH.finditer(code):
        yield _line(code, match), f"`{match[1]}` of a name that is not written out; write it out"


def _whole_ops(line: str) -> Iterator[str]:
    for match in names.TORCH_OWN_STRING.finditer(re.sub(r'"\s*"', "", line)):  # "at" "en" is one
        yield f"registers into `{match[1] or match[2]}`: torch's own operators stay as they are"
    for match in names.WHOLE_OPS.finditer(line):
        yield f"`{match[1]}` of torch: a library's whole op is an implementation of its own; name it in IMPLEMENTATIONS"


def _assemblies(code: str) -> Iterator[tuple[int, str]]:
    """Inline assembly that is not plain arithmetic, or that cannot be read, in code with its strings."""
    for match in names.ASM.finditer(code):
        whole = code[match.end() : match.end() + 1] in (":", ")")
        if problem := _assembly(match[1]) if whole else "that cannot be read":
            yield _line(code, match), f"inline assembly {problem}; use intrinsics (immintrin.h)"
    bare = without_comments(code, strings=False)
    for match in names.ASM_UNREAD.finditer(bare):
        yield (
            _line(bare, match),
            "inline assembly that cannot be read: its text has to be written out; use intrinsics (immintrin.h)",
        )


def _host_assemblies(code: str) -> Iterator[tuple[int, str]]:
    """Inline assembly of a CUDA file that is no PTX, in code with its strings."""
    for match in names.ASM.finditer(code):
        found = names.HOST_ASM.search(match[1])
        if found or code.startswith('R"', match.end()):
            what = (
                f"`{found[1]}` of the host; a CUDA kernel writes PTX"
                if found
                else 'in a raw string; write it as "..."'
            )
            yield _line(code, match), f"inline assembly {what}"


def _assembly(text: str) -> str:
    """What is wrong with a template of inline assembly; "" if nothing is."""
    parts = re.findall(r'"(?:\\.|[^"\\])*"', text)
    # C++ ends a number such as \x00a elsewhere than Python.
    if not parts or any(re.search(r"[\r\n]|\\[^nt\"\\]", part) for part in parts):
        return "that cannot be read"
    template = "".join(str(ast.literal_eval(part)) for part in parts)
    for instruction in re.split(r"[\n;]", template):
        words = re.sub(r"^\s*\{(?:vex|evex)\}", "", instruction).split()
        # Behind a label, `x : syscall`, or in `x = y`, anything may stand.
        if words and not (
            names.INSTRUCTION.fullmatch(words[0]) and not re.search("[:=]", instruction)
        ):
            return f"`{instruction.strip()}`"
    return ""
