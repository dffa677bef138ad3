"""The command line: one file per command, which parses its arguments, calls one function of `app` and prints.

No heavy imports. A new command is a file here and its name in COMMANDS.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import typer

from finetune.cli.key_hint import key_hint
from finetune.cli.program import app
from finetune.distributed.said_once import said_by_another
from finetune.distributed.waiting import WAITS
from finetune.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USER,
    FinetuneError,
    RecipeFaults,
    TrainingFailed,
    check_current_folder,
    fault_of_limit,
    fault_of_path,
    is_failure,
)
from finetune.recipe.machine import lacks_memory, memory_limit, reach_own_programs
from finetune.recipe.trust import OPTION, trust_remote_code
from finetune.terminal import is_rank, lasting_streams, output_lost, print_bug, print_error, say

# In the order of `finetune --help`.
COMMANDS = (
    "train",
    "sweep",
    "prepare",
    "cache",
    "evaluate",
    "predict",
    "chat",
    "export",
    "report",
    "runs",
    "logs",
    "compare",
    "dashboard",
    "verify",
    "inspect",
    "serve",
    "doctor",
    "recipes",
)

for _command in COMMANDS:
    import_module(f"finetune.cli.{_command}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with one of the documented exit codes. Printing never ends it."""
    if WAITS in os.environ:
        from finetune.app.dispatch import become_rank

        argv = become_rank()
    with lasting_streams(masked=is_rank()):
        try:
            _run(list(sys.argv[1:] if argv is None else argv))
        except SystemExit as end:
            if end.code not in (None, 0):
                raise
        sys.stdout.flush()
        if reason := output_lost():  # of a command whose output is its result
            say(f"error: the output could not be written: {reason}")
            sys.exit(EXIT_FAILED)
        sys.exit(0)


def _run(argv: list[str]) -> None:
    reach_own_programs()
    args, show_traceback = _own_options(argv)
    try:
        check_current_folder()
        typer.main.get_command(app)(args=args, prog_name="finetune")
    except SystemExit as end:  # typer exits this way on Ctrl-C, without a message
        if end.code == EXIT_INTERRUPTED:
            say("interrupted")
        if end.code == EXIT_USER and (hint := key_hint(args)) and not said_by_another(hint):
            say(hint)
        raise
    except FinetuneError as error:
        if show_traceback:
            import traceback

            traceback.print_exc()
        if isinstance(error, RecipeFaults) or not said_by_another(str(error)):  # rank 0 lists the faults of a recipe
            print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except BaseException as error:
        if not is_failure(error):
            raise
        fault = fault_of_path(error) or fault_of_limit(error) or _lack_of_memory(error)
        if fault and not show_traceback:
            if not said_by_another(str(fault)):
                print_error(fault)
            sys.exit(fault.exit_code)
        print_bug(error, show_traceback=show_traceback)
        sys.exit(EXIT_FAILED)


def _lack_of_memory(error: BaseException) -> FinetuneError | None:
    """What a process says that may not have the memory it needs (ulimit -v); None for other errors, and without a limit."""
    if not lacks_memory(error) or not memory_limit():
        return None
    reason = (str(error).strip().splitlines() or [""])[0]
    reason_given = ": ".join(filter(None, (type(error).__name__, reason)))
    return TrainingFailed(f"not enough memory ({reason_given})", remedy=memory_limit())


def _own_options(args: list[str]) -> tuple[list[str], bool]:
    """Removes options accepted anywhere: --traceback, --trust-remote-code, and the --local_rank that DeepSpeed's launcher
    adds.
    """
    kept: list[str] = []
    show_traceback = False
    rest = iter(args)
    for arg in rest:
        name, equals, _ = arg.partition("=")
        if name in ("--local_rank", "--local-rank"):
            if not equals:
                next(rest, None)
        elif arg == "--traceback":
            show_traceback = True
        elif arg == OPTION:
            trust_remote_code()
        else:
            kept.append(arg)
    return kept, show_traceback
