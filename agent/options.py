"""The options of the command line, of the loop and of each command."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

from agent.records import BEST_EFFORT
from agent.seeds import FIRST

_EPILOG = """\
examples
  python -m agent --target kernels                     improve the kernels until Ctrl-C
  python -m agent --target kernels --op attention --hours 8 --usd 20
  python -m agent --target all --usd 20 --dry-run      what such a night will cost
  python -m agent --resume                             go on with the latest run
  python -m agent report                               what the latest run really gained
  python -m agent gate --op rms_norm --candidate my_rms_norm.cpp
"""

# What the exit status means, where it says more than done or not.
_STATUS = {
    "gate": "0 passed, 1 refused, 2 could not judge",
    "trial": "0 trained and scored, 1 failed, 2 could not begin",
    "doctor": "0 all that is needed is there, 1 something is missing",
    **dict.fromkeys(
        ("report", "prune", "aa"),
        "0 done, or ended at work by Ctrl-C, 2 not, 130 Ctrl-C before that",
    ),
}


def parser() -> argparse.ArgumentParser:
    loop = argparse.ArgumentParser(
        prog="python -m agent",
        description="Improve the kernels and the model, unattended: without a command, the loop. "
        "Exit status: 0 ended, also by Ctrl-C, 2 not begun, or ended by a fault.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # An option that is not given keeps the run's own value under --resume.
        argument_default=argparse.SUPPRESS,
    )
    add = loop.add_argument
    add("--target", choices=("kernels", "model", "all"), help="what may be edited")
    add("--op", help="edit only the files of this op, such as rms_norm")
    _proposer_options(loop)
    _budget_options(loop)
    _trial_options(loop)
    _isolation_option(loop)
    add(
        "--start",
        type=os.path.abspath,  # the run may go on from another folder
        metavar="DIR",
        help="start from the files in DIR, in place of the shipped ones; they must pass the correctness gate",
    )
    add(
        "--resume",
        nargs="?",
        const="",
        default=None,
        metavar="RUN",
        help="go on with a run (default: the latest)",
    )

    commands = loop.add_subparsers(dest="command", title="commands", metavar="[COMMAND]")
    _judging_commands(commands)
    _run_commands(commands)
    for command in commands.choices.values():
        command.set_defaults(takes=frozenset(action.dest for action in command._actions))
    return loop


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, says: str
) -> argparse.ArgumentParser:
    status = _STATUS.get(name, "0 done, 2 not")
    stopped = "" if "Ctrl-C" in status else ", 130 after Ctrl-C"
    described = f"{says[0].upper()}{says[1:]}. Exit status: {status}{stopped}."
    return commands.add_parser(name, help=says, description=described)


def _judging_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Data, the machine, and what judges the working tree."""
    # Unset here and below, or else a subcommand's default would overrule `--data DIR prepare`.
    unset = argparse.SUPPRESS
    prepare = _add(commands, "prepare", "prepare the data, or verify it")
    prepare.add_argument(
        "--data",
        default=unset,
        metavar="DIR|hf:OWNER/NAME",
        help="your own text (default: the embedded corpus)",
    )
    prepare.add_argument(
        "--vocab", type=_positive(int), default=8192, help="size of the vocabulary (default 8192)"
    )

    gate = _add(commands, "gate", "judge a file, or what the working tree changes")
    gate.add_argument("--op", default=unset, help="the op that --candidate computes")
    gate.add_argument(
        "--candidate",
        type=Path,
        metavar="FILE",
        help="a .py, .cpp or .cu file to judge in place of the op's own",
    )
    gate.add_argument(
        "--base", metavar="REF", help="judge the working tree against REF (default HEAD)"
    )
    _device_option(gate)
    gate.add_argument("--no-speed", action="store_true", help="leave the microbenchmark out")
    gate.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    _isolation_option(gate)

    trial = _add(commands, "trial", "one trial of the working tree as it is")
    _trial_options(trial)
    _isolation_option(trial)
    trial.add_argument(
        "--impl", help="compute every op with this implementation, such as torch, for comparison"
    )
    trial.add_argument(
        "--profile",
        action="store_true",
        help="no trial: run a few dozen steps and show which op takes which share of one (half a minute)",
    )
    trial.add_argument("--json", action="store_true", help="the result as JSON on standard output")

    doctor = _add(commands, "doctor", "what this machine gives, and what it lacks")
    doctor.add_argument("--json", action="store_true", help="as JSON")


def _run_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """What is asked of runs, or made of them."""
    unset = argparse.SUPPRESS
    status = _add(commands, "status", "what has been tried and kept")
    status.add_argument(
        "run", nargs="?", metavar="RUN", help="default: the one at work, or else the latest"
    )
    show = _add(commands, "show", "one experiment: what each gate said, and its patch")
    show.add_argument("number", type=_positive(int), metavar="N", help="its number in the run")
    show.add_argument("--run", help="default: the one at work, or else the latest")
    report = _add(commands, "report", "what a run gained: its champion, run again")
    report.add_argument("run", nargs="?", metavar="RUN", help="default: the latest")
    report.add_argument(
        "--rerun",
        action="store_true",
        help="first run champion and start again, if that was left out",
    )
    _isolation_option(report)
    prune = _add(commands, "prune", "take kept changes out again; what no longer pays stays out")
    prune.add_argument("run", nargs="?", metavar="RUN", help="default: the latest")
    _isolation_option(prune)
    placebo = _add(commands, "aa", "propose changes without effect, and count how many are kept")
    placebo.epilog = "Limits stand before its name: python -m agent --hours 8 aa --experiments 40"
    placebo.add_argument(
        "--experiments", type=_positive(int), required=True, metavar="N", help="how many of them"
    )
    placebo.add_argument(
        "--target", choices=("kernels", "model", "all"), default=unset, help="default all"
    )
    placebo.add_argument(
        "--op", default=unset, help="edit only the files of this op, such as rms_norm"
    )
    _trial_options(placebo)
    _isolation_option(placebo)
    export = _add(commands, "export", "the ledger for other tools")
    form = export.add_mutually_exclusive_group(required=True)
    form.add_argument(
        "--tsv", action="store_true", help="one line per experiment, autoresearch's columns first"
    )
    form.add_argument(
        "--json", action="store_true", help="runs, and their experiments with gates and patches"
    )
    form.add_argument(
        "--recording", action="store_true", help="the proposals of a run, for --proposer replay"
    )
    export.add_argument("--run", help="only this run")


def _proposer_options(to: argparse.ArgumentParser) -> None:
    group = to.add_argument_group("who proposes")
    group.add_argument(
        "--proposer",
        metavar="NAME",
        help="anthropic, openai, command, replay or sweep; auto, the default, takes what is configured",
    )
    group.add_argument(
        "--model",
        action="append",
        dest="models",
        metavar="NAME",
        help="the model to ask; of several, spending moves to the one whose proposals are kept",
    )
    group.add_argument(
        "--base-url",
        metavar="URL",
        help="an OpenAI-compatible endpoint, such as http://localhost:11434/v1",
    )
    group.add_argument(
        "--price",
        action="append",
        dest="prices",
        metavar="MODEL=IN/OUT",
        help="USD per million tokens, in place of those in agent/prices.toml (0/0 for a local model); those of a cache may follow, /READ/WRITE",
    )
    group.add_argument(
        "--command",
        dest="coder",
        metavar="LINE",
        help="a coding agent that runs headless, such as 'claude -p --output-format json --permission-mode acceptEdits'; its changes are the proposal",
    )
    group.add_argument(
        "--recording",
        type=os.path.abspath,  # as --start
        metavar="FILE",
        help="a file that `export --recording` wrote, to replay",
    )


def _budget_options(to: argparse.ArgumentParser) -> None:
    group = to.add_argument_group("when to stop (at the first limit reached; Ctrl-C at any time)")
    for flag, kind, metavar, says in (
        ("--experiments", int, "N", "end after N experiments, those before a --resume included"),
        ("--hours", float, "H", "end after H hours of work, those before a --resume included"),
        (
            "--gpu-hours",
            float,
            "H",
            "end when the device has been used for H hours, those before a --resume included",
        ),
        (
            "--usd",
            float,
            "USD",
            "send no model request that could take the run beyond this sum (a --command counts only the costs that it reports)",
        ),
        (
            "--tokens",
            int,
            "N",
            "send no model request that could take the run beyond this number of tokens (a --command counts only what it reports)",
        ),
    ):
        group.add_argument(flag, type=_positive(kind), metavar=metavar, help=says)
    group.add_argument(
        "--dry-run", action="store_true", help="estimate what the night will cost, and stop"
    )


def _trial_options(to: argparse.ArgumentParser) -> None:
    unset = argparse.SUPPRESS
    to.add_argument(
        "--seconds", type=_positive(float), default=unset, help="length of a trial (default 300)"
    )
    to.add_argument(
        "--data",
        default=unset,
        metavar="DIR",
        help="prepared data, or text to prepare (default: what was prepared last)",
    )
    _device_option(to)
    to.add_argument(
        "--seed", type=_seed, default=unset, help=f"first seed, 0 to {FIRST:,} (default 0)"
    )


def _device_option(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default=argparse.SUPPRESS,
        help="where kernels run: C++ on a CPU, Triton and CUDA on a GPU (default auto: a GPU if there is one)",
    )


def _isolation_option(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--isolation",
        choices=("strict", BEST_EFFORT),
        default=argparse.SUPPRESS,
        help="if a layer of the sandbox is missing: strict refuses to run candidates, best-effort (default) warns",
    )


def _seed(text: str) -> int:
    """What counts up from it has to stay below the seeds that choose nothing (agent/seeds.py)."""
    if not text.isdecimal() or int(text) > FIRST:
        raise argparse.ArgumentTypeError(f"expected 0 to {FIRST:,}, got {text}")
    return int(text)


def _positive(kind: type[int] | type[float]) -> Any:
    def convert(text: str) -> float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"expected more than 0, and finite, got {text}")
        return value

    convert.__name__ = kind.__name__  # argparse names it when the text is no number
    return convert
