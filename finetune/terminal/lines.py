"""Lines, tables and progress for the user."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence

import typer

from finetune.terminal.safe_text import mask_secrets, printable

VIEW_LINES = 6  # lines at most of what a rank shows live in a terminal (tracking/live_view.py)


def print_line(text: str) -> None:
    """A line on stdout, at once."""
    print(printable(text), flush=True)


def print_over_progress(text: str) -> None:
    """A line on stdout in place of a ProgressLine, also another process's, which is shown again below it."""
    print(f"\r\x1b[K{printable(text)}" if sys.stdout.isatty() else printable(text), flush=True)


def print_beside_view(text: str) -> None:
    """A line on stdout while another process may show something live in the same terminal. That process moves the cursor up
    to rewrite what it shows: the line is put below it, and enough free lines below the line.
    """
    print(f"\n{printable(text)}" + "\n" * (VIEW_LINES - 1) if sys.stdout.isatty() else printable(text), flush=True)


def print_styled(text: str) -> None:
    """Lines on stdout that have colors of their own; what they hold of strangers is printable already."""
    print(text, flush=True)


def say(text: str) -> None:
    """Prints a line to stderr, without secrets; workers of a launcher prefix it with their rank."""
    say_styled(printable(mask_secrets(text)))


def say_styled(text: str) -> None:
    """As say, of lines that have colors of their own; what they hold of strangers is printable already."""
    rank = os.environ.get("RANK", "")
    typer.echo(f"[rank {printable(rank)}] {text}" if rank not in ("", "0") else text, err=True)


class ProgressLine:
    """Progress on stdout: one line that is rewritten in a terminal, elsewhere a new line every few seconds."""

    REWRITE_SECONDS, LINE_SECONDS, BAR = 0.2, 5.0, 24

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._shown = time.monotonic()  # what takes less than a period shows nothing
        self._open = False

    def show(self, text: str, share: float) -> None:
        """Show a line such as "train: 5,120 of 100,000 rows", unless one was shown a moment ago. share: 0 to 1."""
        now = time.monotonic()
        if now - self._shown < (self.REWRITE_SECONDS if self._terminal else self.LINE_SECONDS):
            return
        self._shown = now
        if not self._terminal:
            print_line(text)
            return
        filled = round(self.BAR * min(max(share, 0.0), 1.0))
        line = f"[{'#' * filled}{'.' * (self.BAR - filled)}] {printable(text)}"[
            : shutil.get_terminal_size().columns - 1
        ]
        print(f"\r{line}\x1b[K", end="", flush=True)
        self._open = True

    def close(self) -> None:
        """Remove the line from the terminal."""
        if self._open:
            print("\r\x1b[K", end="", flush=True)
            self._open = False


def print_rows(
    head: tuple[str, ...], rows: Sequence[tuple[str, ...]], empty: str = "", *, titled: bool = False
) -> None:
    """Prints a table in a terminal, else tab-separated lines (titled: with the header); `empty` if there are no rows.

    Cells of the first column, which are names, are never broken.
    """
    if not rows and empty:
        typer.echo(empty)
    elif sys.stdout.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*head, box=SIMPLE_HEAD, pad_edge=False)
        table.columns[0].no_wrap = True
        table.columns[0].min_width = max((len(printable(row[0])) for row in rows), default=0)
        for row in rows:
            faint = "dim" if row[-1] == "default" else ""
            table.add_row(*(Text(printable(cell), style=faint, overflow="fold") for cell in row))
        Console().print(table)
    else:
        for row in (head, *rows) if titled else rows:
            typer.echo("\t".join(map(printable, row)))
