"""Reader of plain text: a row per line, per paragraph or per file, with the column `text`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import BadRow, BlankLine
from finetune.data.formats.encodings import decode
from finetune.data.formats.lines import MAX_LINE_BYTES, NumberedRow, numbered_lines
from finetune.recipe.data import SourceSection

COLUMN = "text"


def read_text(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """Rows {"text": ...} without the newline at their end. Blank lines are no rows; in a document, they are kept.

    A bad line makes its paragraph or document bad. Raises: UserError if the file cannot be read.
    """
    first, size, bad = 0, 0, None
    lines: list[str] = []
    skipped: list[int] = []
    for number, raw in numbered_lines(path, source.encoding):
        blank = raw.isspace()
        if blank and source.sample_by == "paragraph":
            if lines:
                yield first, _row(lines, bad)
            first, lines, size, bad = 0, [], 0, None
            continue
        if blank and (source.sample_by == "line" or not lines):
            skipped.append(number)
            continue
        first, size = first or number, size + len(raw)
        try:
            lines.append(decode(raw, source.encoding).rstrip("\r\n") if size <= MAX_LINE_BYTES else "")
        except BadRow as error:
            bad = bad or (error if number == first else BadRow(f"line {number}: {error}"))
            lines.append("")
        if size > MAX_LINE_BYTES:
            lines, bad = [""], bad or BadRow(f"longer than {MAX_LINE_BYTES // 2**20} MiB")
        if source.sample_by == "line":
            yield from ((line, BlankLine()) for line in skipped)
            skipped.clear()
            yield first, _row(lines, bad)
            first, lines, size, bad = 0, [], 0, None
    if lines:
        yield first, _row(lines, bad)


def _row(lines: list[str], bad: BadRow | None) -> dict[str, Any] | BadRow:
    return bad or {COLUMN: "\n".join(lines).rstrip("\n")}


def text_notes(path: Path, source: SourceSection) -> list[str]:
    """A note if the first lines look like a table."""
    tabs = set()
    for number, raw in numbered_lines(path, source.encoding):
        tabs.add(raw.count(b"\t"))
        if number >= 20:
            break
    is_table = source.sample_by == "line" and len(tabs) == 1 and tabs != {0}
    return ["each line has tabs; to read it as a table, set `format: tsv` or `format: conll`"] if is_table else []


def text_hint(path: Path, source: SourceSection) -> str:
    """What to do if a column other than `text` is wanted."""
    return "A text file has the column `text` alone. If it is a table, set `format:` to tsv, csv or conll."
