"""The options of the command line: what may be said to the loop and to each command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from agent.records import BEST_EFFORT

_EPILOG = """\
examples
  python -m agent --target kernels                     improve the kernels until Ctrl-C
  python -m agent --target kernels --op attention --hours 8 --usd 20
  python -m agent --target all --usd 20 --dry-run      what such a night will cost
  python -m agent --resume                             go on with the latest run
  python -m agent report                               what the latest run really gained
  python -m agent gate --op rms_norm --candidate my_rms_norm.cpp
"""


def parser() -> argparse.ArgumentParser:
    loop = argparse.ArgumentParser(
        prog="python -m agent",
        description="Improve the kernels and the model, unattended: without a command, the loop.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    unset = argparse.SUPPRESS  # what is not given keeps the run's own value under --resume
    add = loop.add_argument
    add("--target", choices=("kernels", "model", "all"), default=unset, help="what may be edited")
    add("--op", default=unset, help="only this op's files, as rms_norm")
    _proposer_options(loop)
    _budget_options(loop)
    _trial_options(loop)
    _isolation_option(loop)
    add(
        "--start",
        default=unset,
        metavar="DIR",
        help="begin with the files of DIR in place of the shipped ones",
    )
    add(
        "--resume",
        nargs="?",
        const="",
        default=None,
        metavar="RUN",
        help="go on with a run (default: the latest)",
    )

    commands = loop.add_subparsers(dest="command", title="commands", metavar="")
    prepare = commands.add_parser("prepare", help="make the data ready, or verify it")
    prepare.add_argument(
        "--data",
        default=unset,  # here and below: `--data DIR prepare` says the same, and is not overruled
        metavar="DIR|hf:OWNER/NAME",
        help="your own text (default: the embedded corpus)",
    )
    prepare.add_argument(
        "--vocab", type=_positive(int), default=8192, help="size of the vocabulary (default 8192)"
    )

    gate = commands.add_parser("gate", help="judge a file, or what the working tree changes")
    gate.add_argument("--op", default=unset, help="the op that --candidate computes")
    gate.add_argument(
        "--candidate",
        type=Path,
        metavar="FILE",
        help="a .py, .cpp or .cu file that stands for the op's own",
    )
    gate.add_argument(
        "--base", metavar="REF", help="judge the working tree against REF (default HEAD)"
    )
    _device_option(gate)
    gate.add_argument("--no-speed", action="store_true", help="leave the microbenchmark out")
    gate.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    _isolation_option(gate)

    trial = commands.add_parser("trial", help="one trial of the working tree as it is")
    _trial_options(trial)
    _isolation_option(trial)
    trial.add_argument("--impl", help="every op by this implementation, as torch, for comparison")
    trial.add_argument(
        "--profile",
        action="store_true",
        help="no trial: run a few dozen steps and say which op takes what of one (half a minute)",
    )
    trial.add_argument("--json", action="store_true", help="the result as JSON on standard output")

    doctor = commands.add_parser("doctor", help="what this machine gives, and what it lacks")
    doctor.add_argument("--json", action="store_true", help="as JSON")
    commands.add_parser("status", help="what has been tried and kept")
    report = commands.add_parser("report", help="what a run gained, by its champion run again")
    report.add_argument("run", nargs="?", metavar="RUN", help="default: the latest")
    report.add_argument(
        "--rerun",
        action="store_true",
        help="run champion and start again first, where that was left out",
    )
    _isolation_option(report)
    prune = commands.add_parser("prune", help="take keeps out again; what no longer pays stays out")
    prune.add_argument("run", nargs="?", metavar="RUN", help="default: the latest")
    _isolation_option(prune)
    placebo = commands.add_parser("aa", help="propose what changes nothing: how much of it is kept")
    placebo.add_argument(
        "--experiments", type=_positive(int), required=True, metavar="N", help="so many placebos"
    )
    placebo.add_argument(
        "--target", choices=("kernels", "model", "all"), default=unset, help="default all"
    )
    placebo.add_argument("--op", default=unset, help="only this op's files, as rms_norm")
    _trial_options(placebo)
    _isolation_option(placebo)
    export = commands.add_parser("export", help="the ledger for other tools")
    form = export.add_mutually_exclusive_group(required=True)
    form.add_argument(
        "--tsv", action="store_true", help="one line an experiment, autoresearch's columns first"
    )
    form.add_argument("--json", action="store_true", help="everything")
    form.add_argument(
        "--recording", action="store_true", help="the proposals of a run, for --proposer replay"
    )
    export.add_argument("--run", help="only this run")
    return loop


def _proposer_options(to: argparse.ArgumentParser) -> None:
    unset = argparse.SUPPRESS
    group = to.add_argument_group("who proposes")
    group.add_argument(
        "--proposer",
        default=unset,
        metavar="NAME",
        help="anthropic, openai, command, replay, sweep, or auto: by what is configured (default)",
    )
    group.add_argument(
        "--model",
        action="append",
        dest="models",
        default=unset,
        metavar="NAME",
        help="the model; given several times, spending moves to the one whose proposals are kept",
    )
    group.add_argument(
        "--base-url",
        default=unset,
        metavar="URL",
        help="an OpenAI-compatible endpoint, as http://localhost:11434/v1",
    )
    group.add_argument(
        "--price",
        action="append",
        dest="prices",
        default=unset,
        metavar="MODEL=IN/OUT",
        help="USD per million tokens, for a model that the table does not have (0/0 for a local one)",
    )
    group.add_argument(
        "--command",
        dest="coder",
        default=unset,
        metavar="LINE",
        help="a coding agent that runs headless, as 'claude -p --permission-mode acceptEdits'; its changes are the proposal",
    )
    group.add_argument(
        "--recording",
        default=unset,
        metavar="FILE",
        help="what `export --recording` wrote, to replay",
    )


def _budget_options(to: argparse.ArgumentParser) -> None:
    group = to.add_argument_group("until when (whatever comes first; Ctrl-C always)")
    for flag, kind, metavar, says in (
        ("--experiments", int, "N", "end after N experiments"),
        ("--hours", float, "H", "end after H hours of work, those before a --resume included"),
        ("--gpu-hours", float, "H", "end when the device was used for H hours"),
        ("--usd", float, "USD", "send no request to a model that could spend more"),
        ("--tokens", int, "N", "send no request to a model that could take more tokens"),
    ):
        group.add_argument(
            flag, type=_positive(kind), default=argparse.SUPPRESS, metavar=metavar, help=says
        )
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
        help="prepared data or text (default: what was prepared last)",
    )
    _device_option(to)
    to.add_argument("--seed", type=int, default=unset, help="first seed (default 0)")


def _device_option(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default=argparse.SUPPRESS,
        help="what runs the kernels: C++ a CPU, Triton and CUDA a GPU (default auto: a GPU where there is one)",
    )


def _isolation_option(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--isolation",
        choices=("strict", BEST_EFFORT),
        default=argparse.SUPPRESS,
        help="refuse to run candidates, or warn, where a layer of the sandbox is missing (default best-effort)",
    )


def _positive(kind: type[int] | type[float]) -> Any:
    def convert(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text}: expected more than 0")
        return value

    convert.__name__ = kind.__name__  # argparse names it when the text is no number
    return convert
