"""The command line: one file per command, which parses its arguments, calls one function of `app` and prints.

No heavy imports. A new command is a file here and its name in COMMANDS.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import typer

from finetune.cli.program import app
from finetune.errors import EXIT_FAILED, FinetuneError, UserError
from finetune.recipe.machine import reach_own_programs
from finetune.terminal import is_rank, lasting_streams, print_bug, print_error, say

# In the order of `finetune --help`.
COMMANDS = (
    "train",
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
    "verify",
    "inspect",
    "serve",
    "doctor",
    "recipes",
)
EXIT_INTERRUPTED = 130

for _command in COMMANDS:
    import_module(f"finetune.cli.{_command}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with one of the documented exit codes. Printing never ends it."""
    with lasting_streams(masked=is_rank()):
        _run(argv)


def _run(argv: Sequence[str] | None) -> None:
    reach_own_programs()
    args, show_traceback = _own_options(list(sys.argv[1:] if argv is None else argv))
    try:
        typer.main.get_command(app)(args=args, prog_name="finetune")
    except SystemExit as end:  # typer exits this way on Ctrl-C, without a message
        if end.code == EXIT_INTERRUPTED:
            say("interrupted")
        raise
    except FinetuneError as error:
        if show_traceback:
            import traceback

            traceback.print_exc()
        print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if isinstance(error, OSError) and (fault := _fault_of_path(error, args)) and not show_traceback:
            print_error(fault)
            sys.exit(fault.exit_code)
        print_bug(error, show_traceback=show_traceback)
        sys.exit(EXIT_FAILED)


def _fault_of_path(error: OSError, args: Sequence[str]) -> UserError | None:
    """What is wrong with a path of the command line, such as a folder that is a file; None if the error is about none."""
    if not isinstance(error.filename, str):
        return None
    path = Path(error.filename).absolute()
    for given in (Path(arg).absolute() for arg in args if not arg.startswith("-") and arg != args[0]):
        if path == given or given in path.parents or (path in given.parents and path.is_file()):
            return UserError(f"cannot be used: {error.strerror}", where=error.filename)
    return None


def _own_options(args: list[str]) -> tuple[list[str], bool]:
    """Removes options accepted anywhere: --traceback, and the --local_rank that DeepSpeed's launcher adds."""
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
        else:
            kept.append(arg)
    return kept, show_traceback
