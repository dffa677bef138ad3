"""Reader of the CoNLL format: one word and its tags per line, and a blank line between sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.data.bad_rows import BadRow
from finetune.data.formats.compression import without_compression
from finetune.data.formats.encodings import decode
from finetune.data.formats.lines import NumberedRow, numbered_lines
from finetune.recipe.data import SourceSection

DOCUMENT_MARK = "-DOCSTART-"
CONLLU = ".conllu"
CONLLU_COLUMNS = ("word_id", "tokens", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
NO_WORD = re.compile(r"[0-9]+[-.][0-9]+")  # the ids of ranges and of empty nodes


def read_conll(path: Path, source: SourceSection) -> Iterator[NumberedRow]:
    """One row per sentence, {"tokens": [...], "tags": [...]}, with the line of its first word.

    Columns are separated by tabs, or by whitespace in a line without a tab. Without source.header, the first column is
    the word and the last one the tag; with header: [tokens, pos, chunk, tags], each column becomes a list of that name.
    In a file .conllu, columns are those of CoNLL-U; the words are those of the syntax: a range such as 3-4 (the word as it is
    written) and an empty node such as 3.1 are left out.
    A bad line is reported with its own line number, and its sentence is left out. Before the first word of a sentence,
    lines that start with "# " and have no tab are comments.
    """
    is_conllu = without_compression(path).suffix.lower() == CONLLU
    names = list(source.header or (CONLLU_COLUMNS if is_conllu else ()))
    num_columns = len(names)
    words: list[list[str]] = []  # of the current sentence, one list of cells per word
    first, bad = 0, None
    for number, line in numbered_lines(path, source.encoding):
        try:
            cells = _cells(decode(line, source.encoding))
        except BadRow as error:
            cells, bad = [""], bad or (number, error)
        if not cells:
            yield from _sentence(first, words, names, bad)
            first, words, bad = 0, [], None
            continue
        if cells[0] == DOCUMENT_MARK or (not words and _is_comment(line)):
            continue
        if is_conllu and NO_WORD.fullmatch(cells[0]):
            continue
        first = first or number
        if bad is None:
            num_columns = num_columns or len(cells)
            if len(cells) != num_columns:
                reason = f"expected {_columns(num_columns)}, but found {len(cells)}: {cells[0]!r}"
                bad = (number, BadRow(reason))
            words.append(cells)
    yield from _sentence(first, words, names, bad)


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
    first: int, words: list[list[str]], names: list[str], bad: tuple[int, BadRow] | None
) -> Iterator[NumberedRow]:
    """The row of a sentence, or its first bad line; nothing for no words."""
    if bad is not None:
        yield bad
    elif words and names:
        yield first, {name: list(column) for name, column in zip(names, zip(*words, strict=True), strict=True)}
    elif words:
        row: dict[str, Any] = {"tokens": [cells[0] for cells in words]}
        if len(words[0]) > 1:
            row["tags"] = [cells[-1] for cells in words]
        yield first, row
