"""Errors without tracebacks; bugs with the traceback saved to a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

import finetune
from finetune.errors import EXIT_STOPPED, FinetuneError, RecipeFaults
from finetune.terminal.lines import say, say_styled
from finetune.terminal.safe_text import mask_secrets, printable
from finetune.terminal.streams import is_rank
from finetune.units import format_number

MAX_REASON = 500  # characters of an unexpected error that are shown
MAX_LINE = 4_000  # characters of a line of an error that are shown


def print_error(error: FinetuneError) -> None:
    """Prints an error without a traceback. Faults of a recipe are the same on all ranks, so only rank 0 lists them."""
    if isinstance(error, RecipeFaults) and os.environ.get("RANK", "0") != "0":
        say(f"{format_number(len(error.faults), 'fault')} in the recipe, reported by rank 0")
        return
    stopped = error.exit_code == EXIT_STOPPED
    color = typer.colors.YELLOW if stopped else typer.colors.RED
    head, *body = (_shorten(line) for line in printable(mask_secrets(str(error))).split("\n"))
    word, head = ("stopped:", head.removeprefix("stopped ")) if stopped else ("error:", head)
    say_styled(f"{typer.style(word, fg=color, bold=True)} {head}")
    for line in body:
        indented = not isinstance(error, RecipeFaults) or line.startswith(" ")
        typer.echo(line if indented else typer.style(line, bold=True), err=True)
    if error.trace and not is_rank():  # a rank's log has it
        say(f"  {_save_trace(error.trace)}")


def _save_trace(trace: str) -> str:
    """Keep the traceback of a library's error in a file of this user; a sentence that names it."""
    try:
        return f"If it is sound, the fault may be in finetune: the traceback is in {_save(trace)}."
    except OSError as failure:
        return f"Its traceback could not be saved ({failure}); use --traceback to show it."


def _shorten(line: str) -> str:
    """A line of an error, without the middle of a name or value of thousands of characters."""
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 200]} ... {line[-180:]}"


def print_bug(error: BaseException, *, show_traceback: bool) -> None:
    """Prints one line and saves the traceback to a file; prints it in full if asked and in workers, for their logs."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    if show_traceback or "RANK" in os.environ:
        typer.echo(_traceback_of(error), err=True, nl=False)
    reason = printable(mask_secrets(str(error))).strip().split("\n")[0][:MAX_REASON]
    say_styled(f"{typer.style('bug:', fg=typer.colors.RED, bold=True)} {type(error).__name__}: {reason}{place}")
    say(f"  {save_report(error)}")


def save_report(error: BaseException) -> str:
    """Save the traceback of an unexpected error to a file of this user; a sentence that names it."""
    import traceback

    try:
        name = _save("".join(traceback.format_exception(error)))
    except OSError as failure:
        return f"This is a bug in finetune; its traceback could not be saved ({failure}); use --traceback to show it"
    return f"This is a bug in finetune, not in your recipe; please report it with {name}"


def _save(trace: str) -> str:
    """Write a traceback, without secrets, to a file that only this user can read; its name. Raises: OSError."""
    import tempfile

    command = printable(mask_secrets(" ".join(sys.argv)))
    with tempfile.NamedTemporaryFile("w", prefix="finetune-", suffix=".txt", delete=False, encoding="utf-8") as file:
        file.write(
            f"finetune {finetune.__version__}, Python {sys.version}\n{command}\n\n{printable(mask_secrets(trace))}"
        )
    return file.name


def _traceback_of(error: BaseException) -> str:
    import traceback

    return printable(mask_secrets("".join(traceback.format_exception(error))))
