"""What a user should know about the header of a csv or tsv file: how it is read, and whether it looks like a row."""

from __future__ import annotations

from pathlib import Path

from finetune.data.formats.delimited import SEPARATORS, csv_separator, first_rows
from finetune.data.formats.encodings import encoding_mark
from finetune.recipe.data import SourceSection

LONG_NAME = 80  # characters; no column is named so


def csv_notes(path: Path, source: SourceSection) -> list[str]:
    """What a user should know about how a csv file is read."""
    separator = csv_separator(path, source)
    notes = [] if separator == "," else [f"cells are separated by {SEPARATORS[separator]}"]
    return notes + _header_notes(path, source, separator)


def tsv_notes(path: Path, source: SourceSection) -> list[str]:
    """What a user should know about how a tsv file is read."""
    return _header_notes(path, source, "\t")


def _header_notes(path: Path, source: SourceSection, separator: str) -> list[str]:
    marked = encoding_mark(path)
    notes = [f"read as {marked.upper()}, as its byte order mark says"] if marked else []
    if not source.header:
        cells, _ = first_rows(path, source, separator)
        unnamed = [f"column_{index}" for index, name in enumerate(cells, start=1) if not name.strip()]
        if unnamed:
            notes.append(f"columns without a name are called {', '.join(unnamed)}")
        spaced = [name.strip() for name in cells if name.strip() and name != name.strip()]
        if spaced:
            notes.append(f"spaces around column names are removed: {', '.join(spaced)}")
    return notes


def csv_hint(path: Path, source: SourceSection) -> str:
    """A remedy if the first line looks like a row rather than a header, else ""."""
    return _header_hint(path, source, csv_separator(path, source))


def tsv_hint(path: Path, source: SourceSection) -> str:
    """As csv_hint, for a tsv file."""
    return _header_hint(path, source, "\t")


def _header_hint(path: Path, source: SourceSection, separator: str) -> str:
    if source.header:
        return ""
    header, row = first_rows(path, source, separator)
    if header and header[0].lower().startswith("sep="):
        return "The first line, sep=, is for Excel and no header: remove it."
    same = len(header) == len(row) and any(a == b for a, b in zip(header, row, strict=True))
    if not any(_is_value(name) for name in header) and not same:
        return ""
    return "The first line looks like a row. If the file has no header, name the columns: header: [text, label]."


def _is_value(name: str) -> bool:
    """Whether a cell is a number or a text, rather than the name of a column."""
    try:
        float(name.replace(",", "."))
    except ValueError:
        return len(name) > LONG_NAME
    return True
