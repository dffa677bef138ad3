"""Terminal output for the user: tables, errors without tracebacks, bugs with the traceback saved to a file.

What is printed may hold words of strangers: names of files, columns and classes, keys of recipes, messages of libraries.
`printable` is the door that all of it passes: control characters, which would move the cursor, retitle the window or hide text,
are shown as what they are. `lasting_streams` stands behind it, for what other code prints.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer

import finetune
from finetune.errors import EXIT_STOPPED, FinetuneError, RecipeFaults

MAX_REASON = 500  # characters of an unexpected error that are shown
MAX_LINE = 4_000  # characters of a line of an error that are shown
VIEW_LINES = 6  # lines at most of what a rank shows live in a terminal (tracking/live_view.py)

# Control characters but line feeds and tabs; what turns the direction of text; separators that terminals take for line
# feeds; and halves of characters, which cannot be printed.
_CONTROL = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
# What our own lines and rich's live line send to a terminal: colors, the cursor up or to the left, erasing, hiding it.
_OWN_CODES = r"\x1b\[[0-9;]{0,20}[mAGK]|\x1b\[\?25[lh]|\r"


def _is_plain(text: str) -> bool:
    """Whether there is surely no control character: quick, and without a pattern that the start-up would compile."""
    return text.replace("\n", "").replace("\t", "").isprintable()


def printable(text: Any) -> str:
    r"""The text with control characters as JSON writes them: "\u001b[2J" in place of what clears the screen."""
    text = str(text)
    return text if _is_plain(text) else re.sub(_CONTROL, lambda found: f"\\u{ord(found[0]):04x}", text)


def _guard(text: str, terminal: bool) -> str:
    """The text without control sequences but our own, and those for a terminal alone."""
    if not terminal:  # progress bars of libraries begin with a carriage return
        return "\r".join(map(printable, text.split("\r")))
    kept = re.findall(_OWN_CODES, text)
    parts = map(printable, re.split(_OWN_CODES, text))
    return "".join(part + code for part, code in zip(parts, [*kept, ""], strict=True))


def _masked(text: str) -> str:
    """The text without secrets. Imported late: their patterns take a tenth of the start-up."""
    from finetune.recipe.secrets import mask_text

    return mask_text(text)


def print_line(text: str) -> None:
    """A line on stdout, at once."""
    print(printable(text), flush=True)


def print_beside_view(text: str) -> None:
    """A line on stdout while another process may show something live in the same terminal. That process moves the cursor up
    to rewrite what it shows: the line is put below it, and enough free lines below the line.
    """
    print(f"\n{printable(text)}" + "\n" * (VIEW_LINES - 1) if sys.stdout.isatty() else printable(text), flush=True)


def print_styled(text: str) -> None:
    """Lines on stdout that have colors of their own; what they hold of strangers is printable already."""
    print(text, flush=True)


@contextmanager
def phase(text: str, tell: Callable[[str], None] = print_line, *, after: float = 1.0) -> Iterator[None]:
    """Tells `text` if what happens inside takes longer than `after` seconds, once they have passed: what is quick is silent."""
    timer = threading.Timer(after, tell, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Lasting:
    """A text stream that outlives its reader, and passes no control sequences of strangers. When nobody reads it any more
    (`| head`, a terminal that was closed, a full disk), what is printed goes to a log (`keep_output_in`) or nowhere: output
    is lost, the work is not.

    masked: what looks like a secret is hidden.
    """

    def __init__(self, stream: Any, *, masked: bool = False) -> None:
        self._stream, self._masked = stream, masked

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if isinstance(text, str):
            text = _masked(text) if self._masked else text
            text = text if _is_plain(text) else _guard(text, self._stream.isatty())
        try:
            return int(self._stream.write(text))
        except UnicodeEncodeError:  # the terminal of a plain locale
            return int(self._stream.write(text.encode("ascii", "backslashreplace").decode()))
        except OSError as error:
            self.turn_away(error)
            if getattr(self._stream, "write_through", False):  # no buffer kept it (python -u)
                with suppress(OSError):
                    self._stream.write(text)
            return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self.turn_away(error)

    def turn_away(self, error: OSError | None = None) -> None:
        """From now on into the log. What could not be written is still in the buffer, and goes there too."""
        if self not in _turned:
            _turned.append(self)
        if error is not None and error.errno not in GONE:
            _lost.append(error.strerror or str(error))
        for target in filter(None, (_log[0], Path(os.devnull))):
            with suppress(OSError, ValueError):
                file = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                os.dup2(file, self._stream.fileno())
                os.close(file)
                self._stream.flush()
                return


_log: list[Path | None] = [None]


_turned: list[_Lasting] = []  # nobody reads them any more
_lost: list[str] = []  # why a reader that is there did not get all
GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # the reader does not want more, as of `| head`, or the terminal is closed


def output_lost() -> str:
    """Why what was printed is lost, although a reader wants it and no log keeps it, such as a full disk; "" if it is not."""
    return _lost[0] if _lost and _log[0] is None else ""


def keep_output_in(log: Path) -> None:
    """Where lines go that nobody reads, from now on."""
    _log[0] = log
    for stream in _turned:
        stream.turn_away()


def is_rank() -> bool:
    """Whether a launcher started this process; its standard error is a log."""
    return "RANK" in os.environ


@contextmanager
def lasting_streams(*, masked: bool = False) -> Iterator[None]:
    """For the time of a program: printing never ends it. masked: stderr goes to a log, without secrets."""
    for number in (0, 1, 2):  # a closed one would be the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        _Lasting(stream if stream is not None else open(os.devnull, "w"), masked=masked and index == 1)  # noqa: SIM115, PTH123
        for index, stream in enumerate(before)
    )
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def say(text: str) -> None:
    """Prints a line to stderr, without secrets; workers of a launcher prefix it with their rank."""
    _say(printable(_masked(text)))


def _say(text: str) -> None:
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


def print_error(error: FinetuneError) -> None:
    """Prints an error without a traceback. Faults of a recipe are the same on all ranks, so only rank 0 lists them."""
    if isinstance(error, RecipeFaults) and os.environ.get("RANK", "0") != "0":
        say(f"{len(error.faults)} faults in the recipe, reported by rank 0")
        return
    stopped = error.exit_code == EXIT_STOPPED
    color = typer.colors.YELLOW if stopped else typer.colors.RED
    head, *body = (_shorten(line) for line in printable(_masked(str(error))).split("\n"))
    _say(f"{typer.style('stopped:' if stopped else 'error:', fg=color, bold=True)} {head}")
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


def print_bug(error: Exception, *, show_traceback: bool) -> None:
    """Prints one line and saves the traceback to a file; prints it in full if asked and in workers, for their logs."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    if show_traceback or "RANK" in os.environ:
        typer.echo(_traceback_of(error), err=True, nl=False)
    reason = printable(_masked(str(error))).strip().split("\n")[0][:MAX_REASON]
    _say(f"{typer.style('bug:', fg=typer.colors.RED, bold=True)} {type(error).__name__}: {reason}{place}")
    say(f"  {save_report(error)}")


def save_report(error: Exception) -> str:
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

    command = printable(_masked(" ".join(sys.argv)))
    with tempfile.NamedTemporaryFile("w", prefix="finetune-", suffix=".txt", delete=False, encoding="utf-8") as file:
        file.write(f"finetune {finetune.__version__}, Python {sys.version}\n{command}\n\n{printable(_masked(trace))}")
    return file.name


def _traceback_of(error: Exception) -> str:
    import traceback

    return printable(_masked("".join(traceback.format_exception(error))))
