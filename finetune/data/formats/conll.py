"""Words with tags, a word a line and a blank line between sentences, as the CoNLL shared tasks hand them out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.formats.lines import NumberedRow, decode, numbered_lines
from finetune.recipe.data import SourceSection

DOCUMENT_MARK = "-DOCSTART-"


def read_conll(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """Every sentence as {"tokens": [...], "tags": [...]}, with the line of its first word.

    Columns are parted by a tab, or by blanks where the line has no tab. Without source.header the first is the word and
    the last the tag; with header: [tokens, pos, chunk, tags] each column becomes a list of its name. A bad line is told
    with its own number, and its sentence is left out. Lines that begin with "# " and have no tab are comments.
    """
    names = list(source.header)
    width = len(names)
    columns: list[list[str]] = []  # of the sentence being read
    first, bad = 0, None
    for number, line in numbered_lines(path):
        try:
            cells = _cells(decode(line))
        except BadRow as error:
            cells, bad = [""], bad or (number, error)
        if not cells:
            yield from _sentence(first, columns, names, bad)
            first, columns, bad = 0, [], None
            continue
        if cells[0] == DOCUMENT_MARK or (not columns and _is_comment(line)):
            continue
        first = first or number
        if bad is None:
            width = width or len(cells)
            if len(cells) != width:
                bad = (number, BadRow(f"{_columns(len(cells))} where {_columns(width)} are expected: {cells[0]!r}"))
            columns.append(cells)
    yield from _sentence(first, columns, names, bad)


def _cells(line: str) -> list[str]:
    line = line.rstrip("\r\n")
    if not line.strip():
        return []
    return [cell.strip() for cell in line.split("\t")] if "\t" in line else line.split()


def _is_comment(line: bytes) -> bool:
    return line.startswith(b"# ") and b"\t" not in line


def _columns(count: int) -> str:
    return "1 column" if count == 1 else f"{count} columns"


def _sentence(
    first: int, rows: list[list[str]], names: list[str], bad: tuple[int, BadRow] | None
) -> Iterator[NumberedRow]:
    if bad is not None:
        yield bad
    elif rows and names:
        yield first, {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    elif rows:
        row: dict[str, Any] = {"tokens": [cells[0] for cells in rows]}
        if len(rows[0]) > 1:
            row["tags"] = [cells[-1] for cells in rows]
        yield first, row
