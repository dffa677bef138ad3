"""Terminal output for the user: lines, tables, progress, and errors without tracebacks.

What is printed may hold words of strangers: names of files, columns and classes, keys of recipes, messages of libraries.
`printable` shows the control characters in it, which would move the cursor, retitle the window or hide text, as what they are.
Every function here applies it; `lasting_streams` does so for what other code prints.
"""

from finetune.terminal.errors import print_bug, print_error, save_report
from finetune.terminal.lines import (
    VIEW_LINES,
    ProgressLine,
    print_beside_view,
    print_line,
    print_over_progress,
    print_rows,
    print_styled,
    say,
)
from finetune.terminal.phases import phase, phases_told
from finetune.terminal.safe_text import printable
from finetune.terminal.streams import is_rank, keep_output_in, lasting_streams, output_lost

__all__ = [
    "VIEW_LINES",
    "ProgressLine",
    "is_rank",
    "keep_output_in",
    "lasting_streams",
    "output_lost",
    "phase",
    "phases_told",
    "print_beside_view",
    "print_bug",
    "print_error",
    "print_line",
    "print_over_progress",
    "print_rows",
    "print_styled",
    "printable",
    "save_report",
    "say",
]
