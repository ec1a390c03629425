"""The command line. Nothing heavy is imported before a command needs it, so `--help` answers in a fraction of a second."""

from __future__ import annotations

import errno
import io
import json
import os
import sqlite3
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from agent.lab import Lab, Unusable
from agent.ledger import LedgerError
from agent.options import parser
from agent.records import BEST_EFFORT, Settings
from agent.screen import Screen, open_screen, printable

# Errors of the machine, not of the lab: no space, no permission.
_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
# Without `command`: argparse keeps the name of the subcommand there.
_SETTINGS = tuple(field.name for field in fields(Settings) if field.name != "command")
# What `aa`, which is a loop, takes before its name.
_LIMITS = ("start", "dry_run", "hours", "gpu_hours", "usd", "tokens")
# Commands whose answer has standard output for itself.
_QUIET = frozenset({"gate", "trial", "export", "status", "show", "report", "doctor"})
Said = tuple[str, int]  # what a command prints on standard output, and its exit status


def main(arguments: Sequence[str] | None = None, lab: Lab | None = None) -> int:
    """Run a command; its exit status."""
    loop = parser()
    asked = loop.parse_args(arguments)
    given = vars(asked)
    lab = lab or Lab()
    takes = {"command", *given.pop("takes", given), *(_LIMITS if asked.command == "aa" else ())}
    flags = {each.dest: each.option_strings[0] for each in loop._actions if each.option_strings}
    ignored = [flags[n] for n, value in given.items() if n not in takes and value is not None]
    if ignored:
        loop.error(f"{asked.command} does not take {', '.join(ignored)}: leave that out")
    if asked.command is None and "target" not in given and asked.resume is None:
        loop.error(
            "say what to improve: --target kernels, --target model or --target all (or a command: see --help)"
        )
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An arrow in a model's words ends no night where the terminal speaks Latin-1.
        sys.stdout.reconfigure(errors="backslashreplace")
    screen: Screen | None = None
    try:
        screen = open_screen(sys.stderr if asked.command in _QUIET else sys.stdout)
        if lab.folder.exists() and not lab.folder.is_dir():
            raise Unusable(
                f"{lab.folder} is a file: move it away, the lab keeps data and ledger in a folder of this name"
            )
        said, status = _COMMANDS[asked.command or "loop"](lab, given, screen)
        screen.close()
        if said:
            _show(said)
        return status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    # The boundary of the process: after a traceback Python would exit with 1, which means refused here.
    except Exception as error:
        if screen is not None:
            screen.close()
        if not _is_told(error):
            traceback.print_exc()
        print(printable(f"error: {error}{_remedy(error, lab)}"), file=sys.stderr)
        return 2
    finally:
        if screen is not None:
            screen.close()


def _is_told(error: Exception) -> bool:
    """Whether the message alone tells a person enough, so that no traceback is printed."""
    from agent.git import GitError
    from agent.integrity import Tampered
    from agent.workspace import Busy

    known: list[type[Exception]] = [Unusable, LedgerError, GitError, Busy, Tampered]
    # Looked up, not imported: what ended the command may be a judge that does not parse.
    if "bench.corpus" in sys.modules:
        known.append(sys.modules["bench.corpus"].DataError)
    if "agent.loop" in sys.modules:
        known.append(sys.modules["agent.loop"].LoopError)
    if "agent.judging" in sys.modules:
        known.append(sys.modules["agent.judging"].MachineFault)
    # This very class is a damaged file; its other subclasses are faults of our own.
    damaged = type(error) is sqlite3.DatabaseError
    full = isinstance(error, OSError) and error.errno in _MACHINE
    missing = _is_not_installed(error)
    return damaged or full or missing or isinstance(error, (*known, sqlite3.OperationalError))


def _is_not_installed(error: Exception) -> bool:
    """Whether a package is missing that is not this project's own: most often another Python runs than that of .venv."""
    own = ("agent", "bench", "kernels", "model", "")
    return isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] not in own


def _remedy(error: Exception, lab: Lab) -> str:
    """What helps against a fault of the machine, whose message does not say it; "" for any other."""
    if _is_not_installed(error):
        return "; `make install` puts all that is needed into .venv: source .venv/bin/activate"
    if isinstance(error, sqlite3.OperationalError):
        return (
            f"; {lab.folder / 'ledger.sqlite'} has to be writable, on a local disk with space, and open for writing nowhere else; "
            "a run goes on with python -m agent --resume"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or lab.folder
        return f"; free space for {where}; a run goes on with python -m agent --resume"
    return ""


def _show(text: str) -> None:
    """Print on standard output, to a terminal without what it would obey. A reader that has had enough, such as `| head`, is no error."""
    try:
        print(printable(text) if sys.stdout.isatty() else text, flush=True)
    except BrokenPipeError:
        # What is left goes nowhere: Python would fail once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _loop(lab: Lab, given: dict[str, Any], screen: Screen) -> Said:
    from agent import campaign, doctor, dry_run
    from agent.lab import device

    chosen = {name: given[name] for name in _SETTINGS if name in given}
    if "coder" in given:
        chosen["command"] = given["coder"]
    chosen |= {name: tuple(chosen[name]) for name in ("models", "prices") if name in chosen}
    settings = replace(Settings(device="auto"), **chosen)
    resumed = given["resume"] is not None
    if "dry_run" in given:
        if resumed:
            ledger = lab.ledger()
            run = ledger.run(given["resume"] or None)
            changed = replace(run, settings=campaign.resumed_settings(run.settings, chosen))
            settings = dry_run.what_is_left(ledger, changed)
        return dry_run.estimate(lab, replace(settings, device=device(settings.device))), 0
    mode = _held_to(lab, given, given["resume"]) if resumed else settings.isolation
    doctor.insist(mode, screen)
    if resumed:
        return campaign.resume(lab, given["resume"] or None, chosen, screen), 0
    return campaign.run(lab, settings, screen), 0


def _held_to(lab: Lab, given: dict[str, Any], run: str | None) -> str:
    """The value of --isolation that is given now, or else the one of the run (the latest without a name)."""
    asked: str = given.get("isolation") or lab.ledger().run(run or None).settings.isolation
    return asked


def _aa(lab: Lab, given: dict[str, Any], screen: Screen) -> Said:
    from agent import standard

    fixed = {"proposer": standard.PLACEBO, "resume": None}
    return _loop(lab, {"target": "all"} | given | fixed, screen)


def _prune(lab: Lab, given: dict[str, Any], screen: Screen) -> Said:
    from agent import campaign, doctor

    doctor.insist(_held_to(lab, given, given["run"]), screen)
    return campaign.prune(lab, given["run"], screen), 0


def _report(lab: Lab, given: dict[str, Any], screen: Screen) -> Said:
    from agent import campaign, doctor, report

    if given["rerun"]:
        doctor.insist(_held_to(lab, given, given["run"]), screen)
        return campaign.rerun(lab, given["run"], screen), 0
    ledger = lab.ledger()
    return report.of_run(ledger, ledger.run(given["run"])), 0


def _prepare(lab: Lab, given: dict[str, Any], screen: Screen) -> Said:
    dataset = lab.prepare(given.get("data"), given["vocab"], screen)
    said = (
        f"{dataset.directory}: {dataset.train_tokens:,} training tokens, vocabulary {dataset.vocab_size:,}, "
        f"{dataset.val_bytes:,} bytes to validate on; the default from now on"
    )
    return said, 0


def _gate(lab: Lab, given: dict[str, Any], screen: Screen) -> Said:
    from agent import doctor, gate_command, workspace
    from agent.judging import Bench
    from agent.lab import device

    op, file, base = given.get("op"), given["candidate"], given["base"]
    if (op is None) != (file is None) or (file is not None and base is not None):
        raise Unusable(
            "gate: expected --op OP with --candidate FILE, or --base REF, or none of them (to judge the working tree against HEAD)"
        )
    doctor.insist(given.get("isolation", BEST_EFFORT), screen)
    workspace.tell_busy(lab.folder, screen.say)
    judge, speed = Bench(device(given.get("device", "auto"))), not given["no_speed"]
    if op is not None and file is not None:
        results = gate_command.judge_file(lab, op, file, speed, screen, judge)
    else:
        results = gate_command.judge_working_tree(lab, base, speed, screen, judge)
    said = gate_command.as_json(results) if given["json"] else ""
    return said, gate_command.PASSED if results[-1].passed else gate_command.REFUSED


def _trial(lab: Lab, given: dict[str, Any], screen: Screen) -> Said:
    from agent import doctor, step_table, trial_command, workspace
    from agent.judging import Bench
    from agent.lab import device

    fixed = [f"--{name}" for name in ("seconds", "seed") if given["profile"] and name in given]
    if fixed:
        raise Unusable(f"--profile runs a few steps and no trial: leave {' and '.join(fixed)} out")
    doctor.insist(given.get("isolation", BEST_EFFORT), screen)
    workspace.tell_busy(lab.folder, screen.say)
    seconds, seed = given.get("seconds", 300.0), given.get("seed", 0)
    dataset = lab.dataset(given.get("data"), screen)
    judge = Bench(device(given.get("device", "auto")), dataset, seconds, given["impl"])
    if given["profile"]:
        found = trial_command.profile(lab, judge, screen)
        return json.dumps(found, indent=2) if given["json"] else step_table.table(found), 0
    result = trial_command.run(lab, judge, seconds, seed, screen)
    said = trial_command.as_json(result) if given["json"] else trial_command.block(result)
    return said, 0 if result.ok else 1


def _doctor(lab: Lab, given: dict[str, Any], screen: Screen) -> Said:
    from agent import doctor

    rows = doctor.examine(lab)
    said = doctor.as_json(rows) if given["json"] else doctor.table(rows)
    return said, 0 if doctor.healthy(rows) else 1


def _status(lab: Lab, given: dict[str, Any], screen: Screen) -> Said:
    from agent import report, workspace

    since = workspace.held_since(lab.folder)
    file = lab.folder / "ledger.sqlite"
    return report.status(lab.ledger(), file, lab.root, since, given["run"]), 0


def _experiment(lab: Lab, given: dict[str, Any], screen: Screen) -> Said:
    from agent import report, workspace
    from agent.research import answers

    ledger = lab.ledger()
    at_work = report.run_at_work(ledger, workspace.held_since(lab.folder))
    run, number = ledger.run(given["run"] or at_work).id, given["number"]
    found = ledger.find(run, number)
    if found is None:
        raise Unusable(
            f"run {run} has no experiment {number}: `python -m agent status {run}` lists them"
        )
    return f"run {run}, experiment {answers.experiment(found, run)}", 0


def _export(lab: Lab, given: dict[str, Any], screen: Screen) -> Said:
    from agent import export

    ledger, run = lab.ledger(), given["run"]
    if run is not None or given["recording"]:
        run = ledger.run(run).id
    if given["recording"]:
        return export.recording(ledger, lab.repository(), run).rstrip("\n"), 0
    said = export.tsv(ledger, run) if given["tsv"] else export.as_json(ledger, run)
    return said.rstrip("\n"), 0


_COMMANDS = {
    "loop": _loop,
    "prepare": _prepare,
    "gate": _gate,
    "trial": _trial,
    "doctor": _doctor,
    "status": _status,
    "show": _experiment,
    "report": _report,
    "prune": _prune,
    "aa": _aa,
    "export": _export,
}


if __name__ == "__main__":
    sys.exit(main())
