"""How things are told to the person at the terminal: tables, errors without tracebacks, bugs with one in a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

import finetune
from finetune.errors import EXIT_STOPPED, FinetuneError, RecipeFaults


def print_line(text: str) -> None:
    """A line on stdout, at once."""
    print(text, flush=True)


def say(text: str) -> None:
    """A line on stderr; workers of a launcher put their rank before it."""
    rank = os.environ.get("RANK", "")
    typer.echo(f"[rank {rank}] {text}" if rank not in ("", "0") else text, err=True)


def print_rows(
    head: tuple[str, ...], rows: Sequence[tuple[str, ...]], empty: str = "", *, titled: bool = False
) -> None:
    """A table in a terminal, tab-separated lines elsewhere (titled: with the head); `empty` instead of no rows."""
    if not rows and empty:
        typer.echo(empty)
    elif sys.stdout.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*head, box=SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            faint = "dim" if row[-1] == "default" else ""
            table.add_row(*(Text(cell, style=faint, overflow="fold") for cell in row))
        Console().print(table)
    else:
        for row in (head, *rows) if titled else rows:
            typer.echo("\t".join(row))


def print_error(error: FinetuneError) -> None:
    """The error without a traceback. A recipe's faults are the same on all ranks: only the first tells them all."""
    if isinstance(error, RecipeFaults) and os.environ.get("RANK", "0") != "0":
        say(f"{len(error.faults)} faults in the recipe, told by rank 0")
        return
    stopped = error.exit_code == EXIT_STOPPED
    colour = typer.colors.YELLOW if stopped else typer.colors.RED
    head, _, body = str(error).partition("\n")
    say(f"{typer.style('stopped:' if stopped else 'error:', fg=colour, bold=True)} {head}")
    for line in body.splitlines():
        indented = not isinstance(error, RecipeFaults) or line.startswith(" ")
        typer.echo(line if indented else typer.style(line, bold=True), err=True)


def print_bug(error: Exception, *, show_traceback: bool) -> None:
    """One line, and the traceback in a file; in full where asked for, and in a launcher's worker, whose log it is."""
    import tempfile
    import traceback

    from finetune.recipe.secrets import mask

    text = str(mask("".join(traceback.format_exception(error))))
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    if show_traceback or "RANK" in os.environ:
        typer.echo(text, err=True, nl=False)
    reason = str(mask(str(error))).strip().split("\n")[0]
    say(f"{typer.style('bug:', fg=typer.colors.RED, bold=True)} {type(error).__name__}: {reason}{place}")
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="finetune-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(f"finetune {finetune.__version__}, Python {sys.version}\n{mask(' '.join(sys.argv))}\n\n{text}")
        say(f"  This is a bug in finetune, not in your recipe; please report it with {file.name}")
    except OSError as failure:
        say(f"  This is a bug in finetune; its traceback could not be saved ({failure}): --traceback shows it")
